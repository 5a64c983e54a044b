"""What counts as a span that was copied right, and the sentences to try it on."""

import re

import pytest
from conftest import FIXTURES

from training.translation_quality.spans import copied_spans, read_expectations


def share(hypothesis: str, *spans: str) -> float:
    return copied_spans([hypothesis], read_expectations(["\t".join(spans)]))["share"]


@pytest.mark.parametrize(
    ("hypothesis", "span", "is_copied"),
    [
        ("Er ist 33 Jahre alt.", "33", True),
        ("Er ist 33.", "33", True),
        ("33, sagte er.", "33", True),
        ("Das kostet 50$.", "50", True),
        ("Das kostet $50.", "50", True),
        ("ein 5-Euro-Schein", "5", True),
        ("(2019)", "2019", True),
        ("Er ist 3 Jahre alt.", "33", False),
        ("Er ist 333 Jahre alt.", "33", False),
        ("Er ist 133 Jahre alt.", "33", False),
        ("Es kostet 3,50 Euro.", "3", False),
        ("Es kostet 3,50 Euro.", "50", False),
        ("Um 3:30 Uhr.", "30", False),
        ("Um 13:30 Uhr.", "3:30", False),
        ("Um 3:30:15 Uhr.", "3:30", False),
        ("Um 3.30 Uhr.", "3:30|3.30", True),
        ("Um 3:30 Uhr.", "3:30|3.30", True),
        ("Es sind 5.000 Yen.", "5000|5.000", True),
        ("Es sind 15.000 Yen.", "5000|5.000", False),
        ("Es sind 5.000.000 Yen.", "5000|5.000", False),
        ("Es kostet 4.80.", "4,80", False),
        ("Tom ist da.", "Tom", True),
        ("„Tom“, sagte sie.", "Tom", True),
        ("Toms Hund", "Tom", False),
        ("Toms Hund", "Tom|Toms", True),
        ("Der Atom-Strom", "tom", False),
        ("tom ist da.", "Tom", False),
        ("Zoë", "Zoe", False),
        ("Tel. 555-0199", "555-0199", True),
        ("", "5", False),
    ],
)
def test_a_span_is_found_as_a_whole(hypothesis, span, is_copied):
    assert share(hypothesis, span) == is_copied


def test_what_is_found_once_counts_once():
    assert share("5 und 5", "5", "5") == 1.0
    assert share("5 und 6", "5", "5") == 0.5
    assert share("4:0", "4:0", "4|4:0") == 0.5
    # The first span leaves to the second what only that can be.
    assert share("Tom sah Toms Hund.", "Toms|Tom", "Toms") == 1.0
    assert share("Toms Hund.", "Toms|Tom", "Toms") == 0.5


def test_failures_are_named():
    expectations = read_expectations(["Tom\t3,50|3.50", "", "7"])
    assert expectations == [[["Tom"], ["3,50", "3.50"]], [], [["7"]]]
    result = copied_spans(["Tim zahlt 3.50.", "Ja.", "Es ist 17 Uhr."], expectations)
    assert (result["num_spans"], result["num_copied"], result["share"]) == (3, 1, 1 / 3)
    assert result["failures"] == [
        {"line": 1, "span": "Tom", "hypothesis": "Tim zahlt 3.50."},
        {"line": 3, "span": "7", "hypothesis": "Es ist 17 Uhr."},
    ]


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="1 hypotheses, but expectations of 2"):
        copied_spans(["a"], [[], []])
    with pytest.raises(ValueError, match="no span is expected"):
        copied_spans(["a"], [[]])
    for line in ("5\t", "5|", " "):
        with pytest.raises(ValueError, match="line 2 has an empty span"):
            read_expectations(["5", line])


def test_the_sentences_to_try_hold_what_is_expected_of_their_translation():
    """A figure that is expected stands in the source, and every figure of two digits or more is expected."""
    sources, lines = (
        (FIXTURES / "spans" / name).read_text("utf-8").removesuffix("\n").split("\n")
        for name in ("en.txt", "expected.txt")
    )
    expectations = read_expectations(lines)
    assert len(sources) == len(set(sources)) == len(expectations) == 200 and all(expectations)
    assert sum(map(len, expectations)) > 240
    for source, spans in zip(sources, expectations, strict=True):
        digits = re.sub(r"\D", "", source)
        for forms in spans:
            numbers = {re.sub(r"\D", "", form) for form in forms} - {""}
            assert not numbers or any(number in digits for number in numbers), (source, forms)
            assert numbers or any(form.lower() in source.lower() for form in forms), (source, forms)
        expected = "".join(re.sub(r"\D", "", "".join(forms)) for forms in spans)
        assert all(number in expected for number in re.findall(r"\d{2,}", source)), source
    copied = copied_spans(sources, expectations)
    assert copied["share"] > 0.9, "most English sentences are right as they are; German's own forms are the rest"
