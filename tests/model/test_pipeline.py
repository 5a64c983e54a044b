"""`pipeline("translation")` as users call it, on every supported version of transformers."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import other_versions, run_with_transformers
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel, Pipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from lvnar_hf import LvnarTranslationPipeline

TEXTS = ["Where is the station?", "", "I do not know.", "   ", "Tom laughed.", "ʒƿþ \U0001f600"]


@pytest.fixture(scope="module")
def translator(tiny_repository) -> LvnarTranslationPipeline:
    return pipeline("translation", model=str(tiny_repository))


def test_the_registered_tasks_give_this_pipeline(translator, tiny_repository):
    named = pipeline("translation_en_to_de", model=str(tiny_repository))
    objects = pipeline(
        "translation",
        model=AutoModelForSeq2SeqLM.from_pretrained(tiny_repository),
        tokenizer=AutoTokenizer.from_pretrained(tiny_repository),
    )
    for other in (named, objects):
        assert isinstance(other, LvnarTranslationPipeline)
        assert other(TEXTS) == translator(TEXTS)


def test_the_pipeline_gives_what_generate_gives(translator):
    results = translator(TEXTS[:1], num_refinement_steps=3)
    encoded = translator.tokenizer(TEXTS[:1], return_tensors="pt")
    sequences = translator.model.generate(**encoded, num_refinement_steps=3, tokenizer=translator.tokenizer)
    expected = translator.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    assert [r["translation_text"] for r in results] == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_string_a_list_a_dataset_and_a_generator_agree(translator, batch_size):
    one_by_one = [translator(text)[0]["translation_text"] for text in TEXTS]
    as_list = translator(TEXTS, batch_size=batch_size)
    assert [r["translation_text"] for r in as_list] == one_by_one
    for iterator in ((text for text in TEXTS), iter(TEXTS)):
        results = translator(iterator, batch_size=batch_size)
        assert [r[0]["translation_text"] for r in results] == one_by_one
    for sequence in (tuple(TEXTS), Dataset.from_dict({"text": TEXTS})["text"], np.array(TEXTS), pd.Series(TEXTS)):
        assert [r["translation_text"] for r in translator(sequence, batch_size=batch_size)] == one_by_one
    key_dataset = KeyDataset(Dataset.from_dict({"text": TEXTS}), "text")
    assert [r[0]["translation_text"] for r in translator(key_dataset, batch_size=batch_size)] == one_by_one


def test_a_generator_is_consumed_lazily(translator):
    consumed = []
    results = translator((consumed.append(text) or text for text in TEXTS * 10), batch_size=1)
    next(iter(results))
    assert len(consumed) < 10
    consumed.clear()
    next(iter(translator((consumed.append(text) or text for text in TEXTS * 10), batch_size=4)))
    assert len(consumed) <= 8


def batches_of(translator, texts, batch_size) -> tuple[list[torch.Tensor], list[str]]:
    """The `input_ids` that `generate` was given, (batch, longest) each, and the translations."""
    batches = []
    generate = translator.model.generate

    def recorded(input_ids, **kwargs):
        batches.append(input_ids)
        return generate(input_ids, **kwargs)

    translator.model.generate = recorded
    try:
        results = translator(texts, batch_size=batch_size)
        results = [result[0] if isinstance(result, list) else result for result in results]
    finally:
        del translator.model.generate
    return batches, [result["translation_text"] for result in results]


@pytest.mark.parametrize("sorted_batches", [3, 64])
def test_a_list_is_grouped_by_length(translator, sample_texts, monkeypatch, sorted_batches):
    monkeypatch.setattr("lvnar_hf.pipeline_lvnar.SORTED_BATCHES", sorted_batches)
    kept = (text for text in sample_texts[0] if len(text) < 60 and not set(text[:-1]) & set(".!?0123456789"))
    texts = [*TEXTS, *kept][:101]
    pad_token_id = translator.model.config.pad_token_id
    _, expected = batches_of(translator, texts, 1)
    as_they_come, streamed = batches_of(translator, (text for text in texts), 8)
    grouped, translations = batches_of(translator, texts, 8)
    assert translations == streamed == expected and len(grouped) == len(as_they_come) == 13
    paddings = [sum(int((batch == pad_token_id).sum()) for batch in batches) for batches in (as_they_come, grouped)]
    assert paddings[1] < paddings[0] / 2


def test_a_list_is_tokenized_once(translator, monkeypatch):
    tokenized = []
    preprocess = translator.preprocess
    monkeypatch.setattr(translator, "preprocess", lambda text, **options: tokenized.append(text) or preprocess(text))
    translator(TEXTS * 3, batch_size=4, preserve_format=False)
    assert [text for text in tokenized if isinstance(text, str)] == TEXTS * 3
    tokenized.clear()
    translator(["Tom laughed. I do not know!\n", *TEXTS], batch_size=4)
    sentences = ["Tom laughed.", "I do not know!", TEXTS[0], TEXTS[2], TEXTS[4], "ʒƿþ"]
    assert [text for text in tokenized if isinstance(text, str)] == sentences


def test_an_empty_text_has_an_empty_translation(translator):
    assert translator("") == [{"translation_text": ""}] and translator(" \n ") == [{"translation_text": " \n "}]
    results = translator(TEXTS, batch_size=len(TEXTS))
    assert [bool(r["translation_text"].strip()) for r in results] == [True, False, True, False, True, True]
    assert translator([]) == []


def test_only_unknown_characters_translate_to_some_text(translator):
    assert translator("𝔘𝔫𝔨 ☃")[0]["translation_text"]


def test_generation_arguments_pass_through(translator):
    steps = [translator(TEXTS[0], num_refinement_steps=t)[0]["translation_text"] for t in (0, 5)]
    assert steps[0] != steps[1]
    with pytest.raises(ValueError, match="num_beams=4"):
        translator(TEXTS[0], num_beams=4)
    with pytest.raises(ValueError, match="num_stepps"):
        translator(TEXTS[0], num_stepps=4)
    with_tensors = translator(TEXTS[0], return_tensors=True)[0]
    assert with_tensors["translation_token_ids"].dim() == 1


def test_a_text_over_the_limit_is_refused_or_cut_as_asked(translator):
    long_text = "where is the station " * 20
    with pytest.raises(ValueError, match=r"at most 40\. Pass truncation=True"):
        translator(long_text)
    with pytest.raises(ValueError, match="at most 40"):
        translator([TEXTS[0], long_text], batch_size=2)
    cut = translator(long_text, truncation=True, return_tensors=True)[0]
    ids = translator.tokenizer(long_text, truncation=True, max_length=40, return_tensors="pt")["input_ids"]
    assert ids.shape[1] == 40
    assert torch.equal(cut["translation_token_ids"], translator.model.generate(ids, tokenizer=translator.tokenizer)[0])
    with pytest.raises(ValueError, match="True or False"):
        translator(long_text, truncation="do_not_truncate")


@pytest.mark.parametrize("wrong", [5, None, ["nested", ["list"]]])
def test_what_is_no_text_is_refused(translator, wrong):
    with pytest.raises(ValueError, match="must be a string"):
        translator(wrong if isinstance(wrong, list) else [wrong])


def test_another_sequence_to_sequence_model_is_served(sample_tokenizer):
    """The registration is global to the process, so an autoregressive model must go on working."""
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=len(sample_tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    marian = MarianMTModel(config).eval()
    translator = pipeline("translation_en_to_de", model=marian, tokenizer=sample_tokenizer)
    results = translator([TEXTS[0], TEXTS[2]], num_beams=2, num_return_sequences=2, max_new_tokens=5, batch_size=2)
    assert [len(r) for r in results] == [2, 2]
    encoded = sample_tokenizer(TEXTS[:1], return_tensors="pt")
    expected = marian.generate(**encoded, num_beams=2, max_new_tokens=5)
    text = translator(TEXTS[0], num_beams=2, max_new_tokens=5)[0]["translation_text"]
    assert text == sample_tokenizer.decode(expected[0], skip_special_tokens=True)


PROCESS_CODE = """
import json, sys
{prelude}
from transformers import pipeline
texts = json.loads(sys.argv[2])
for task in {tasks}:
    translator = pipeline(task, model=sys.argv[1], **{options})
    print(json.dumps(translator(texts, num_refinement_steps=2, batch_size=3)))
"""


def translations(version: str | None, folder: object, prelude: str, tasks: list[str], options: dict) -> list[list]:
    """What fresh processes print: the translations of TEXTS, a list a task."""
    code = PROCESS_CODE.format(prelude=prelude, tasks=tasks, options=options)
    output = run_with_transformers(version, code, str(folder), json.dumps(TEXTS))
    return [json.loads(line) for line in output.split("\n") if line.startswith("[")]


def test_the_repository_alone_is_enough_with_trust(translator, tiny_repository, tmp_path):
    """Loaded as remote code by processes that cannot import the package."""
    folder = shutil.copytree(tiny_repository, tmp_path / "alone")
    expected = translator(TEXTS, num_refinement_steps=2)
    for version in (None, *other_versions()):
        prelude, options = "sys.modules['lvnar_hf'] = None", {"trust_remote_code": True}
        assert translations(version, folder, prelude, ["translation"], options) == [expected]


@pytest.mark.parametrize("version", other_versions() or [pytest.param(None, marks=pytest.mark.skip("no environments"))])
def test_other_versions_of_transformers_give_the_same_translations(translator, tiny_repository, version):
    tasks = ["translation", "translation_en_to_de"]
    expected = translator(TEXTS, num_refinement_steps=2)
    assert translations(version, tiny_repository, "import lvnar_hf", tasks, {}) == [expected, expected]
    trusted = translations(version, tiny_repository, "import lvnar_hf", tasks[:1], {"trust_remote_code": True})
    assert trusted == [expected]


NATIVE_CODE = """
import sys
import lvnar_hf
from transformers import AutoTokenizer, MarianConfig, MarianMTModel, pipeline
sizes = dict(d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
model = MarianMTModel(MarianConfig(vocab_size=500, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **sizes))
translator = pipeline("translation_en_to_de", model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
print(type(translator).__name__, len(translator("Tom laughed.", max_new_tokens=3)))
"""


@pytest.mark.parametrize("version", other_versions() or [pytest.param(None, marks=pytest.mark.skip("no environments"))])
def test_other_models_keep_the_pipeline_of_transformers_where_it_has_one(tiny_repository, version):
    expected = "TranslationPipeline 1" if version.startswith("4.") else "LvnarTranslationPipeline 1"
    assert run_with_transformers(version, NATIVE_CODE, str(tiny_repository)).strip().endswith(expected)


def test_an_engine_stays_on_its_device_and_a_model_goes_where_transformers_puts_it(tiny_model, monkeypatch):
    given = []
    monkeypatch.setattr(Pipeline, "__init__", lambda self, **options: given.append(options.get("device")))
    monkeypatch.setattr(LvnarTranslationPipeline, "model", tiny_model, raising=False)
    monkeypatch.setattr(LvnarTranslationPipeline, "tokenizer", None, raising=False)
    LvnarTranslationPipeline(model=SimpleNamespace(config=tiny_model.config, device=torch.device("cpu")))
    LvnarTranslationPipeline(model=tiny_model)
    assert given == [torch.device("cpu"), None]
