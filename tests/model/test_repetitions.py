"""Words that parallel decoding gives twice are taken out; what a text may rightly have twice is not."""

import pytest
import torch
from conftest import ROOT, SAMPLE, make_model, tiny_config
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from lvnar_hf.generation_lvnar import without_repetitions
from lvnar_hf.repetitions_lvnar import find_stutter, repeats_a_word

FOLDER = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
# Of 168,813 references, these lose a word. Most of them are mistyped.
LOSING = {
    "Danke, dass du du bist.",
    "Was würden Sie machen, wenn ich nicht nicht hier wäre?",
    "Was würden Sie tun, wenn ich nicht nicht hier wäre?",
    "Es lohnt sich nicht nicht, dorthin zu fahren.",
    "Lass mich mich darum kümmern.",
    "Der Arzt riet ihm ihm, mit dem Rauchen aufzuhören.",
    "Ich habe mir mir einem Messer in den Finger geschnitten.",
    "Es macht Tom nichts aus, Mary ab und zu zu helfen.",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def read(name: str) -> list[str]:
    return (SAMPLE / name).read_text("utf-8").rstrip("\n").split("\n")


def cleaned(tokenizer, text: str, source: str = "", ids: list[int] | None = None) -> str:
    """The text of a translation that the decoder gave, after removal."""
    ids = tokenizer(text_target=text)["input_ids"] if ids is None else ids
    source_ids = torch.tensor([tokenizer(source)["input_ids"]])
    kept = without_repetitions(torch.tensor([ids]), True, 0, source_ids, tokenizer)
    return tokenizer.decode(kept[0], skip_special_tokens=True)


def test_references_keep_their_text(tokenizer):
    """`repeats` holds each of 168,813 pairs whose German has a word, or a piece of one, twice in a row."""
    losing, num_pairs = set(), 0
    for name in ("repeats", "test"):
        for source, target in zip(read(f"{name}.en"), read(f"{name}.de"), strict=True):
            num_pairs += 1
            if cleaned(tokenizer, target, source) != tokenizer.normalize(target, target=True):
                losing.add(target)
    assert num_pairs == 1393 and losing == LOSING


@pytest.mark.parametrize(
    "text",
    [
        "Er ist 33 Jahre alt.",
        "Ich habe 5000 Yen für 100 000 000 bezahlt.",
        "Es ist 11 Uhr 11.",
        "3 3 3",
        "Warte ... !!! ???",
        "„„ “ ,,",
        "Kuckuck",
        "„Kuckuck!“ spielen",
        "bye-bye",
        "sehr, sehr gut",
        "Привет Привет",
        "Ich weiß, dass das das Beste ist.",
        "\x01 \x01 \x02",
        "3te 3te",
        "",
    ],
)
def test_what_is_left_alone(tokenizer, text):
    assert cleaned(tokenizer, text) == tokenizer.normalize(text, target=True)


def test_all_numbers_come_through(tokenizer):
    """Two equal digits in a row, as 200 numbers have them."""
    for number in (*range(11, 100, 11), *range(1000, 11_000, 55), *(int(f"{digit}00") for digit in range(1, 10))):
        assert cleaned(tokenizer, f"Das sind {number} Euro.") == f"Das sind {number} Euro."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom ist immer immer da.", "Tom ist immer da."),
        ("Es ist mir egal egal, was du denkst.", "Es ist mir egal, was du denkst."),
        ("So so so schnell.", "So so schnell."),  # a word is compared as it is written: "Spinnen spinnen Netze."
        ("das das das das Haus", "das das Haus"),
        ("Ich mag den Kaiserschmarrn Kaiserschmarrn.", "Ich mag den Kaiserschmarrn."),
        ("„Hallo Hallo“", "„Hallo“"),
    ],
)
def test_a_word_that_repeats_the_word_before_it_goes(tokenizer, text, expected):
    assert cleaned(tokenizer, text, "I do not care.") == expected


@pytest.mark.parametrize(
    ("source", "is_kept"), [("very, very good", True), ("My fish is your fish.", True), ("very good", False)]
)
def test_not_where_the_source_repeats_a_word(tokenizer, source, is_kept):
    assert (cleaned(tokenizer, "sehr sehr gut", source) == "sehr sehr gut") == is_kept


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Very very good", True),
        ("No, no!", True),
        ("ha ha", True),
        ("Why are spring rolls called spring rolls?", True),
        ("とてもとても", True),
        ("はい、はい。", True),
        ("Is it 33 33?", False),
        ("the cat and the dog", False),
        ("banana, ananas", False),
        ("", False),
    ],
)
def test_whether_a_source_repeats_a_word(text, repeats):
    assert repeats_a_word(text) == repeats


@pytest.mark.parametrize(
    ("pieces", "source", "is_as_encoded", "expected"),
    [
        ("▁K uck uck", "cuckoo", True, "000"),
        ("▁Um arm arm ung", "hug", False, "0010"),
        ("▁Um arm arm ung", "hug", True, "0000"),
        ("▁Be stellung stellung .", "order", True, "0010"),
        ("▁Cous Cous", "couscous", True, "00"),  # the source has it too
        ("▁g il il il t .", "", False, "001100"),
        ("▁<0xD0> <0xD0> <0xD0>", "", False, "000"),
        ("▁2 0 0 0 er", "", False, "00000"),
        ("▁Haus ▁Haus tür", "", True, "000"),
        ("▁sehr ▁sehr , ▁sehr", "", True, "0100"),
    ],
)
def test_a_piece_goes_where_the_model_stuttered(pieces, source, is_as_encoded, expected):
    """By the tokenizer's own spelling of the word, or by the length of the piece."""
    stutter = find_stutter(pieces.split(" "), source, lambda start, end: is_as_encoded)
    assert "".join(str(int(repeated)) for repeated in stutter) == expected


def test_what_generate_removes_can_be_asked_for(tokenizer, monkeypatch):
    """With a tokenizer by words, with "tokens" as the paper does, by default nothing where no tokenizer is given."""
    model = make_model(tiny_config(vocab_size=len(tokenizer)))
    text = "Tom ist immer immer 33 Jahre alt."
    said = tokenizer(text_target=[text, "Ja."], return_tensors="pt", padding=True)["input_ids"]

    def refine(input_ids, attention_mask, options):
        return type(output)(sequences=said.clone())

    output = model.generate(torch.tensor([[5, 1]]), return_dict_in_generate=True)
    monkeypatch.setattr(model, "_refine", refine)
    sources = tokenizer(["Tom is always 33.", "Yes."], return_tensors="pt", padding=True)["input_ids"]

    def texts(**options):
        output = model.generate(sources, return_dict_in_generate=True, **options)
        assert torch.equal(output.sequences_before_removal, said)
        return tokenizer.batch_decode(output.sequences, skip_special_tokens=True)

    assert texts() == texts(remove_repetitions=False, tokenizer=tokenizer) == [text, "Ja."]
    assert texts(tokenizer=tokenizer) == ["Tom ist immer 33 Jahre alt.", "Ja."]
    assert texts(remove_repetitions="tokens") == ["Tom ist immer 3 Jahre alt.", "Ja."]
    with pytest.raises(ValueError, match="needs tokenizer="):
        texts(remove_repetitions=True)


def test_the_model_that_ships_keeps_numbers_by_default(tokenizer):
    model = AutoModelForSeq2SeqLM.from_pretrained(FOLDER, dtype=torch.float32)
    translator = pipeline("translation", model=model, tokenizer=tokenizer)
    sources = ["He is 33 years old.", "I paid 5000 yen.", "It is 11 o'clock."]
    translations = [result["translation_text"] for result in translator(sources)]
    for text, number in zip(translations, ("33", "5000", "11"), strict=True):
        assert number in text
    raw = [result["translation_text"] for result in translator(sources, remove_repetitions=False)]
    assert [cleaned(tokenizer, *pair) for pair in zip(raw, sources, strict=True)] == translations
