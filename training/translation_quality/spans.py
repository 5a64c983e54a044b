"""Figures, names, prices and times that a translation must hold: how many are there.

A span is looked for as a whole, so that the 5 of 15 or of 5.30 is none, and what is found for one span
is not found again for another.
"""

import re
from collections.abc import Sequence
from typing import Any

# What may not stand beside a span that begins or ends with a digit, or with a letter.
DIGIT_BEFORE, DIGIT_AFTER = r"(?<!\d)(?<!\d[.,:])", r"(?!\d|[.,:]\d)"
LETTER_BEFORE, LETTER_AFTER = r"(?<![^\W\d_])", r"(?![^\W\d_])"


def read_expectations(lines: Sequence[str]) -> list[list[list[str]]]:
    """Expected spans as a file has them: a line for each sentence, a tab between spans, a | between alternatives.

    Returns:
        Of each sentence the spans, each a list of the forms it may have; none for an empty line.

    Raises:
        ValueError: an empty span or alternative; names the line, from 1.
    """
    expectations = []
    for number, line in enumerate(lines, start=1):
        spans = [span.split("|") for span in line.split("\t")] if line else []
        if not all(form.strip() for span in spans for form in span):
            raise ValueError(f"line {number} has an empty span: {line!r}; write A|B, with a tab between spans.")
        expectations.append(spans)
    return expectations


def copied_spans(hypotheses: Sequence[str], expectations: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """The share of expected spans that the translations hold.

    Args:
        hypotheses: a translation each.
        expectations: of each, the spans, and of each span the forms it may have; see `read_expectations`.

    Returns:
        "share" of the spans that are there, "num_spans", "num_copied", and "failures": the "line" (from 1), "span" and
        "hypothesis" of each that is not.

    Raises:
        ValueError: the numbers of hypotheses and expectations differ, or nothing is expected.
    """
    if len(hypotheses) != len(expectations):
        raise ValueError(f"{len(hypotheses)} hypotheses, but expectations of {len(expectations)}; they must be equal.")
    num_spans = sum(map(len, expectations))
    if not num_spans:
        raise ValueError("no span is expected of any hypothesis; there must be one at least.")
    failures = [
        {"line": number, "span": "|".join(span), "hypothesis": hypothesis}
        for number, (hypothesis, spans) in enumerate(zip(hypotheses, expectations, strict=True), start=1)
        for span in _missing(hypothesis, spans)
    ]
    num_copied = num_spans - len(failures)
    return {"share": num_copied / num_spans, "num_spans": num_spans, "num_copied": num_copied, "failures": failures}


def _missing(hypothesis: str, spans: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The spans that cannot all be found at places of their own: as few as there can be, in their order."""
    places = [sorted({place for form in span for place in _places(form, hypothesis)}) for span in spans]
    best: list[int] = list(range(len(spans)))

    def search(index: int, used: list[tuple[int, int]], missing: list[int]) -> None:
        nonlocal best
        if len(missing) >= len(best):
            return
        if index == len(spans):
            best = missing
            return
        for start, end in places[index]:
            if all(end <= other_start or other_end <= start for other_start, other_end in used):
                search(index + 1, [*used, (start, end)], missing)
        search(index + 1, used, [*missing, index])

    search(0, [], [])
    return [spans[index] for index in best]


def _places(form: str, text: str) -> list[tuple[int, int]]:
    """Where a form stands as a whole."""
    before = DIGIT_BEFORE if form[0].isdigit() else LETTER_BEFORE if form[0].isalpha() else ""
    after = DIGIT_AFTER if form[-1].isdigit() else LETTER_AFTER if form[-1].isalpha() else ""
    return [match.span() for match in re.finditer(before + re.escape(form) + after, text)]
