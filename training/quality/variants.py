"""Ways to train, compared: a variant goes on from the same weights for the same minutes, and each step is scored."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from transformers import set_seed

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration
from lvnar_hf.files.atomic import atomic_folder
from training.quality.decoding import refine_texts
from training.quality.refinement import load_lvnar
from training.translation_quality.bleu import corpus_scores

TRAIN = Path(__file__).parents[1] / "train.py"
Recipe = Mapping[str, Mapping[str, Any]]


def make_initial(model: str, variant: Recipe, seed: int) -> LvnarForConditionalGeneration:
    """A model with the variant's keys and another's weights.

    Args:
        model: folder of the other, or its Hub id.
        variant: its section `model` changes keys of the configuration, and `redrawn` names weights by parts of their
            names. These, and what then has another shape, are random.
        seed: of what is random.
    """
    known, _ = load_lvnar(model)
    set_seed(seed)
    made = LvnarForConditionalGeneration(LvnarConfig.from_dict(known.config.to_dict() | dict(variant.get("model", {}))))
    shapes = {name: weight.shape for name, weight in made.state_dict().items()}
    weights = {
        name: weight
        for name, weight in known.state_dict().items()
        if shapes.get(name) == weight.shape and not any(part in name for part in variant.get("redrawn", []))
    }
    made.load_state_dict(weights, strict=False)
    return made


def train_variant(recipe: Recipe, variant: Recipe, initial: LvnarForConditionalGeneration, folder: Path) -> dict:
    """Train by `train.py`, in a process of its own; the last line of its validation.

    Args:
        recipe: what all variants share, with the minutes and the seed in section `training`.
        variant: its section `training` changes keys of the recipe's.
        initial: what the training begins with.
        folder: of the run.

    Raises:
        subprocess.CalledProcessError: the training failed.
    """
    with atomic_folder(folder / "initial") as unfinished:
        initial.save_pretrained(unfinished)
    own = {"initial_model": str(folder / "initial"), "output_folder": str(folder), "overwrite": True}
    changed = {**recipe["training"], **variant.get("training", {}), **own, "valid_bleu_sentences": 0}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipe, "training": changed}), "utf-8")
    subprocess.run([sys.executable, TRAIN, "--config", file], check=True)
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line["kind"] == "valid"][-1]


def score_steps(model: str | Path, source_texts: list[str], references: list[str], max_steps: int) -> dict[str, Any]:
    """BLEU and length ratio after each step from 0, and how likely chance would make such a gain of the first one.

    Args:
        model: folder, or Hub id.
        source_texts: none of them blank.

    Returns:
        bleu, length_ratio: max_steps + 1 each; p_value: of the paired approximate randomisation test (Riezler &
        Maxwell, 2005), sacrebleu's, with 1,000 trials.
    """
    refinements = refine_texts(*load_lvnar(str(model)), source_texts, max_steps)
    by_step = [[refinement.text_at(step) for refinement in refinements] for step in range(max_steps + 1)]
    scores = [corpus_scores(hypotheses, references) for hypotheses in by_step]
    pair: list[Any] = [(f"{step} steps", hypotheses) for step, hypotheses in enumerate(by_step[:2])]
    tested: Any = PairedTest(pair, {"BLEU": BLEU()}, [references], test_type="ar", n_samples=1000)()[1]
    return {
        "bleu": [of_step["bleu"]["score"] for of_step in scores],
        "length_ratio": [of_step["length_ratio"] for of_step in scores],
        "p_value": tested["BLEU"][1].p_value,
    }
