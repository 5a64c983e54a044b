"""The paper's Fig. 3 and 4 from the data of `analysis.json`, and the reliability diagram of `calibrate.py`.

A figure is a pure function of a JSON, and needs no display. Colours are those of Okabe and Ito,
which colour-blind readers can tell apart; markers, line styles and hatching tell the same in black and white.
"""

from pathlib import Path
from typing import Any

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError("The figures need matplotlib: pip install -c constraints.txt matplotlib") from error

BLUE, VERMILLION, SKY_BLUE, BLACK = "#0072B2", "#D55E00", "#56B4E9", "#000000"
DOTS_PER_INCH = 200
LABEL_SIZE, NOTE_SIZE = 10, 7.5  # points
SMALLEST_BLEU_RANGE = 2.0  # shown, so that noise of a tenth does not fill the panel


def plot_elbo_and_bleu(data: dict[str, Any]) -> Figure:
    """Fig. 3: ELBO (upper panel) and BLEU (lower panel) after each refinement step."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in data["steps"]]
    upper.plot(steps, [row["elbo"] for row in data["steps"]], color=BLUE, marker="o", linestyle="-")
    upper.set_ylabel("ELBO (nats per target token)", fontsize=LABEL_SIZE)
    bleus = [row["bleu"] for row in data["steps"]]
    lower.plot(steps, bleus, color=VERMILLION, marker="s", linestyle="--")
    room = max(SMALLEST_BLEU_RANGE, 1.1 * (max(bleus) - min(bleus))) / 2
    middle = (max(bleus) + min(bleus)) / 2
    lower.set_ylim(middle - room, middle + room)
    lower.set_ylabel("BLEU (0 to 100)", fontsize=LABEL_SIZE)
    lower.set_xlabel("refinement step (0: before refinement)", fontsize=LABEL_SIZE)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    for axes in (upper, lower):
        _draw_grid(axes)
    notes = (
        f"ELBO of the model's own translation, {data['num_elbo_samples']} latent samples per sentence; "
        "higher is better\n"
        f"BLEU {data['bleu_signature']}"
    )
    _write_around(figure, data, notes)
    return figure


def plot_stopping(data: dict[str, Any]) -> Figure:
    """Fig. 4: share of sentences that stop at each step, the share that has stopped by then, and the rest."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    rows, rest = data["stopping"]["steps"], data["stopping"]["not_converged"]
    steps = [row["step"] for row in rows]
    percents = [100 * row["share"] for row in rows]
    axes.bar(steps, percents, color=SKY_BLUE, edgecolor=BLACK, label="stops at this step")
    rest_percent = 100 * rest["share"]
    label = f"still changes at step {steps[-1]}"
    axes.bar(steps[-1] + 1, rest_percent, color=VERMILLION, edgecolor=BLACK, hatch="///", label=label)
    stopped = [sum(percents[: index + 1]) for index in range(len(percents))]
    axes.plot(steps, stopped, color=BLACK, marker="D", markersize=4, linestyle=":", label="has stopped by this step")
    names = [*map(str, steps), f"> {steps[-1]}"]
    labels = [f"{name}\n{percent:.1f}" for name, percent in zip(names, [*percents, rest_percent], strict=True)]
    axes.set_xticks([*steps, steps[-1] + 1], labels)
    axes.set_ylim(0, 105)
    axes.set_ylabel("share of sentences (%)", fontsize=LABEL_SIZE)
    axes.set_xlabel("refinement step; below it, the bar's height (%)", fontsize=LABEL_SIZE)
    axes.legend(loc="best")
    _draw_grid(axes)
    mean = data["stopping"]["mean_steps_taken"]
    notes = f"A sentence stops at the first step that changes nothing; {mean:.2f} steps are taken in the mean"
    _write_around(figure, data, notes)
    return figure


def plot_reliability(data: dict[str, Any]) -> Figure:
    """How often words of a confidence are right: the model calibrated and not, and the teacher if there is one."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=BLACK, linewidth=0.8, linestyle=":", label="as often as it says")
    lines = [
        ("calibrated", data, "bins", BLUE, "o", "-"),
        ("as computed", data, "bins_uncalibrated", SKY_BLUE, "^", "--"),
    ]
    if data.get("teacher"):
        lines.append(("teacher, calibrated", data["teacher"], "bins", VERMILLION, "s", "-."))
    for name, measured, bins, color, marker, style in lines:
        error = measured["error_uncalibrated" if bins.endswith("uncalibrated") else "error"]
        xs, ys = ([one[side] for one in measured[bins]] for side in ("confidence", "value"))
        label = f"{name}: error {error:.3f}"
        axes.plot(xs, ys, color=color, marker=marker, linestyle=style, label=label)
    axes.set_xlabel("mean confidence of the words of a bin", fontsize=LABEL_SIZE)
    axes.set_ylabel("share of them that the reference has", fontsize=LABEL_SIZE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(loc="best")
    _draw_grid(axes)
    notes = f"{data['num_words']:,} words"
    if "calibrated_on" in data:
        notes += f"; calibrated on {data['calibrated_on']['num_sentences']:,} other sentences"
    _write_around(figure, data, notes)
    return figure


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG for print."""
    figure.savefig(file, dpi=DOTS_PER_INCH)


def _draw_grid(axes: Axes) -> None:
    axes.grid(axis="y", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _write_around(figure: Figure, data: dict[str, Any], notes: str) -> None:
    """What was measured, above; how, below. Names are text, not formulas, even with a dollar sign."""
    names = f"{Path(data['model']).name}, {data['test_set']}, {data['num_sentences']:,} sentences"
    figure.suptitle(names, fontsize=LABEL_SIZE, parse_math=False)
    figure.supxlabel(notes, fontsize=NOTE_SIZE, color="0.3", parse_math=False)
