"""Model cards, written from a template, a card's own `card.yaml`, its recipe, its configuration and its results.

A card is never edited. A section without content is not in it, and every number comes from a JSON.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import lvnar_hf
from training.reports.examples import escape_markdown, mark_markdown
from training.reports.tables import TABLES, has_result, read_result
from training.sections import ModelArguments

ROOT = Path(__file__).resolve().parents[2]
# The tables of a card, and the results that each of them needs.
CARD_TABLES = {
    "quality": "test",
    "length": "test",
    "everyday": "everyday",
    "spans": "spans",
    "systems": "teacher_test",
    "refinement": "analysis",
    "confidence": "confidence",
    "speed_trained": "benchmark",
    "distillation": "distillation",
}
SEGMENTER_PACKAGES = {"moses": "sacremoses", "fugashi": "fugashi unidic-lite", "kytea": "kytea"}
SEGMENTER_NAMES = {"moses": "Moses' tokenizer", "fugashi": "fugashi (MeCab, UniDic)", "kytea": "KyTea"}


def render_card(folder: Path) -> str:
    """The README.md of a model: front matter for the Hub, and text.

    Args:
        folder: `model_cards/<model id>`, with `card.yaml`, and `results/` and weights where there are some.

    Raises:
        FileNotFoundError: there is no card.yaml.
    """
    facts = yaml.safe_load((folder / "card.yaml").read_text("utf-8"))
    recipe = yaml.safe_load((ROOT / "training" / "configs" / f"{facts['recipe']}.yaml").read_text("utf-8"))
    results = folder / "results"
    tables = {name: TABLES[name](results) for name, needed in CARD_TABLES.items() if has_result(results, needed)}
    context = {
        **{"paper": None, "splits": "", "sentence": None},
        **facts,
        "name": folder.name,
        "version": lvnar_hf.__version__,
        "has_weights": (folder / "model.safetensors").exists(),
        "source_packages": SEGMENTER_PACKAGES.get(recipe["tokenizer"].get("source_segmenter", "none")),
        "tables": tables,
        "example": _example(results),
        "model": ModelArguments(**recipe["model"]),
        "vocabulary": describe_vocabulary(recipe["tokenizer"]),
    }
    template = (ROOT / "model_cards" / "template.md").read_text("utf-8")
    card = ModelCard.from_template(_card_data(folder, facts), template_str=template, **context)
    return re.sub(r"\n{3,}", "\n\n", str(card).strip()) + "\n"


def describe_vocabulary(tokenizer: dict[str, Any]) -> str:
    """In words, from section `tokenizer` of a recipe: vocabularies, subwords, words before subwords."""
    size, target_size = (f"{tokenizer.get(n, tokenizer['vocab_size']):,}" for n in ("vocab_size", "target_vocab_size"))
    kind = "sentencepiece unigram" if tokenizer.get("algorithm") == "sentencepiece" else "byte-fallback BPE"
    form = "NMT-NFKC" if kind.startswith("sentencepiece") else tokenizer.get("normalization", "nfc").upper()
    if tokenizer.get("joint", True):
        text = f"One joint vocabulary of {size} ({kind}, {form})."
    else:
        text = f"Two vocabularies, {size} for the source and {target_size} for the target ({kind}, {form})."
    for side in ("source", "target"):
        name = SEGMENTER_NAMES.get(tokenizer.get(f"{side}_segmenter", "none"))
        text += f" The {side} is split into words by {name} first." if name else ""
    return text


def _card_data(folder: Path, facts: dict[str, Any]) -> ModelCardData:
    """The front matter, with a model-index if there are results."""
    evaluations = []
    if has_result(folder / "results", "test"):
        test = read_result(folder / "results", "test")
        for result in test["results"]:
            steps = f"{result['num_refinement_steps']} refinement steps"
            for metric, name in (("bleu", "BLEU"), ("chrf", "chrF")):
                evaluations.append(
                    EvalResult(
                        task_type="translation",
                        dataset_type=facts["datasets"][0],
                        dataset_name=test["test_set"],
                        dataset_config=f"{facts['source']['code']}-{facts['target']['code']}",
                        dataset_split="test",
                        metric_type="sacrebleu" if metric == "bleu" else "chrf",
                        metric_name=f"{name}, {steps} ({result[metric]['signature']})",
                        metric_value=round(result[metric]["score"], 2),
                    )
                )
    return ModelCardData(
        language=[facts["source"]["code"], facts["target"]["code"]],
        license=facts["license"],
        license_name=facts.get("license_name"),
        library_name="transformers",
        pipeline_tag="translation",
        tags=["non-autoregressive", "latent-variable"],
        datasets=facts["datasets"],
        metrics=["sacrebleu", "chrf"],
        model_name=folder.name,
        eval_results=evaluations or None,
    )


def _example(results: Path) -> dict[str, Any] | None:
    """The first example of the analysis, what each step changed marked, as Markdown."""
    if not has_result(results, "analysis"):
        return None
    analysis = read_result(results, "analysis")
    example = analysis["examples"][0]
    steps = [{"step": step["step"], "text": mark_markdown(step["runs"])} for step in example["steps"]]
    source, reference, output = (escape_markdown(example[name]) for name in ("source", "reference", "output"))
    shown = {"source": source, "reference": reference, "steps": steps, "output": output}
    return shown | {"remove_repetitions": analysis["remove_repetitions"]}
