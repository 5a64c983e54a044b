"""Model cards: the whole rendered text, the front matter for the Hub, and sections that vanish."""

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

import lvnar_hf
from tests.conftest import ROOT
from training import cards, report
from training.cards import describe_vocabulary, render_card

SHIPPED = ROOT / "model_cards" / report.SHIPPED
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/card.yaml"))
SECTIONS = ["Use", "Intended use", "Results", "Speed", "What refinement does", "Model", "Training", "Limits"]
SECTIONS += ["Bias and risks", "Licence and attribution", "Citation"]
WITHOUT_RESULTS = [name for name in SECTIONS if name not in ("Use", "Speed", "What refinement does")]

PAPER_CARD = r"""---
.*
---

# lvnar-wmt14-en-de

English to German, all tokens at once: .*arXiv 1908\.07181.*
The paper's recipe for WMT14, at its sizes\.

\*\*No weights are published yet\.\*\* .*; nothing\sbelow\swas\smeasured\sby\sthis\sproject\.

## Intended use

Reproducing .*

## Results

As quoted from the paper \(not measured by this project; .*\):

\| \| BLEU \| speed-up \|
\|---\|---\|---\|
(?:\| [^|]+ \| [\d.]+ \| (?:[\d.]+x)? \|
){6}
The paper's BLEU here .*

## Model

Hidden size 512, .*; prior 6 layers, posterior 3 \+ 3, decoder 3; 8 latent .* vocabulary of 32,000 .* 512 tokens.*

## Training

Data: WMT14 .*

100,000 steps .*

Recipe: `training/configs/wmt14_en_de\.yaml`\.

## Limits

- Sentences .*
- Where .*

## Bias and risks

Machine translation .*

## Licence and attribution

WMT14's .*

## Citation

```bibtex
.*
```
"""


def headings(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, flags=re.MULTILINE)


def test_the_whole_card_of_a_recipe_without_weights():
    card = render_card(ROOT / "model_cards" / "lvnar-wmt14-en-de")
    assert re.fullmatch(PAPER_CARD, card, flags=re.DOTALL)
    assert headings(card) == WITHOUT_RESULTS


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_every_card_is_whole_and_the_hub_can_read_it(folder):
    card = render_card(folder)
    assert card == (folder / "README.md").read_text("utf-8"), "run python training/report.py"
    assert headings(card) == [name for name in SECTIONS if name in headings(card)]
    assert set(WITHOUT_RESULTS) <= set(headings(card))
    for hole in ("{{", "{%", "None", "Undefined", "More Information Needed", "\n\n\n"):
        assert hole not in card
    data = ModelCard(card).data
    facts = yaml.safe_load((folder / "card.yaml").read_text("utf-8"))
    assert (data.pipeline_tag, data.library_name, data.license) == ("translation", "transformers", facts["license"])
    assert data.language == [facts["source"]["code"], facts["target"]["code"]]
    assert data.datasets == facts["datasets"] and data.metrics == ["sacrebleu", "chrf"]
    assert ("No weights are published yet" in card) == ("Use" not in headings(card))
    assert (folder / "model.safetensors").exists() == ("Use" in headings(card))


def test_remote_code_is_pinned_by_revision_in_every_example():
    documents = [ROOT / "README.md", ROOT / "training" / "README.md", *(folder / "README.md" for folder in CARDS)]
    blocks = [
        block
        for document in documents
        for block in re.findall(r"```\w*\n(.*?)```", document.read_text("utf-8"), flags=re.DOTALL)
        if "trust_remote_code" in block
    ]
    assert blocks and all(f'"revision": "v{lvnar_hf.__version__}"' in block for block in blocks)


def test_the_model_index_has_the_results_with_their_signatures():
    card, test = render_card(SHIPPED), json.loads((SHIPPED / "results" / "test.json").read_text("utf-8"))
    evaluations = ModelCard(card).data.eval_results
    assert len(evaluations) == 2 * len(test["results"])
    for result in test["results"]:
        name = f"BLEU, {result['num_refinement_steps']} refinement steps ({result['bleu']['signature']})"
        (evaluation,) = [e for e in evaluations if e.metric_name == name]
        assert evaluation.metric_value == round(result["bleu"]["score"], 2)
        assert (evaluation.dataset_name, evaluation.metric_type) == (test["test_set"], "sacrebleu")


def test_sections_come_and_go_with_what_there_is(tmp_path, monkeypatch):
    folder = tmp_path / report.SHIPPED
    (folder / "results").mkdir(parents=True)
    shutil.copy(SHIPPED / "card.yaml", folder)
    assert headings(render_card(folder)) == [name for name in WITHOUT_RESULTS if name != "Results"]
    (folder / "model.safetensors").touch()
    assert headings(render_card(folder))[0] == "Use"
    shutil.copy(SHIPPED / "results" / "test.json", folder / "results")
    assert "Results" in headings(render_card(folder))
    assert "Beside its teacher" not in render_card(folder)
    shutil.copy(SHIPPED / "results" / "teacher_test.json", folder / "results")
    assert "Beside its teacher" in render_card(folder)
    with pytest.raises(FileNotFoundError, match=r"card\.yaml"):
        render_card(tmp_path)


def test_the_vocabulary_in_words():
    joint = describe_vocabulary({"vocab_size": 8000, "joint": True})
    assert joint == "One joint vocabulary of 8,000 (byte-fallback BPE, NFC)."
    two = {"vocab_size": 6000, "joint": False, "source_segmenter": "fugashi", "target_segmenter": "moses"}
    assert describe_vocabulary(two) == (
        "Two vocabularies, 6,000 for the source and 6,000 for the target (byte-fallback BPE, NFC). The source is split "
        "into words by fugashi (MeCab, UniDic) first. The target is split into words by Moses' tokenizer first."
    )
    assert "sentencepiece unigram, NMT-NFKC" in describe_vocabulary({"vocab_size": 9, "algorithm": "sentencepiece"})


def test_hostile_text_in_an_example_stays_text(tmp_path):
    example = {"source": "a | b <script>", "reference": "*c*", "output": "`d`"}
    example["steps"] = [{"step": 0, "runs": [{"kind": "kept", "before": "x | y", "after": "x | y"}]}]
    (tmp_path / "analysis.json").write_text(json.dumps({"examples": [example]}))
    shown = cards._example(tmp_path)
    assert "<script>" not in shown["source"] and "| b" not in shown["source"].replace("\\|", "")
    assert " | " not in shown["steps"][0]["text"] and shown["reference"] != "*c*"
