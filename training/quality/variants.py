"""Ways to train, compared: a variant goes on from the same weights for the same minutes, and each step is scored."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from training.recipe import check_sections, read_yaml
from training.sections import ModelArguments, OptimizationArguments
from training.translation_quality.bleu import corpus_scores

TRAIN = Path(__file__).parents[1] / "train.py"
Sections = Mapping[str, Mapping[str, Any]]


@dataclass
class InitialArguments:
    """Section `initial` of a variant."""

    redrawn: list[str] = field(default_factory=list)  # parts of the names of weights that begin at random


VARIANT_SECTIONS = {"model": ModelArguments, "training": OptimizationArguments, "initial": InitialArguments}
# Of the section `training`, what all variants of a study share, or each run has for itself.
_FIXED = {"max_minutes", "max_steps", "max_epochs", "seed", "output_folder", "overwrite", "resume"}
_FIXED |= {"initial_model", "initial_layers", "initial_embeddings"}


def read_variants(path: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Variants by name, each with the keys that it changes in sections `model` and `training`, and `initial`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no mapping of names to sections, or a section or key is unknown, of another type than the
            recipe's, or one that the study sets.
    """
    variants = read_yaml(path)
    if not isinstance(variants, dict) or not variants or not all(isinstance(name, str) for name in variants):
        raise ValueError(f"{path} must hold variants: a name (text) each, and sections with what it changes.")
    checked = {
        name: check_sections({} if variant is None else variant, VARIANT_SECTIONS, f"{path}, variant {name}")
        for name, variant in variants.items()
    }
    for name, variant in checked.items():
        if fixed := sorted(_FIXED & set(variant.get("training", {}))):
            raise ValueError(f"{path}, variant {name}: {', '.join(fixed)} is what a study sets itself.")
    return checked


def settings_of(recipe: Sections, variant: Sections, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """The section `training` of a variant's run: the recipe's, what the variant changes, and what is its own.

    Raises:
        ValueError: they cannot be combined.
    """
    own: dict[str, Any] = {"max_minutes": minutes, "seed": seed, "output_folder": str(folder), "overwrite": True}
    own |= {"initial_model": str(folder / "initial"), "initial_layers": None, "initial_embeddings": None}
    # The last weights are scored: what is best by the bound of the references is not what translates best.
    own |= {"valid_bleu_sentences": 0, "keep_last_checkpoints": 1, "resume": False}
    settings = {**recipe["training"], **variant.get("training", {}), **own}
    OptimizationArguments(**settings)
    return settings


def folder_name(name: str, seed: int) -> str:
    """Of a run, from the name of its variant."""
    return f"{re.sub(r'[^a-zA-Z0-9.]+', '-', name).strip('-')}-seed-{seed}"


def make_initial(known: LvnarForConditionalGeneration, variant: Sections, seed: int) -> LvnarForConditionalGeneration:
    """A model with the variant's keys and another's weights; what the variant redraws, or reshapes, is random.

    Args:
        known: the other.
        seed: of what is random.

    Raises:
        ValueError: it has no weight of a name that is to be redrawn; or what `LvnarConfig` refuses.
    """
    set_seed(seed)
    made = LvnarForConditionalGeneration(LvnarConfig.from_dict(known.config.to_dict() | dict(variant.get("model", {}))))
    shapes = {name: weight.shape for name, weight in made.state_dict().items()}
    redrawn = variant.get("initial", {}).get("redrawn", [])
    if missing := [part for part in redrawn if not any(part in name for name in shapes)]:
        raise ValueError(f"The model has no weight whose name has {', '.join(missing)} in it.")
    weights = {
        name: weight
        for name, weight in known.state_dict().items()
        if shapes.get(name) == weight.shape and not any(part in name for part in redrawn)
    }
    made.load_state_dict(weights, strict=False)
    return made


def train_variant(recipe: Sections, settings: dict[str, Any], initial: LvnarForConditionalGeneration) -> dict[str, Any]:
    """Train by `train.py`, in a process of its own; the last line of its validation, whose weights are kept.

    Args:
        recipe: of which all but the section `training` counts.
        settings: see `settings_of`.
        initial: what the training begins with.

    Raises:
        subprocess.CalledProcessError: the training failed.
    """
    folder = Path(settings["output_folder"])
    with atomic_folder(Path(settings["initial_model"])) as unfinished:
        initial.save_pretrained(unfinished)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipe, "training": settings}), "utf-8")
    subprocess.run([sys.executable, TRAIN, "--config", file], check=True)
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line["kind"] == "valid"][-1]


def score_steps(model: str | Path, source_texts: list[str], target_texts: list[str], max_steps: int) -> dict[str, Any]:
    """BLEU and length ratio after each step from 0, and how likely chance would make such a gain of the first one.

    Args:
        model: folder, or Hub id.
        source_texts, target_texts: pairs of which a side is blank are left out.

    Returns:
        num_sentences; bleu, length_ratio: max_steps + 1 each; p_value: of the paired approximate randomisation test
        (Riezler & Maxwell, 2005), sacrebleu's, with 1,000 trials.
    """
    pairs = [pair for pair in zip(source_texts, target_texts, strict=True) if all(map(str.strip, pair))]
    sources, references = map(list, zip(*pairs, strict=True))
    refinements = refine_texts(*load_lvnar(str(model)), sources, max_steps)
    by_step = [[refinement.text_at(step) for refinement in refinements] for step in range(max_steps + 1)]
    scores = [corpus_scores(hypotheses, references) for hypotheses in by_step]
    p_value = 1.0
    if by_step[0] != by_step[1]:  # of equal ones sacrebleu would say 1 in 1,001
        pair: list[Any] = [(f"{step} steps", hypotheses) for step, hypotheses in enumerate(by_step[:2])]
        tested: Any = PairedTest(pair, {"BLEU": BLEU()}, [references], test_type="ar", n_samples=1000)()[1]
        p_value = float(tested["BLEU"][1].p_value)
    return {
        "num_sentences": len(sources),
        "bleu": [of_step["bleu"]["score"] for of_step in scores],
        "length_ratio": [of_step["length_ratio"] for of_step in scores],
        "p_value": p_value,
    }
