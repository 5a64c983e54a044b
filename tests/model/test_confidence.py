"""How sure the model says it is: worked out on paper, whatever the batch, through removal, calibration and pipeline."""

import json
import math
import shutil

import pytest
import torch
from conftest import ROOT, make_batch, make_ctc_model, make_model, tiny_config, tokens_of
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from lvnar_hf import LvnarConfig
from lvnar_hf.confidence_lvnar import FILE, Calibration, Curve, token_probabilities
from lvnar_hf.hub.checks import check_model_files
from lvnar_hf.words_lvnar import ScoredWord, place_words, word_spans

MODEL = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
ASKED = {"return_dict_in_generate": True, "output_confidences": True}
SOUND = {
    "words": {"scores": [0.25, 0.75], "confidences": [0.5, 1.0]},
    "sentences": {"scores": [0.5], "confidences": [0.125]},
    "threshold": 0.6,
    "weights_fingerprint": None,
}


def logs(*rows):
    """Logits of one sentence whose softmax is these probabilities; a row of different sum is normalised by it."""
    return torch.tensor([rows]).log()


def test_cells_on_paper():
    """Ids: blank 0, end 1, then a = 2, b = 3; the last one is a spare row of the embedding."""
    config = LvnarConfig(vocab_size=8, alignment="ctc", blank_penalty=math.log(2))
    logits = logs(
        (0.2, 0.1, 0.4, 0.2, 0.1, 9.0),  # a: the penalty halves blank, so that of 0.9 it has 0.4
        (0.1, 0.1, 0.6, 0.1, 0.1, 9.0),  # a again, of 0.95
        (0.8, 0.1, 0.1, 0.1, 0.1, 9.0),  # blank: 0.4 against 0.1
        (0.2, 0.1, 0.1, 0.6, 0.0, 9.0),  # b, of 0.9
        (0.2, 0.7, 0.0, 0.1, 0.0, 9.0),  # the end, of 0.9
        (0.0, 0.0, 1.0, 0.0, 0.0, 9.0),  # no cell of this sentence
    )
    targets, mask = torch.tensor([[2, 3, 1, 0]]), torch.tensor([[1, 1, 1, 1, 1, 0]])
    given = token_probabilities(config, logits, targets, mask, num_target_ids=5)
    torch.testing.assert_close(given, torch.tensor([[0.6 / 0.95, 0.6 / 0.9, 0.7 / 0.9, 0.0]]))
    # Another translation than the likeliest: its own best cells, here the second for b.
    given = token_probabilities(config, logits, torch.tensor([[2, 3, 2]]), mask.cumsum(-1).le(3).long() * mask, 5)
    torch.testing.assert_close(given, torch.tensor([[0.4 / 0.9, 0.1 / 0.95, 0.1 / 0.8]]))


def test_positions_on_paper():
    config = tiny_config(vocab_size=8)
    logits = logs((0.5, 0.1, 0.4, 0.5, 7.0), (9.0, 0.6, 0.2, 0.2, 7.0), (1.0, 1.0, 1.0, 1.0, 7.0))
    given = token_probabilities(config, logits, torch.tensor([[3, 1, 0]]), torch.tensor([[1, 1, 0]]), num_target_ids=4)
    torch.testing.assert_close(given, torch.tensor([[0.5, 0.6, 0.0]]))  # padding is no word


@pytest.mark.parametrize("make", [lambda: make_model(tiny_config()), make_ctc_model], ids=["length", "ctc"])
def test_confidences_are_those_of_the_last_translation_whatever_the_batch(make):
    model = make()
    lengths = [(1 + (7 * row) % 19, 1) for row in range(24)]
    batch = make_batch(model.config, lengths)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for num_steps in (0, 4):
        options = {**ASKED, "num_refinement_steps": num_steps}
        whole = model.generate(**inputs, **options)
        plain = model.generate(**inputs, num_refinement_steps=num_steps, return_dict_in_generate=True)
        assert torch.equal(whole.sequences, plain.sequences) and whole.lower_bounds is not None
        assert plain.token_confidences is plain.sentence_confidences is plain.lower_bounds is None
        assert whole.token_confidences.shape == whole.sequences.shape
        assert torch.equal(whole.token_confidences > 0, whole.sequences != 0)
        for row, (length, _) in enumerate(lengths):
            ids = inputs["input_ids"][row : row + 1, :length]
            alone = model.generate(ids, **options)
            torch.testing.assert_close(
                alone.token_confidences[0], whole.token_confidences[row, : alone.sequences.shape[1]]
            )
            mean = whole.token_confidences[row].sum() / (whole.sequences[row] != 0).sum()
            torch.testing.assert_close(whole.sentence_confidences[row], mean)
        # Repetitions that are taken out take theirs along.
        removed = model.generate(**inputs, **options, remove_repetitions="tokens")
        kept = model.generate(**inputs, **options, remove_repetitions=False)
        is_first = kept.sequences != 0
        is_first[:, 1:] &= kept.sequences[:, 1:] != kept.sequences[:, :-1]
        expected = [kept.token_confidences[row][is_first[row]].tolist() for row in range(24)]
        given = zip(removed.token_confidences.tolist(), tokens_of(removed.sequences), strict=True)
        assert [numbers[: len(ids)] for numbers, ids in given] == expected
        # What a sentence takes long for is not lost when others have left; in parts too.
        from lvnar_hf.refinement_lvnar import refine, translate_in_parts

        decoding = model._decoding_options(None, options)
        parts = translate_in_parts(refine, model, **inputs, options=decoding, max_positions=40)
        once = refine(model, **inputs, options=decoding)
        torch.testing.assert_close(parts.token_confidences, once.token_confidences)
    assert make is make_ctc_model or not torch.equal(removed.sequences, kept.sequences)


def test_curves():
    curve = Curve((0.25, 0.75), (0.5, 1.0))
    given = curve(torch.tensor([[0.0, 0.25, 0.5], [0.75, 0.9, 1.0]]))
    assert given.tolist() == [[0.5, 0.5, 0.75], [1.0, 1.0, 1.0]]
    assert Curve((0.5,), (0.125,))(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.125] * 3
    assert curve(torch.tensor([])).tolist() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "must have the fields"),
        ({"threshold": float("nan")}, "not JSON"),
        ({"threshold": True}, "threshold is True"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"weights_fingerprint": 3}, "weights_fingerprint is 3"),
        ({"words": [1]}, "words must have scores and confidences"),
        ({"words": {"scores": [], "confidences": []}}, "scores must be a list of 1 to 10,000"),
        ({"words": {"scores": list(range(10_001)), "confidences": [0.5]}}, "scores must be a list of 1 to 10,000"),
        ({"sentences": {"scores": [0.1], "confidences": ["0.1"]}}, "sentences: confidences must be finite"),
        ({"words": {"scores": [10**400], "confidences": [0.1]}}, "scores must be finite"),
        ({"words": {"scores": [0.1, 0.2], "confidences": [0.1]}}, "2 scores and 1 confidences"),
        ({"words": {"scores": [0.2, 0.2], "confidences": [0.1, 0.2]}}, "scores must rise"),
        ({"words": {"scores": [0.1, 0.2], "confidences": [0.2, 0.1]}}, "not fall"),
        ({"words": {"scores": [0.1, 0.2], "confidences": [0.2, 1.1]}}, "between 0 and 1"),
    ],
)
def test_a_calibration_that_is_refused(tmp_path, changes, message):
    (tmp_path / FILE).write_text(json.dumps({**SOUND, **changes}))
    with pytest.raises(ValueError, match=message) as error:
        Calibration.find(tmp_path, None, {})
    assert FILE in str(error.value)


def test_a_calibration_is_found_used_and_refused_if_stale(either_repository, tmp_path):
    folder = shutil.copytree(either_repository, tmp_path / "model")
    batch = {"input_ids": torch.tensor([[5, 6, 7, 1]])}
    raw = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert raw.calibration is None
    (folder / FILE).write_text(json.dumps(SOUND))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert model.calibration.to_dict() == SOUND
    given, before = (one.generate(**batch, **ASKED) for one in (model, raw))
    assert given.sentence_confidences.tolist() == [0.125]
    assert torch.equal(given.token_confidences, before.token_confidences)
    with pytest.warns(UserWarning, match="does not say which weights"):
        check_model_files(folder)
    (folder / FILE).write_text(json.dumps({**SOUND, "weights_fingerprint": "0" * 32}))
    with pytest.raises(ValueError, match=r"calibration\.json was made from other weights.*training/calibrate\.py"):
        check_model_files(folder)


@pytest.fixture(scope="module")
def translator():
    translator = pipeline("translation", model=str(MODEL))
    translator.model.calibration = Calibration(Curve((0.0, 1.0), (0.0, 0.5)), Curve((0.0, 1.0), (0.0, 0.5)), 0.25)
    return translator


def test_words_are_those_of_the_text_with_the_product_of_their_subwords(translator):
    sentence = "The astonished astronaut was never very nice to you, was he?"
    model, tokenizer = translator.model, translator.tokenizer
    (result,) = translator([sentence], return_confidence=True, preserve_format=False)
    output = model.generate(**tokenizer(sentence, return_tensors="pt"), tokenizer=tokenizer, **ASKED)
    text = result["translation_text"]
    assert [word["text"] for word in result["words"]] == text.split()
    assert all(text[word["start"] : word["end"]] == word["text"] for word in result["words"])
    assert result["confidence"] == float(output.sentence_confidences[0]) <= 0.5 and result["is_calibrated"]
    # By hand: tokens are pieces of the vocabulary, and a word begins with the mark of a space.
    expected, signs = [], []
    for token, probability in zip(
        tokenizer.convert_ids_to_tokens(output.sequences[0].tolist()), output.token_confidences[0], strict=True
    ):
        if token.startswith("\u2581"):
            expected.append(1.0)
        if any(map(str.isalnum, token)) and token != "</s>":
            expected[-1] *= float(probability)
        elif token != "</s>":
            signs.append(token)
    assert "," in signs and "?" in signs and len(expected) < len(output.sequences[0]) - len(signs) - 1
    assert [word["confidence"] for word in result["words"]] == pytest.approx([p / 2 for p in expected], rel=1e-5)
    assert [word["is_uncertain"] for word in result["words"]] == [p / 2 < 0.25 for p in expected]
    assert {word["is_uncertain"] for word in result["words"]} == {True, False}
    # The same through the format, alone and beside others; and nothing changes that was not asked for.
    plain = translator([sentence, "Hello."], batch_size=2)
    scored = translator([sentence, "Hello."], batch_size=2, return_confidence=True)
    assert plain == [{"translation_text": one["translation_text"]} for one in scored]
    assert scored[0]["confidence"] == pytest.approx(result["confidence"], rel=1e-5)
    for word, other in zip(scored[0]["words"], result["words"], strict=True):
        assert {**word, "confidence": 0} == {**other, "confidence": 0}
        assert word["confidence"] == pytest.approx(other["confidence"], rel=1e-4)
    assert json.loads(json.dumps(scored)) == scored


def test_what_the_model_did_not_say_is_marked_as_copied(translator):
    text = "* See https://a.b/c-d or ask @tom.\n\n  I HAVE A CAR. (42)\n---"
    result = translator(text, return_confidence=True)[0]
    words = result["words"]
    assert [word["text"] for word in words] == result["translation_text"].split()
    copied = {word["text"] for word in words if word["is_copied"]}
    assert {"*", "https://a.b/c-d", "@tom.", "---"} <= copied
    assert all(word["confidence"] == 1.0 for word in words if word["is_copied"])
    said = {word["text"]: word["confidence"] for word in words if not word["is_copied"]}
    assert {"ICH", "HABE", "AUTO."} <= said.keys() and all(0 < confidence <= 0.5 for confidence in said.values())
    assert translator("---", return_confidence=True) == [
        {
            "translation_text": "---",
            "words": [
                {"text": "---", "start": 0, "end": 3, "confidence": 1.0, "is_uncertain": False, "is_copied": True}
            ],
            "confidence": 1.0,
            "is_calibrated": True,
        }
    ]
    assert translator(" ", return_confidence=True, preserve_format=False)[0]["words"] == []
    with pytest.raises(ValueError, match="return_confidence is 'yes'"):
        translator("a", return_confidence="yes")


def scored(text, confidence):
    return ScoredWord(text=text, start=0, end=0, confidence=confidence, is_uncertain=False, is_copied=False)


def test_words_are_found_again_in_the_text():
    drafts = [
        [[scored("Das", 0.9), scored("\x01", 0.1), scored("ist", 0.8), scored("lost.", 0.7)]],
        [[scored("Wert", 0.3)]],
    ]
    placed = place_words("(Das A-7 IST x-Wert, neu)", "Old A-7 text", drafts)
    given = [(word["text"], word["confidence"], word["is_copied"]) for word in placed]
    assert given[:3] == [("(Das", 0.9, False), ("A-7", 1.0, True), ("IST", 0.8, False)]
    assert not given[3][2] and given[3][1] in (0.7, 0.3)
    # Without spaces, characters: runs of one subword are one word.
    placed = place_words("私は猫が好きです42", "I like cats 42", [[[scored("私は", 0.9), scored("猫が好きです", 0.4)]]])
    assert [(word["text"], word["start"], word["confidence"]) for word in placed] == [
        ("私は", 0, 0.9),
        ("猫が好きです", 2, 0.4),
        ("42", 8, 1.0),
    ]
    assert place_words("", "", []) == []


def test_words_of_bytes_and_of_special_tokens_alone():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer.encode_texts(["Ein 虎 !"], target=True)[0]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    spans = word_spans(tokenizer, ids, [0.5] * len(ids))
    assert [text[start:end] for start, end, _ in spans] == ["Ein", "虎", "!"]
    assert spans[1].probability <= 0.5**3 and word_spans(tokenizer, [1], [0.5]) == []
