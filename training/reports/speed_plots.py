"""The two plots of the benchmark, from its JSON: sentences/s against batch size, and speed against quality.

Legible in print and for colour-blind readers: Okabe and Ito's colours, and a marker of its own for each row of a panel.
Autoregressive systems are solid, this model's are dashed, each in its own way.
"""

import io
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
OWN_LINES = ("--", ":", "-.")
FONT_SIZE = 9


def _rows_by_engine(systems: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The panels: each autoregressive engine, with this model's rows in front; one panel if there is no such engine."""
    own = [name for name, system in systems.items() if system["family"] == "lvnar"]
    panels: dict[str, list[str]] = {}
    for name, system in systems.items():
        if system["family"] == "autoregressive":
            panels.setdefault(system["engine"], [*own]).append(name)
    return panels or {"this model": own}


def draw_throughput(result: dict[str, Any]) -> Figure:
    """Sentences per second against batch size, both logarithmic, with the range of the repeats; a panel an engine.

    Args:
        result: one mode of the JSON.
    """
    systems = result["systems"]
    panels = _rows_by_engine(systems)
    figure = Figure(figsize=(1.0 + 4.2 * len(panels), 6.4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (engine, names) in zip(all_axes, panels.items(), strict=True):
        own_lines = cycle(OWN_LINES)
        for name, colour, marker in zip(names, cycle(OKABE_ITO), cycle(MARKERS), strict=False):
            speeds = systems[name]["model"]["sentences_per_second"]
            medians = [row["median"] for row in speeds.values()]
            errors = [
                [row["median"] - row["lowest"] for row in speeds.values()],
                [row["highest"] - row["median"] for row in speeds.values()],
            ]
            line = next(own_lines) if systems[name]["family"] == "lvnar" else "-"
            style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": line, "capsize": 2}
            axes.errorbar([int(size) for size in speeds], medians, yerr=errors, label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([int(size) for size in result["sentences"]], list(result["sentences"]))
        axes.set_title(engine, fontsize=FONT_SIZE)
        axes.set_xlabel("batch size (sentences)", fontsize=FONT_SIZE)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    all_axes[0].yaxis.set_major_formatter("{x:g}")
    all_axes[0].set_ylabel("throughput (sentences/s)", fontsize=FONT_SIZE)
    return figure


def draw_quality(result: dict[str, Any]) -> Figure:
    """BLEU against milliseconds a sentence, a panel for the smallest batch and one for the largest.

    The rows of an engine that differ by steps or beam are joined; this model's searches have one marker.

    Args:
        result: the mode "trained" of the JSON.
    """
    sizes = list(dict.fromkeys([*result["sentences"]][:: max(1, len(result["sentences"]) - 1)]))
    lines: dict[str, list[dict[str, Any]]] = {}
    for name, system in result["systems"].items():
        line, *parts = name.replace(", ", " ", 1).split(", ")  # what it is and its engine; steps or beam; a search
        lines.setdefault(f"{line}, searching" if len(parts) > 1 else line, []).append(system)
    figure = Figure(figsize=(4.5 * len(sizes) + 1.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for (name, systems), marker, colour in zip(lines.items(), cycle(MARKERS), cycle(OKABE_ITO[:7])):
            is_own = systems[0]["family"] == "lvnar"
            speeds = [system["model"]["sentences_per_second"][size]["median"] for system in systems]
            axes.plot(
                [1000 / speed for speed in speeds],
                [system["quality"]["bleu"]["score"] for system in systems],
                label=name,
                color=colour,
                marker=marker,
                markersize=7,
                markerfacecolor=colour if is_own else "none",
                linestyle="none" if name.endswith(", searching") else "--" if is_own else "-",
                linewidth=1,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(f"milliseconds a sentence, batch size {size}", fontsize=FONT_SIZE)
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("BLEU (13a, cased)", fontsize=FONT_SIZE)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside right center", labelspacing=0.8)
    return figure


def render_svg(figure: Figure) -> str:
    """The text of an SVG, the same for the same figure."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "lvnar", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())
