"""Translations step by step with the changed words marked (the paper's Table 3), as Markdown and as HTML.

What a step changes is found by `lvnar_hf.steps`. Sentences may hold anything: what would be markup or would break a
line is written so that it is read as text.
"""

import html
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lvnar_hf.steps import Run, mark_steps
from training.quality.decoding import Refinement

_MARKUP = {character: f"&#{ord(character)};" for character in "\\`*_[]|~$"}
_MARKUP.update({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_DIRECTION_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_LEGEND: list[Run] = [
    {"kind": "replaced", "before": "before", "after": "after", "num_words": 1},
    {"kind": "inserted", "before": "", "after": "word", "num_words": 1},
    {"kind": "removed", "before": "word", "after": "", "num_words": 1},
]
_STYLE = """
body { font-family: sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #000; background: #fff; }
table { border-collapse: collapse; width: 100%; margin-bottom: 2em; }
th, td { border: 1px solid #999; padding: 0.3em 0.6em; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; }
del { color: #8a3800; text-decoration: line-through; }
ins { background: #cfe8f7; text-decoration: underline; font-weight: bold; }
mark { background: #f5e08a; color: #000; font-weight: bold; border: 1px solid #000; padding: 0 0.15em; }
"""


def choose_examples(refinements: dict[int, Refinement], num_examples: int) -> list[int]:
    """Indices of the lines whose translation changes most often; those that stop come first, then the file's order."""
    order = sorted(refinements, key=lambda i: (not refinements[i].has_converged, -refinements[i].num_changes, i))
    return order[:num_examples]


def describe_example(
    tokenizer: PreTrainedTokenizerBase, refinement: Refinement, elbos: Sequence[float] | None, unspaced: bool
) -> dict[str, Any]:
    """The steps of one sentence until it stops, as the decoder gave them, each with what it changed.

    Args:
        elbos: (at least num_steps_taken + 1,), nats per target token; None if it cannot be scored.
        unspaced: align subwords, not words.
    """
    steps = mark_steps(tokenizer, refinement.target_ids, elbos, unspaced)
    return {
        "num_changes": refinement.num_changes,
        "has_converged": refinement.has_converged,
        "output": refinement.texts[-1],
        "steps": [
            {
                "step": step["step"],
                "elbo": step["bound"],
                "text": step["text"],
                "num_changed_words": step["num_changed_words"],
                "runs": step["runs"],
            }
            for step in steps
        ],
    }


def visible(text: str) -> str:
    """The text on one line: line ends, control characters and those that turn the direction by their code."""
    return "".join(
        f"⟨U+{ord(character):04X}⟩"
        if unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in _DIRECTION_CONTROLS
        else character
        for character in text
    )


def escape_markdown(text: str) -> str:
    """The text as a Markdown table cell shows it literally."""
    return "".join(_MARKUP.get(character, character) for character in visible(text))


def escape_html(text: str) -> str:
    """The text as HTML shows it literally."""
    return html.escape(visible(text))


MARKDOWN_MARKS = {
    "kept": "{after}",
    "replaced": "~~{before}~~ → **{after}**",
    "inserted": "**+ {after}**",
    "removed": "~~− {before}~~",
}
HTML_MARKS = {
    "kept": "{after}",
    "replaced": "<del>{before}</del> → <mark>{after}</mark>",
    "inserted": "<ins>+ {after}</ins>",
    "removed": "<del>− {before}</del>",
}


def _mark(runs: Sequence[Run], marks: dict[str, str], escape: Callable[[str], str]) -> str:
    sides = (
        {side: escape(_show_spaces(text)) for side, text in (("before", run["before"]), ("after", run["after"]))}
        for run in runs
    )
    return " ".join(marks[run["kind"]].format(**texts) for run, texts in zip(runs, sides, strict=True))


def mark_markdown(runs: Sequence[Run]) -> str:
    """One translation: ~~before~~ → **after** for replaced words, **+ word** inserted, ~~− word~~ removed."""
    return _mark(runs, MARKDOWN_MARKS, escape_markdown)


def mark_html(runs: Sequence[Run]) -> str:
    """One translation: `del` and `mark` for replaced words, `ins` inserted, `del` removed; with the same symbols."""
    return _mark(runs, HTML_MARKS, escape_html)


def _show_spaces(text: str) -> str:
    """The text of a run without spaces at its ends; a run of spaces alone is ␣."""
    return text.strip() or "␣" * len(text)


def _introduce(data: dict[str, Any]) -> list[str]:
    """What the tables show, in sentences without markup."""
    unit = "subwords" if data["examples_by_subword"] else "words"
    return [
        f"{data['model']}, {data['test_set']}: {len(data['examples'])} of {data['num_sentences']} sentences, those "
        f"that change most often and stop within {data['max_steps']} refinement steps, then those that do not stop.",
        f"Each step shows the translation as the decoder gives it, and the {unit} that differ from the step before. "
        f"ELBO in nats per target token, {data['num_elbo_samples']} latent samples per sentence; higher is better.",
    ]


def _title(number: int, example: dict[str, Any]) -> str:
    times = f"changes {example['num_changes']} time{'s' * (example['num_changes'] != 1)}"
    return f"Example {number}: line {example['line']}, {times}"


def _ending(example: dict[str, Any], remove_repetitions: bool) -> tuple[str, str]:
    """Name and text of the last row: what `generate` gives."""
    name = "output, repetitions removed" if remove_repetitions else "output"
    return name if example["has_converged"] else f"{name}; still changing", example["output"]


def _remark(example: dict[str, Any], step: dict[str, Any]) -> str:
    """What is said instead of marks where a step changes no word."""
    if not step["step"] or step["num_changed_words"]:
        return ""
    is_last = step["step"] == example["steps"][-1]["step"]
    return "nothing changes: it stops" if is_last and example["has_converged"] else "the same words of other subwords"


def _format_elbo(elbo: float | None) -> str:
    return "" if elbo is None else f"{elbo:.3f}".replace("-", "−")


def render_markdown(data: dict[str, Any]) -> str:
    """The examples of `analysis.json` as a Markdown document with a table each."""
    legend = "; ".join(f"{run['kind']}: {mark_markdown([run])}" for run in _LEGEND)
    blocks = ["# Refinement, step by step", *map(escape_markdown, _introduce(data)), f"Marks: {legend}."]
    for number, example in enumerate(data["examples"], start=1):
        rows = ["| step | ELBO | text |", "|---|---|---|"]
        for name in ("source", "reference"):
            rows.append(f"| {name} | | {escape_markdown(example[name])} |")
        for step in example["steps"]:
            remark = _remark(example, step)
            text = f"*{remark}*" if remark else mark_markdown(step["runs"])
            rows.append(f"| {step['step']} | {_format_elbo(step['elbo'])} | {text} |")
        name, output = _ending(example, data["remove_repetitions"])
        rows.append(f"| {name} | | {escape_markdown(output)} |")
        blocks += [f"## {_title(number, example)}", "\n".join(rows)]
    return "\n\n".join(blocks) + "\n"


def render_html(data: dict[str, Any]) -> str:
    """The examples of `analysis.json` as one HTML file that needs no other."""
    legend = "; ".join(f"{run['kind']}: {mark_html([run])}" for run in _LEGEND)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>Refinement, step by step</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        "<h1>Refinement, step by step</h1>",
        *(f"<p>{escape_html(sentence)}</p>" for sentence in _introduce(data)),
        f"<p>Marks: {legend}.</p>",
    ]
    for number, example in enumerate(data["examples"], start=1):
        rows = [(name, "", escape_html(example[name])) for name in ("source", "reference")]
        for step in example["steps"]:
            remark = _remark(example, step)
            text = f"<em>{remark}</em>" if remark else mark_html(step["runs"])
            rows.append((str(step["step"]), _format_elbo(step["elbo"]), text))
        name, output = _ending(example, data["remove_repetitions"])
        rows.append((name, "", escape_html(output)))
        parts += [
            f"<h2>{_title(number, example)}</h2>",
            '<table>\n<thead><tr><th scope="col">step</th><th scope="col">ELBO</th><th scope="col">text</th></tr>'
            "</thead>\n<tbody>",
            *(
                f'<tr><th scope="row">{name}</th><td class="number">{elbo}</td><td dir="auto">{text}</td></tr>'
                for name, elbo, text in rows
            ),
            "</tbody>\n</table>",
        ]
    return "\n".join([*parts, "</body>\n</html>"]) + "\n"
