"""The JSON of a folder of results, and how its figures are written."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ELBO_PARTS_SHOWN = {"token NLL": "token_nll", "KL": "kl", "length NLL": "length_nll"}


def read_result(results: Path, name: str) -> dict[str, Any]:
    """The JSON of that name."""
    return json.loads((results / f"{name}.json").read_text("utf-8"))


def has_result(results: Path, name: str) -> bool:
    """Whether there is a JSON of that name."""
    return (results / f"{name}.json").exists()


def read_log(file: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of that kind in a run's log."""
    return [line for line in map(json.loads, file.read_text("utf-8").splitlines()) if line["kind"] == kind]


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def name_steps(num_steps: int) -> str:
    """1 step, 2 steps."""
    return f"{num_steps} step{'s' * (num_steps != 1)}"


def show_score(score: dict[str, Any]) -> str:
    """With its interval, as 24.2 ± 1.3."""
    if "interval_95" not in score:
        return f"{score['score']:.1f}"
    low, high = score["interval_95"]
    return f"{score['score']:.1f} ± {(high - low) / 2:.1f}"


def name_signatures(result: dict[str, Any]) -> str:
    """Of the scores of a result."""
    names = {"bleu": "BLEU", "bleu_intl_lowercased": "BLEU, intl", "bleu_moses": "BLEU, Moses", "chrf": "chrF"}
    return "; ".join(f"{text}: `{result[name]['signature']}`" for name, text in names.items() if name in result)


def machine_of(result: dict[str, Any]) -> str:
    """For the end of a caption: threads and processor."""
    return f"{result['machine']['threads']} threads of {result['machine']['processor']}"


def name_test_set(result: dict[str, Any]) -> str:
    """Sentences, name and languages."""
    return (
        f"{result['num_sentences']:,} sentences of {result['test_set']}, {result['source_language']} to "
        f"{result['target_language']}"
    )
