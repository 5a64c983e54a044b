"""Text of any kind through the pipeline: sentence by sentence, by tiny models and by the model that ships."""

import random
import re
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from conftest import FIXTURES, ROOT
from sacrebleu.metrics import CHRF
from torch.utils.data import Dataset
from transformers import MarianConfig, MarianMTModel, pipeline

from lvnar_hf.figures_lvnar import figures_of
from tests.model.test_text import SPANS, without_placeholders
from training.translation_quality.spans import copied_spans, read_expectations

SHIPPED = ROOT / "model_cards" / "lvnar-tatoeba-en-de"


@pytest.fixture(scope="module")
def tiny(tiny_repository):
    return pipeline("translation", model=str(tiny_repository), device="cpu")


MIXED = "  I know. Tom laughed!\r\n\r\n- See https://a.b/c, {name}? 😀\n-"


def text_of(result: list[dict]) -> str:
    return result[0]["translation_text"]


def test_the_pipeline_translates_sentences_and_keeps_the_rest(tiny):
    def plainly(text: str) -> str:
        return text_of(tiny(text, preserve_format=False)).strip()

    assert text_of(tiny("I know. Tom laughed!")) == f"{plainly('I know.')} {plainly('Tom laughed!')}"
    assert (
        text_of(tiny("Tom laughed!\r\n- Tom laughed!")) == f"{plainly('Tom laughed!')}\r\n- {plainly('Tom laughed!')}"
    )
    mixed = text_of(tiny(MIXED))
    assert mixed.startswith("  ") and mixed.endswith(" 😀\n-") and "\r\n\r\n- " in mixed
    assert mixed.count("https://a.b/c") == mixed.count("{name}") == 1
    assert text_of(tiny("-")) == "-"
    assert plainly("I know. Tom laughed!") != text_of(tiny("I know. Tom laughed!"))


class Texts(Dataset):
    """Not to be iterated over."""

    __iter__ = None

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return [MIXED, "Tom laughed.", "", "I know. Tom laughed!"][place]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lists_datasets_and_generators_agree(tiny, batch_size):
    texts = [Texts()[place] for place in range(4)]
    expected = [text_of(tiny(text)) for text in texts]
    assert [r["translation_text"] for r in tiny(texts, batch_size=batch_size)] == expected
    assert [text_of(r) for r in tiny(Texts(), batch_size=batch_size)] == expected
    consumed = []
    results = tiny((consumed.append(text) or text for text in texts * 9), batch_size=batch_size)
    assert text_of(next(results)) == expected[0] and len(consumed) <= batch_size + 1
    assert [text_of(r) for r in results] == (expected * 9)[1:]


def test_the_format_is_kept_unless_asked_otherwise(tiny, tiny_repository):
    text = "I know.\n- Tom laughed!"
    ids = tiny(text, return_tensors=True)[0]["translation_token_ids"]
    plain = tiny(text, preserve_format=False)
    assert tiny.tokenizer.decode(ids, skip_special_tokens=True) == text_of(plain) != text_of(tiny(text))
    with pytest.raises(ValueError, match="return_tensors=True needs preserve_format=False"):
        tiny(text, return_tensors=True, preserve_format=True)
    off = pipeline("translation", model=str(tiny_repository), device="cpu", preserve_format=False)
    assert off(text) == plain and off(text, preserve_format=True) == tiny(text)


def test_a_long_text_is_translated_in_parts(tiny):
    text = "Where is the station? " * 30
    assert text_of(tiny(text)) == " ".join([text_of(tiny("Where is the station?"))] * 30) + " "
    tiny("where is the station, " * 30)
    with pytest.raises(ValueError, match="at most 40"):
        tiny("I know. " + "where is the station " * 30)
    tiny("I know. " + "where is the station " * 30, truncation=True)


def test_the_source_language_comes_from_the_task_or_the_call(tiny_repository):
    japanese = pipeline("translation_ja_to_en", model=str(tiny_repository), device="cpu")
    with pytest.warns(UserWarning, match="other letters than 'ja'"):
        japanese("Where is the station?")


def test_other_models_keep_the_format_if_asked(sample_tokenizer):
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
    sizes |= {f"{side}_{of}": 1 for side in ("encoder", "decoder") for of in ("layers", "attention_heads")}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    torch.manual_seed(0)
    model = MarianMTModel(MarianConfig(vocab_size=len(sample_tokenizer), **sizes, **special)).eval()
    translator = pipeline("translation", model=model, tokenizer=sample_tokenizer, device="cpu")
    options = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 5}
    alone = [
        [without_placeholders(r["translation_text"]).strip() for r in translator(text, **options)]
        for text in ("I know.", "Tom laughed!")
    ]
    both = translator("I know.\nTom laughed!", preserve_format=True, **options)
    assert [r["translation_text"] for r in both] == ["\n".join(pair) for pair in zip(*alone, strict=True)]
    assert all("\n" not in r["translation_text"] for r in translator("I know.\nTom laughed!", **options))


# The model that ships


@pytest.fixture(scope="module")
def shipped():
    return pipeline("translation", model=str(SHIPPED), device="cpu")


def test_protected_spans_come_back_from_the_model_that_ships(shipped):
    generator = random.Random(0)
    frames = [
        "Please write to {} before 5 o'clock.",
        "{} is not there, Tom.",
        "Where can I find {}?",
        "I paid 20 dollars for {} and {} in Boston.",
        "Tom said that {}, {} and {} are the same.",
        "Look at {}!",
        "WE HAVE SEEN {} TODAY.",
        "- {}: done at 10:30.",
        "I like {}. She likes {}, too.",
        "She has 3 cats and {}",
    ]
    texts, spans = [], []
    for frame in frames * 20:
        spans.append(generator.sample(sorted({*SPANS} - {"\x03"}), frame.count("{}")))
        texts.append(frame.format(*spans[-1]))
    results = [result["translation_text"] for result in shipped(texts, batch_size=32, num_refinement_steps=0)]
    assert len(texts) == 200
    for text, own, result in zip(texts, spans, results, strict=True):
        assert all(result.count(span) == text.count(span) for span in own), (text, result)


def test_figures_of_the_sentences_written_for_it_come_back(shipped):
    """All of two digits or more, and none touches a word; names are the model's own to keep."""
    sources, lines = ((FIXTURES / "spans" / name).read_text("utf-8").split("\n") for name in ("en.txt", "expected.txt"))
    sources, expectations = sources[:200], read_expectations(lines[:200])
    results = [result["translation_text"] for result in shipped(sources, batch_size=32)]
    copied = copied_spans(results, expectations)
    num_figures = sum(figures_of(source).total() for source in sources)
    print(f"{copied['num_copied']} of {copied['num_spans']} spans, {num_figures} figures")
    pairs = zip(sources, results, strict=True)
    assert not [pair for pair in pairs if figures_of(pair[0]) - figures_of(pair[1])]
    assert copied["share"] > 0.8 and not re.search(r"[^\W\d_]\d\d|\d\d[^\W\d_]", " ".join(results))


def test_a_plain_sentence_costs_the_pipeline_little(tiny, monkeypatch):
    """Less than 0.3 ms more than without the format, by a model that takes no time."""
    ids = torch.tensor([[5, 6, 7, 1]])
    monkeypatch.setattr(tiny.model, "generate", lambda **inputs: ids)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(200):
        for preserve_format, measured in seconds.items():
            start = time.perf_counter()
            tiny("Where is the station?", preserve_format=preserve_format)
            measured.append(time.perf_counter() - start)
    least, middle = (1e3 * (of(seconds[True]) - of(seconds[False])) for of in (min, statistics.median))
    print(f"{least:.3f} ms more at least, {middle:.3f} ms in the middle")
    assert least < 0.3


def test_noise_that_the_mechanism_takes_away_costs_no_chrf(shipped, sample_texts):
    sources, references = sample_texts
    short = [
        (source, reference)
        for source, reference in zip(sources, references, strict=True)
        if 3 <= len(source.split()) <= 7 and source[-1:] in ".?!" and not set(source[:-1]) & set('.?!"')
    ][:60]
    sources, references = map(list, zip(*short, strict=True))
    cache: dict[str, str] = {}

    def translate_sentences(sentences: list[str]) -> list[list[str]]:
        new = sorted(set(sentences) - cache.keys())
        results = shipped(new, batch_size=20, preserve_format=False) if new else []
        cache.update(zip(new, (result["translation_text"] for result in results), strict=True))
        return [[cache[sentence]] for sentence in sentences]

    def chrf(change: Callable[[str], str], texts: list[str] = sources, kept: str = " ", expected=references) -> float:
        """Of translations without what is kept of the change."""
        results = shipped._text_format(None).translate([change(text) for text in texts], translate_sentences)
        return CHRF().corpus_score([re.sub(kept, " ", result).strip() for (result,) in results], [expected]).score

    pairs = [f"{a} {b}" for a, b in zip(sources[::2], sources[1::2], strict=True)]
    paired = [f"{a} {b}" for a, b in zip(references[::2], references[1::2], strict=True)]
    clean = chrf(str)
    scores = {
        "two sentences": chrf(str, pairs, expected=paired),
        "newline": chrf(lambda text: f"\n{text}\n", kept="\n"),
        "byte order mark": chrf("\ufeff{}".format),
        "zero-width space": chrf(lambda text: f"{text[:2]}\u200b{text[2:]}"),
        "soft hyphen": chrf(lambda text: f"{text[:2]}\u00ad{text[2:]}"),
        "no-break space": chrf(lambda text: text.replace(" ", "\u00a0")),
        "dash": chrf("- {}".format, kept="^- "),
        "quotation marks": chrf("“{}”".format, kept="^“|”$"),
        "<p>": chrf("<p>{}</p>".format, kept="</?p>"),
        "emoji": chrf("{} 😀".format, kept="😀"),
        "all capitals": chrf(str.upper, expected=[reference.upper() for reference in references]),
    }
    print(f"chrF {clean:.1f} clean; " + ", ".join(f"{name} {score:.1f}" for name, score in scores.items()))
    assert clean > 50
    for name, score in scores.items():
        assert score > clean - (6 if name == "all capitals" else 2), (name, score, clean)
