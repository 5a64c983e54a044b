"""Tables of training runs, each made of a log."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from training.reports.results import (
    ELBO_PARTS_SHOWN,
    name_signatures,
    name_steps,
    name_test_set,
    read_log,
    read_result,
    show_score,
    table,
)
from training.sections import OptimizationArguments

NUM_SENTENCES = OptimizationArguments.valid_bleu_sentences  # of most runs


def training_table(results: Path, num_sentences: int = NUM_SENTENCES) -> str:
    """Validation of the student after each epoch, or as often as was asked for."""
    return (
        _training_table(results / "log.jsonl")
        + f" BLEU (13a, cased) on {num_sentences} of its sentences at even distances."
    )


def further_training_table(results: Path, run: str) -> str:
    """The same of another run, whose log bears its name."""
    return _training_table(results / f"log_{run}.jsonl") + " BLEU as above."


def initial_weights_table(results: Path) -> str:
    """The first steps from random weights, beside those of the run that other models' weights began."""
    random, begun = (
        {line["step"]: line for line in read_log(results / log, "train")}
        for log in ("log_random.jsonl", "log_begun.jsonl")
    )
    rows = [(step, *(f"{run[step]['token_nll']:.2f}" for run in (random, begun))) for step in random if step in begun]
    return table(("step", "token NLL from random weights", "from other models'"), rows) + (
        "\n\nNats per target token of the training batches, with glancing."
    )


def training_ctc_table(results: Path) -> str:
    """The same of the first part of the student with CTC alignment, and its last model's scores."""
    speeds = [line["target_tokens_per_second"] for line in read_log(results / "log_ctc.jsonl", "train")]
    test = read_result(results, "test_ctc")
    scores = [
        (
            name_steps(row["num_refinement_steps"]),
            show_score(row["bleu"]),
            show_score(row["chrf"]),
            f"{row['length_ratio']:.3f}",
            f"{row['repeated_tokens']['before_removal']['words']:.2%}",
        )
        for row in test["results"]
    ]
    return "\n\n".join(
        (
            f"{_training_table(results / 'log_ctc.jsonl')} BLEU as in the other runs. The median of the log: "
            f"{statistics.median(speeds):,.0f} target tokens per second.",
            "The last of these models on the test set:",
            table(("decoding", "BLEU", "chrF", "length ratio", "repeated words"), scores),
            f"{name_test_set(test)}. {name_signatures(test['results'][0])}.",
        )
    )


def training_raw_table(results: Path) -> str:
    """The same of the student on raw text, the first model that shipped."""
    return _training_table(results / "log_raw.jsonl") + (
        f" BLEU (13a, cased) on its first {NUM_SENTENCES} sentences, which are the shortest (in later runs as many are "
        "taken at even distances)."
    )


def _training_table(log: Path) -> str:
    lines = read_log(log, "valid")
    columns = {"ELBO": ("elbo", 3), **{name: (key, 3) for name, key in ELBO_PARTS_SHOWN.items()}}
    columns |= {"length accuracy": ("length_accuracy", 2)}
    columns |= {f"BLEU, {name_steps(steps)}": (f"bleu_{steps}_steps", 1) for steps in (0, 1)}
    # Without those of the length, where the model has no length predictor.
    shown = {name: column for name, column in columns.items() if any(column[0] in line for line in lines)}
    rows = [
        (line["epoch"] + 1, line["step"], *(f"{line[key]:.{digits}f}" for key, digits in shown.values()))
        for line in lines
    ]
    return table(("epoch", "step", *shown), rows) + "\n\nNats per target token on the validation set."


def teacher_training_table(results: Path, log: str = "teacher_log", num_sentences: int = NUM_SENTENCES) -> str:
    """The validations of a teacher."""
    rows = [
        (
            line["epoch"] + 1,
            line["step"],
            f"{line['token_nll']:.3f}",
            f"{line['token_accuracy']:.3f}",
            f"{line['bleu_beam_1']:.1f}",
        )
        for line in read_log(results / f"{log}.jsonl", "valid")
    ]
    return table(("epoch", "step", "nats per token", "token accuracy", "BLEU, beam 1"), rows) + (
        f"\n\nBLEU (13a, cased) on {num_sentences} validation sentences at even distances."
    )


def training_speed_up_table(results: Path) -> str:
    """A training step's speed before plain attention and cheap dropout, and with them."""
    result = read_result(results, "training_speed_up")
    rows = []
    for precision, speeds in result["target_tokens_per_second"].items():
        before, now = (statistics.mean(speeds[name]) for name in ("before", "now"))
        rows.append(
            ({"no": "float32"}.get(precision, precision), f"{before:,.0f}", f"{now:,.0f}", f"{now / before:.2f}")
        )
    return table(("precision", "target tokens/s before", "now", "times"), rows) + (
        f"\n\nBefore: commit {result['before']}. {result['recipe'][0].upper()}{result['recipe'][1:]}. "
        f"{result['machine']['threads']} threads of {result['machine']['processor']}, means of two runs in turns."
    )


def study_table(results: Path, name: str = "study") -> str:
    """What variants of training came to from the same weights in the same time."""
    study = read_result(results, name)

    def scores(of_one: dict[str, Any]) -> list[str]:
        first, second = of_one["bleu"][:2]
        p_value = f"p = {of_one['p_value']:.3f}" if of_one["p_value"] < 0.05 else "chance"
        gain = f"{second - first:+.2f} ({p_value})"
        return [*(f"{bleu:.2f}" for bleu in of_one["bleu"]), gain, f"{of_one['length_ratio'][1]:.3f}"]

    rows = [["the weights that all begin with", "", "", "", *scores(study["initial"])]]
    for run in study["runs"]:
        valid = run["valid"]
        rows.append([run["name"], run["seed"], valid["step"], f"{valid['kl_per_source_position']:.2f}", *scores(run)])
    columns = ["variant", "seed", "training steps", "KL", *map(name_steps, range(study["max_steps"] + 1))]
    machines = sorted({f"{run['machine']['threads']} of {run['machine']['processor']}" for run in study["runs"]})
    return table((*columns, "the first step gains", "length ratio, 1 step"), rows) + (
        f"\n\nBLEU of {study['initial']['num_sentences']:,} validation sentences after each step; {study['minutes']:g} "
        "minutes each; KL: nats a source position. p: paired approximate randomisation. Threads: "
        f"{', '.join(machines)}."
    )


RUNS = (
    "sprint",
    "own",
    "own_2",
    "gpu",
    "bigrams",
    "bigrams_cpu",
    "cooled",
    "more",
    "deep",
    "deep_10",
    "second",
    "second_2",
    "spans_cpu",
    "states",
    "no_states",
    "states_2",
    "length",
    "depth_8_2",
    "depth_4_4",
    "back",
    "back_cpu",
    "back_long",
)
TEACHER_RUNS = ("12_1", "reverse", "back", "no_back")  # of 250 validation sentences
TRAINING_TABLES: dict[str, Callable[[Path], str]] = {
    "training": training_table,
    "training_250": partial(training_table, num_sentences=250),
    "finetuning": partial(further_training_table, run="finetuning"),
    **{f"training_{run}": partial(further_training_table, run=run) for run in RUNS},
    "study": study_table,
    "study_shipped": partial(study_table, name="study_shipped"),
    "training_ctc": training_ctc_table,
    "training_raw": training_raw_table,
    "initial_weights": initial_weights_table,
    "training_speed_up": training_speed_up_table,
    "teacher_training": teacher_training_table,
    **{
        f"teacher_training_{run}": partial(teacher_training_table, log=f"teacher_log_{run}", num_sentences=250)
        for run in TEACHER_RUNS
    },
}
