"""Names: which words are taken for them, and that they reach the translation as they are."""

import shutil
import subprocess
import sys

import pytest
from conftest import FIXTURES, ROOT
from test_text import CharacterTokenizer
from transformers import AutoTokenizer, pipeline

from lvnar_hf import LvnarTokenizer
from lvnar_hf.files.text import read_lines
from lvnar_hf.jobs.light_translator import LightTokenizer
from lvnar_hf.names_lvnar import find_names, lacks_names, only_in_pieces, translated_words
from lvnar_hf.subwords_lvnar import PLACEHOLDERS
from lvnar_hf.text_lvnar import TextFormat
from training import tokenizer as tokenizer_stage
from training.translation_quality.spans import copied_spans, read_expectations

SHIPPED = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
PAIRS = [
    ("Ingrid likes Germany.", "Ingrid mag Deutschland."),
    ("We met Ingrid in Germany and France.", "Wir trafen Ingrid in Deutschland und Frankreich."),
    ("North Korea", "Nordkorea"),
    ("I'll call O'Brien.", "Ich rufe O'Brien an."),
    ("NATO met. Skating is fun.", None),
]


class ListTokenizer(CharacterTokenizer):
    """Has "Tom" whole, all other words in pieces, and a list of words that are no names."""

    translated_words = frozenset(["germany", "the", "is", "call", "at", "hello"])

    def tokenize(self, text: str) -> list[str]:
        return [text] if text == "Tom" else list(text)


def names(text: str) -> list[str]:
    return list(find_names(text, ListTokenizer()))


def test_what_a_corpus_says_are_no_names():
    small = {"likes", "met", "in", "and", "call", "is", "fun"}
    assert translated_words(PAIRS) == {*small, "we", "north", "germany", "france"}
    # Ingrid, Korea and O'Brien are kept; of Skating nobody knows; NATO is all capitals.


def test_words_that_the_vocabulary_has_whole_are_not_listed():
    assert only_in_pieces(["tom", "ingrid"], ListTokenizer()) == {"tom", "ingrid"}  # "tom" is in pieces
    tokenizer = CharacterTokenizer()
    tokenizer.tokenize = lambda text: [text] if text.lower() == "tom" else list(text)
    assert only_in_pieces(["tom", "ingrid"], tokenizer) == {"ingrid"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ingrid is at Priya's.", ["Ingrid", "Priya"]),
        ("Hello, Zoe Lindqvist and Jean-Pierre!", ["Zoe Lindqvist", "Jean-Pierre"]),
        ("Zoe, Ingrid", ["Zoe", "Ingrid"]),
        ("Call Mary O'Brien", ["Mary O'Brien"]),
        ("my iPhone and a McDonald’s", ["iPhone", "McDonald"]),
        ("Tom is in Germany.", []),
        ("The NATO, IS AT", []),
        ("ingrid", []),
        ("A Kö8ln, Köln3 and Köln", ["Köln"]),
        ("I", []),
        ("", []),
    ],
)
def test_what_is_taken_for_a_name(text, expected):
    assert names(text) == expected
    assert list(find_names(text, CharacterTokenizer())) == []  # without a list nothing is


@pytest.mark.parametrize(
    ("translation", "expected"),
    [("Ingrids Hund, INGRID!", False), ("Ingrid", True), ("Ingrd Ingrid", True), ("", True)],
)
def test_a_name_must_be_there_as_often(translation, expected):
    assert lacks_names(translation, ["Ingrid", "Ingrid"]) == expected


def translate(text: str, model) -> tuple[str, list[str]]:
    asked = []

    def translate_sentences(sentences):
        asked.extend(sentences)
        return [[model(sentence)] for sentence in sentences]

    ((translation,),) = TextFormat(ListTokenizer()).translate([text], translate_sentences)
    return translation, asked


def test_a_name_that_the_model_keeps_is_left_to_it():
    assert translate("The Ingrid is.", str.lower) == ("the ingrid is.", ["The Ingrid is."])


def test_a_name_that_the_model_breaks_goes_through_it_as_a_span():
    first, second = PLACEHOLDERS[:2]
    found = translate("The Zoe Lindqvist is at Ingrid's.", lambda text: text.replace("Zoe", "Zo").replace("Ingrid", ""))
    assert found == (
        "The Zoe Lindqvist is at Ingrid's.",
        ["The Zoe Lindqvist is at Ingrid's.", f"The {first} is at {second}'s."],
    )


def test_a_figure_and_a_name_go_through_it_together():
    first, second = PLACEHOLDERS[:2]
    assert translate("Ingrid is 100.", lambda text: text.replace("100", "10"))[1][1] == f"{first} is {second}."


def test_what_stands_around_a_name_is_translated_if_its_placeholder_is_lost():
    found = translate("The is Ingrid at.", lambda text: "x" if "Ingrid" in text or PLACEHOLDERS[0] in text else text)
    assert found[0] == "The is Ingrid at."
    assert translate("Ingrid!", lambda text: "x")[0] == "Ingrid!"


def test_a_sentence_in_capitals_has_no_names():
    assert translate("THE INGRID IS AT", lambda text: "x") == ("X", ["The ingrid is at"])


def test_the_list_is_stored_with_the_tokenizer(tiny_repository, tmp_path):
    tokenizer = LvnarTokenizer.from_pretrained(tiny_repository)
    assert tokenizer.translated_words is None
    tokenizer.translated_words = frozenset(["über", "the"])
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "translated_words.txt").read_text("utf-8") == "the\nüber\n"
    for load in (LvnarTokenizer.from_pretrained, AutoTokenizer.from_pretrained, LightTokenizer):
        assert load(tmp_path).translated_words == {"the", "über"}
    tokenizer.translated_words = None
    tokenizer.save_pretrained(tmp_path)
    assert LvnarTokenizer.from_pretrained(tmp_path).translated_words is None


@pytest.mark.parametrize("content", [b"two-words", b"3", b"\xff", b"\x00\n"])
def test_a_list_of_something_else_is_refused(tiny_repository, tmp_path, content):
    folder = shutil.copytree(tiny_repository, tmp_path / "model")
    (folder / "translated_words.txt").write_bytes(content)
    for load in (LvnarTokenizer.from_pretrained, AutoTokenizer.from_pretrained, LightTokenizer):
        with pytest.raises(ValueError):
            load(folder)


def test_the_tokenizer_stage_lists_the_words_of_its_text(tmp_path):
    sample = FIXTURES / "tatoeba_en-de"
    flags = ["--train_source_files", str(sample / "test.en"), "--train_target_files", str(sample / "test.de")]
    flags += ["--source_language", "en", "--target_language", "de", "--vocab_size", "600"]
    flags += ["--tokenizer_folder", str(tmp_path / "tokenizer"), "--list_translated_words", "true"]
    made = tokenizer_stage.main(flags)
    assert LvnarTokenizer.from_pretrained(tmp_path / "tokenizer").translated_words == made.translated_words
    assert len(made.translated_words) > 100 and "boston" not in made.translated_words


@pytest.fixture(scope="module")
def translator():
    return pipeline("translation", model=str(SHIPPED))


def test_the_model_that_ships_keeps_names(translator):
    texts = ["I met Sven at the gym.", "What did Tariq say?", "I saw Zoe at the airport in Dublin."]
    found = [result["translation_text"] for result in translator(texts)]
    assert found == ["Ich traf Sven im Gym.", "Was hat Tariq gesagt?", "Ich habe Zoe in Dublin am Flughafen gesehen."]
    command = [sys.executable, "-m", "lvnar_hf", "translate", "--model", str(SHIPPED), "--engine", "torch", texts[0]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == found[0] + "\n"


def test_the_model_that_ships_copies_the_spans_of_written_sentences(translator):
    """Names and figures that stand in small letters or are words of the vocabulary are what may get lost."""
    sources, expectations = (list(read_lines(FIXTURES / "spans" / f"{name}.txt")) for name in ("en", "expected"))
    hypotheses = [result["translation_text"] for result in translator(sources, batch_size=32)]
    assert copied_spans(hypotheses, read_expectations(expectations))["share"] >= 0.95
