"""The model that ships: what its results claim, and that it translates the same whatever the batch."""

import json

import pytest
import torch
from conftest import ROOT, other_versions, run_with_transformers
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from training.quality.decoding import translate_texts
from training.quality.refinement import analyse_refinement

FOLDER = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
JAPANESE = ROOT / "model_cards" / "lvnar-tatoeba-ja-en"


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForSeq2SeqLM.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER)


def test_the_repository_is_small_whole_and_finite(shipped):
    model, tokenizer = shipped
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 40e6
    with safe_open(weights, "pt") as stored:
        tensors = [stored.get_tensor(name) for name in stored.keys()]  # noqa: SIM118
    assert all(t.dtype == torch.float16 and torch.isfinite(t).all() for t in tensors)
    assert model.dtype == torch.float32 and model.config.vocab_size == len(tokenizer) == 8000
    assert 9e6 < model.num_parameters() < 20e6
    assert model.generation_config.num_refinement_steps == 1
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "Tatoeba" in card and "CC BY 2.0" in card and "pipeline_tag: translation" in card


def test_raw_japanese_goes_in_and_english_comes_out():
    weights = JAPANESE / "model.safetensors"
    assert weights.stat().st_size <= 30e6
    with safe_open(weights, "pt") as stored:
        assert all(torch.isfinite(stored.get_tensor(name)).all() for name in stored.keys())  # noqa: SIM118
    translator = pipeline("translation", model=str(JAPANESE))
    texts = ["彼は医者です。", "今日は暑いです。", "私は水を飲みたい。", "駅はどこですか。"]
    translations = [result["translation_text"] for result in translator(texts, batch_size=4)]
    assert translations == [translator(text)[0]["translation_text"] for text in texts]
    assert translations == ["He is a doctor.", "It's hot today.", "I want to drink water.", "Where is the station?"]
    results = json.loads((JAPANESE / "results" / "test.json").read_text("utf-8"))["results"]
    assert results[1]["bleu"]["score"] > results[0]["bleu"]["score"] + 0.5  # a step is worth more than that here


def test_the_same_translations_whatever_the_batch(shipped, sample_texts):
    model, tokenizer = shipped
    texts = sample_texts[0][:64]
    whole = translate_texts(model, tokenizer, texts, batch_size=64, num_refinement_steps=2)
    for batch_size in (1, 7):
        assert translate_texts(model, tokenizer, texts, batch_size=batch_size, num_refinement_steps=2) == whole


OTHER_VERSION_CODE = """
import json, sys
import lvnar_hf
from transformers import AutoTokenizer, pipeline
assert type(AutoTokenizer.from_pretrained(sys.argv[1])) is lvnar_hf.LvnarTokenizer
translator = pipeline("translation", model=sys.argv[1])
print(json.dumps([r["translation_text"] for r in translator(json.loads(sys.argv[2]))]))
"""


@pytest.mark.parametrize("version", other_versions() or [pytest.param(None, marks=pytest.mark.skip("no environments"))])
def test_other_versions_of_transformers_translate_the_same(shipped, sample_texts, version):
    model, tokenizer = shipped
    texts = sample_texts[0][:20]
    output = run_with_transformers(version, OTHER_VERSION_CODE, str(FOLDER), json.dumps(texts))
    assert json.loads(output.strip().split("\n")[-1]) == translate_texts(model, tokenizer, texts)


def test_refinement_raises_the_bound_and_costs_no_bleu_on_the_sample(shipped, sample_texts):
    model, tokenizer = shipped
    sources, references = sample_texts
    data, _, _ = analyse_refinement(model, tokenizer, sources, references, max_steps=1, num_samples=2, seed=0)
    before, after = data["steps"]
    assert after["elbo"] > before["elbo"] and after["bleu"] > before["bleu"] - 0.3


def test_recorded_results_say_that_one_step_helps():
    results = json.loads((FOLDER / "results" / "test.json").read_text("utf-8"))["results"]
    by_steps = {result["num_refinement_steps"]: result for result in results}
    assert by_steps[1]["bleu"]["score"] > by_steps[0]["bleu"]["score"]
