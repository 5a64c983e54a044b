"""Compare ways to train at equal time: each variant goes on from the same weights for the same minutes.

    python training/study.py --config recipe.yaml --variants training/studies/refinement.yaml \
        --initial_model model_cards/lvnar-tatoeba-en-de --minutes 5 --output_folder runs/study

A variant changes keys of the recipe's sections `model` and `training`; weights that then have another shape, or that it
calls `redrawn`, begin at random. Scored are the translations of the recipe's validation text after each refinement
step. Given again, the command goes on with the variants and seeds that are missing.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from training.recipe import SECTIONS, read_recipe
from training.sections import DataArguments


@dataclass
class StudyArguments:
    """What is compared, and how long each is trained."""

    config: str = field(metadata={"help": "recipe that all variants share"})
    variants: str = field(metadata={"help": "YAML: name to model, training (keys that change), redrawn (weights)"})
    initial_model: str = field(metadata={"help": "folder or Hub id of the model that all variants go on from"})
    output_folder: str = field(metadata={"help": "study.json goes here, and a run for each variant and seed"})
    minutes: float = field(default=5.0, metadata={"help": "of training for each"})
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "each variant is trained with each"})
    only: list[str] = field(default_factory=list, metadata={"help": "names of variants; by default, all"})
    max_steps: int = field(default=3, metadata={"help": "refinement steps that are scored"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train and score what is missing; return what is in `study.json`.

    Raises:
        FileNotFoundError, ValueError: what `read_recipe` refuses; or `only` names no variant; or the output folder
            has a study of other minutes, steps or weights.
        subprocess.CalledProcessError: a run failed; those before it are in the file.
    """
    (arguments,) = HfArgumentParser(StudyArguments).parse_args_into_dataclasses(argv)
    variants = yaml.safe_load(Path(arguments.variants).read_text("utf-8"))
    if unknown := sorted(set(arguments.only) - set(variants)):
        raise ValueError(f"{arguments.variants} has no variant {', '.join(unknown)}; it has {', '.join(variants)}.")
    recipe = read_recipe(arguments.config, SECTIONS)
    shared = {name: asdict(arguments)[name] for name in ("initial_model", "minutes", "max_steps")}
    file = Path(arguments.output_folder, "study.json")
    study: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if study and (other := [name for name, value in shared.items() if study[name] != value]):
        raise ValueError(f"{file} is a study with another {', '.join(other)}; give the same, or another folder.")

    import torch

    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from training.data.corpora import load_pairs
    from training.quality.variants import make_initial, score_steps, train_variant

    texts = load_pairs(DataArguments(**recipe["data"]), "valid").columns()
    if not study:
        study = {**shared, "num_sentences": len(texts[0])}
        study["initial"] = score_steps(arguments.initial_model, *texts, arguments.max_steps)
        study["runs"] = []
    study |= {"versions": describe_versions(), "machine": describe_machine(torch.device("cpu"))}
    done = {(run["name"], run["seed"]) for run in study["runs"]}
    for seed in arguments.seeds:
        for name in arguments.only or variants:
            if (name, seed) in done:
                continue
            folder = file.with_name(f"{list(variants).index(name):02}-seed-{seed}")
            initial = make_initial(arguments.initial_model, variants[name], seed)
            timed = {**recipe, "training": {**recipe["training"], "max_minutes": arguments.minutes, "seed": seed}}
            run = {"name": name, "seed": seed, "valid": train_variant(timed, variants[name], initial, folder)}
            study["runs"].append(run | score_steps(folder / "best", *texts, arguments.max_steps))
            write_json(file, study)
            print(json.dumps(study["runs"][-1]), flush=True)
    return study


if __name__ == "__main__":
    main()
