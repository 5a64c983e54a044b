"""Names: which words are taken for them, and that they reach the translation as they are."""

import shutil
import subprocess
import sys
import time
import unicodedata

import pytest
from conftest import FIXTURES, ROOT
from test_text import CharacterTokenizer
from transformers import AutoTokenizer, pipeline

from lvnar_hf import LvnarTokenizer
from lvnar_hf.files.text import read_lines
from lvnar_hf.jobs.light_translator import LightTokenizer
from lvnar_hf.names_lvnar import (
    find_names,
    lost_names,
    only_in_pieces,
    read_translated_words,
    translated_words,
    write_translated_words,
)
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
    return [text[start:end] for start, end in find_names(text, ListTokenizer())]


def test_what_a_corpus_says_are_no_names():
    small = {"likes", "met", "in", "and", "call", "is", "fun"}
    assert translated_words(PAIRS) == {*small, "we", "north", "germany", "france"}
    # Ingrid, Korea and O'Brien are kept; of Skating nobody knows; NATO is all capitals.


def test_words_that_the_vocabulary_has_whole_are_not_listed():
    assert only_in_pieces(["tom", "ingrid"], ListTokenizer()) == {"ingrid"}


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
        ("call 'Ingrid is'", ["Ingrid"]),
        ("TOm is TOM", []),  # "Tom" is whole
        ("is " + "Ab" * 30, []),
        ("I", []),
        ("", []),
    ],
)
def test_what_is_taken_for_a_name(text, expected):
    assert names(text) == expected
    assert list(find_names(text, CharacterTokenizer())) == []  # without a list nothing is


@pytest.mark.parametrize(
    ("text", "translation", "expected"),
    [
        ("Ingrid is Ingrid", "Ingrids Hund, INGRID!", []),
        ("Ingrid is Ingrid", "Ingrid", ["Ingrid"]),
        ("Ingrid is Ingrid", "Ingrd Ingrid", ["Ingrid"]),
        ("Ingrid is at Zoe\u0308", "", ["Ingrid", "Zoë"]),
        ("The Zoe Ingrid is", "Ingrid ist Zoe", []),
        ("The Zoe Ingrid is", "Ingrid ist", ["Zoe Ingrid"]),
        ("Therapists is at", "Therapisten sind", []),  # the capital says nothing, and the translation is like it
        ("The Therapists is at", "Therapisten sind", ["Therapists"]),
        ("The Therapist is", "Therapeut", ["Therapist"]),
        ("Viktor is at", "Viktoer", ["Viktor"]),
        ("Massachusetts is", "Massach ist", ["Massachusetts"]),
    ],
)
def test_a_name_must_be_there_as_often(text, translation, expected):
    places = find_names(text, ListTokenizer())
    lost = [text[start:end] for start, end in lost_names(text, places, translation)]
    assert [unicodedata.normalize("NFC", name) for name in lost] == expected


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
    (first,) = PLACEHOLDERS[:1]
    found = translate("The Zoe Lindqvist is at Ingrid's.", lambda text: text.replace("Zoe", "Zo"))
    assert found == (
        "The Zoe Lindqvist is at Ingrid's.",
        ["The Zoe Lindqvist is at Ingrid's.", f"The {first} is at Ingrid's."],  # Ingrid was not lost
    )


def test_figures_that_are_right_are_left_as_they_are():
    found, asked = translate("Ingrid is 1,500.", lambda text: text.replace("Ingrid", "Ing").replace("1,500", "1.500"))
    assert found == "Ingrid is 1.500." and asked[1] == f"{PLACEHOLDERS[0]} is 1,500."


def test_a_figure_and_a_name_that_are_lost_both_come_back():
    first, second = PLACEHOLDERS[:2]
    found, asked = translate("Ingrid is 100.", lambda text: text.replace("100", "10").replace("Ingrid", "Ing"))
    assert found == "Ingrid is 100." and asked == ["Ingrid is 100.", f"Ingrid is {first}.", f"{first} is {second}."]


def test_spans_keep_their_places_among_names():
    found, asked = translate(
        "is {a} at Zoe call {b} Ingrid.", lambda text: text.replace("Zoe", "").replace("Ingrid", "")
    )
    assert found == "is {a} at Zoe call {b} Ingrid."
    assert asked[1] == "is {} at {} call {} {}.".format(*PLACEHOLDERS[:4])


@pytest.mark.parametrize("lose", [lambda text: "x", lambda text: text.replace(PLACEHOLDERS[0], "")])
def test_where_a_placeholder_is_lost_the_first_translation_stays(lose):
    def model(text):
        return "the first" if "Ingrid" in text else lose(text)

    found, asked = translate("The Ingrid's is.", model)
    assert found == "the first" and len(asked) == 2  # and no piece is translated


def test_a_placeholder_that_is_said_twice_stands_where_it_was_first():
    first, second = PLACEHOLDERS[:2]

    def model(text):
        return "x" if "Ingrid" in text else f"is {first} at {second} {first} {second}."

    assert translate("Ingrid is at Zoe.", model)[0] == "is Ingrid at Zoe ."


def test_a_name_alone_is_not_translated_again():
    assert translate("Ingrid!", lambda text: "x") == ("Ingrid!", ["Ingrid!"])


def test_more_names_than_placeholders_are_left_to_the_model():
    text = " is ".join(f"Zo{chr(97 + number)}e" for number in range(len(PLACEHOLDERS) + 1))
    assert translate(text, lambda text: "x") == ("x", [text])


def test_each_of_several_translations_keeps_its_names():
    def translate_sentences(sentences):
        return [[s, s.replace("Ingrid", "Ing"), s.replace("is", "ist")] for s in sentences]

    ((*found,),) = TextFormat(ListTokenizer()).translate(["The Ingrid is."], translate_sentences)
    assert found == ["The Ingrid is.", "The Ingrid is.", "The Ingrid ist."]


def test_decomposed_letters_are_letters():
    found, asked = translate("The Jose\u0301 is.", lambda text: unicodedata.normalize("NFC", text))
    assert (found, asked) == ("The José is.", ["The Jose\u0301 is."])
    assert translate("The Zoe\u0308 is.", lambda text: text.replace("Zoe\u0308", "Zo"))[0] == "The Zoe\u0308 is."


def test_many_names_take_no_long():
    text = " is ".join(f"Zo{''.join(chr(97 + int(d)) for d in str(number))}e" for number in range(5000))
    start = time.perf_counter()
    translate(text, lambda text: "x")
    assert time.perf_counter() - start < 2


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


@pytest.mark.parametrize("content", [b"two-words", b"3", b"\xff", b"\x00\n", b"Boston", b"a" * 60])
def test_a_list_of_something_else_is_refused(tiny_repository, tmp_path, content):
    folder = shutil.copytree(tiny_repository, tmp_path / "model")
    (folder / "translated_words.txt").write_bytes(content)
    for load in (LvnarTokenizer.from_pretrained, AutoTokenizer.from_pretrained, LightTokenizer):
        with pytest.raises(ValueError):
            load(folder)


def test_a_corpus_gives_a_list_that_can_be_read(tmp_path):
    words = translated_words([("We went to İzmir, e\u0301te\u0301.", "Wir fuhren nach Izmir."), ("x" * 60, "y")])
    write_translated_words(words, tmp_path / "words")
    assert read_translated_words(tmp_path / "words") == words == {"we", "went", "to", "été"}
    with pytest.raises(ValueError, match="'Boston' is no word in small letters"):
        write_translated_words(["Boston"], tmp_path / "words")


def test_one_small_letter_does_not_outvote_the_names():
    joe = [("Joe is here.", "Joe ist hier.")] * 3 + [
        ("a cup of joe", "Kaffee"),
        ("Andrew!", "Andreas!"),
        ("Andrew!", "Andrew!"),
    ]
    assert not translated_words(joe) & {"joe", "andrew"}
    assert "joe" in translated_words(joe + [("joe", "x")] * 2)


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
    texts = ["I met Sven at the gym.", "What did Tariq say?", "Sven owes Tariq 1,500 euros."]
    found = [result["translation_text"] for result in translator(texts)]
    for text, names in zip(found, (["Sven"], ["Tariq"], ["Sven", "Tariq", "1.500 Euro"]), strict=True):
        assert all(name in text for name in names)
    command = [sys.executable, "-m", "lvnar_hf", "translate", "--model", str(SHIPPED), "--engine", "torch", texts[0]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == found[0] + "\n"


def test_the_model_that_ships_copies_the_spans_of_written_sentences(translator):
    """Names and figures that stand in small letters or are words of the vocabulary are what may get lost."""
    sources, expectations = (list(read_lines(FIXTURES / "spans" / f"{name}.txt")) for name in ("en", "expected"))
    hypotheses = [result["translation_text"] for result in translator(sources, batch_size=32)]
    assert copied_spans(hypotheses, read_expectations(expectations))["share"] >= 0.95
