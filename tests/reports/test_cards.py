"""Model cards: the whole rendered text, the front matter for the Hub, and sections that vanish."""

import json
import re
import shutil

import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard

import lvnar_hf
from training import report
from training.reports import cards
from training.reports.cards import describe_vocabulary, render_card
from training.reports.tables import TABLES

SHIPPED = ROOT / "model_cards" / report.SHIPPED
LENGTH = SHIPPED.with_name(f"{SHIPPED.name}-length")
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/card.yaml"))
SECTIONS = [
    "Use",
    "Intended use",
    "Results",
    "Confidence",
    "Speed",
    "What refinement does",
    "Model",
    "Training",
    "Limits",
]
SECTIONS += ["Bias and risks", "Licence and attribution", "Citation"]
WITHOUT_RESULTS = [name for name in SECTIONS if name not in ("Use", "Confidence", "Speed", "What refinement does")]

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
    documents = [*(ROOT / "docs").glob("*.md"), *(folder / "README.md" for folder in (ROOT, ROOT / "training", *CARDS))]
    blocks = [
        block
        for document in documents
        for block in re.findall(r"```(?:python|bash)\n(.*?)```", document.read_text("utf-8"), flags=re.DOTALL)
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


@pytest.fixture
def ctc_card(tmp_path, monkeypatch):
    """The card of the model with predicted lengths, as if it had alignment "ctc": recipe, results without lengths."""
    folder = tmp_path / "model_cards" / LENGTH.name
    shutil.copytree(LENGTH, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    shutil.copy(ROOT / "model_cards" / "template.md", tmp_path / "model_cards")
    (tmp_path / "training" / "configs").mkdir(parents=True)
    recipe = yaml.safe_load((ROOT / "training" / "configs" / "tatoeba_en_de.yaml").read_text("utf-8"))
    recipe["model"] |= {"alignment": "ctc", "upsampling_ratio": 1.5, "carries_source_states": True}
    (tmp_path / "training" / "configs" / "tatoeba_en_de.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    results = {name: json.loads((folder / "results" / f"{name}.json").read_text()) for name in ("test", "analysis")}
    del results["test"]["elbo_of_references"]["length_nll"]
    for step in results["analysis"]["steps"]:
        del step["length_nll"]
    results["analysis"]["remove_repetitions"] = results["test"]["remove_repetitions"] = False
    oracles = results["analysis"]["oracles"]["bleu"]
    results["analysis"]["oracles"]["bleu"] = {given: oracles[given] for given in ("nothing", "latents")}
    for name, result in results.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps(result))
    lines = map(json.loads, (folder / "results" / "log.jsonl").read_text().splitlines())
    kept = [{key: value for key, value in line.items() if not key.startswith("length")} for line in lines]
    (folder / "results" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return folder


def test_a_card_says_how_the_length_comes_about(ctc_card):
    with_length, with_ctc = (LENGTH / "README.md").read_text("utf-8"), render_card(ctc_card)
    assert "The length is predicted (alignment `length`), and differs from the source's by at most" in with_length
    assert "only repeats the word before it is removed" in with_length and "Output, repetitions removed:" in with_length
    assert "alignment `ctc`): the decoder has 1.5 cells per source token, and" in with_ctc
    assert "has the source's states beside the latents" in with_ctc
    assert "\nOutput: " in with_ctc and "Nothing that repeats is removed" in with_ctc
    assert "length NLL" in with_length and "length NLL" not in with_ctc and "token NLL" in with_ctc
    assert "`length`" not in with_ctc and "differs from the source's" not in with_ctc


def test_tables_of_a_ctc_model_have_no_columns_of_the_length(ctc_card):
    header = TABLES["training"](ctc_card / "results").split("\n")[0]
    assert header == "| epoch | step | ELBO | token NLL | KL | BLEU, 0 steps | BLEU, 1 step |"
    with_length = TABLES["training"](LENGTH / "results").split("\n")[0]
    assert "| KL | length NLL | length accuracy | BLEU, 0 steps |" in with_length
    oracles = TABLES["oracles"](ctc_card / "results").split("\n")
    assert [line.split(" | ")[0] for line in oracles[2:5]] == ["| nothing", "| latents", ""]
    for name in ("refinement", "systems", "quality", "length"):
        assert TABLES[name](ctc_card / "results").startswith("| ")


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
    (tmp_path / "analysis.json").write_text(json.dumps({"examples": [example], "remove_repetitions": True}))
    shown = cards._example(tmp_path)
    assert "<script>" not in shown["source"] and "| b" not in shown["source"].replace("\\|", "")
    assert " | " not in shown["steps"][0]["text"] and shown["reference"] != "*c*"
