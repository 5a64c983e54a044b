"""Compare ways to train at equal time: each variant goes on from the same weights for the same minutes.

    python training/study.py --config recipe.yaml --variants training/studies/refinement.yaml \
        --initial_model model_cards/lvnar-tatoeba-en-de --minutes 5 --output_folder runs/study

A variant changes keys of the initial model's configuration (its section `model`) and of the recipe's section
`training`; weights that then have another shape, or that its section `initial` calls `redrawn`, begin at random. Scored
are the translations of the recipe's validation text after each refinement step. Given again, the command goes on with
the variants and seeds that are missing.
"""

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from training.recipe import SECTIONS, read_recipe
from training.sections import DataArguments


@dataclass
class StudyArguments:
    """What is compared, and how long each is trained."""

    config: str = field(metadata={"help": "recipe that all variants share; its sections data and training count"})
    variants: str = field(metadata={"help": "YAML: name to model, training (keys that change), initial (redrawn)"})
    initial_model: str = field(metadata={"help": "folder or Hub id of the model that all variants go on from"})
    output_folder: str = field(metadata={"help": "study.json goes here, and a run for each variant and seed"})
    minutes: float = field(default=5.0, metadata={"help": "of training for each"})
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "each variant is trained with each"})
    only: list[str] = field(default_factory=list, metadata={"help": "names of variants; by default, all"})
    max_steps: int = field(default=3, metadata={"help": "refinement steps that are scored"})

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise SystemExit(f"study.py: max_steps is {self.max_steps}; it must be at least 1.")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train and score what is missing; return what is in `study.json`.

    Raises:
        OSError, ValueError: what `read_recipe`, `read_variants`, `settings_of`, `make_initial` and `load_pairs` refuse;
            `only` names no variant; or the study in the output folder is another, or has another variant of a name.
        SystemExit: a training failed; what was done before is in the file.
    """
    (arguments,) = HfArgumentParser(StudyArguments).parse_args_into_dataclasses(argv)
    recipe = {"training": {}, **read_recipe(arguments.config, SECTIONS)}
    data = DataArguments(**recipe.get("data", {}))

    import torch

    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from training.data.corpora import load_pairs
    from training.quality.refinement import load_lvnar
    from training.quality.variants import (
        folder_name,
        make_initial,
        read_variants,
        score_steps,
        settings_of,
        train_variant,
    )

    variants = read_variants(arguments.variants)
    if unknown := sorted(set(arguments.only) - set(variants)):
        raise ValueError(f"{arguments.variants} has no variant {', '.join(unknown)}; it has {', '.join(variants)}.")
    shared = {name: asdict(arguments)[name] for name in ("initial_model", "minutes", "max_steps")} | {"recipe": recipe}
    file = Path(arguments.output_folder, "study.json")
    study: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if study and (other := [name for name, value in shared.items() if study[name] != value]):
        raise ValueError(f"{file} is a study with another {', '.join(other)}; give the same, or another output_folder.")
    done = {(run["name"], run["seed"]): run["variant"] for run in study.get("runs", [])}
    missing: dict[tuple[str, int], dict[str, Any]] = {}
    known, _ = load_lvnar(arguments.initial_model)
    for seed in arguments.seeds:
        for name in arguments.only or variants:
            if (name, seed) not in done:
                run_folder = file.with_name(folder_name(name, seed))
                missing[name, seed] = settings_of(recipe, variants[name], arguments.minutes, seed, run_folder)
                make_initial(known, variants[name], seed)  # if it cannot be made, nothing is trained
            elif done[name, seed] != variants[name]:
                raise ValueError(f"{file} has another variant of the name {name}; give this one another name.")
    texts = load_pairs(data, "valid").columns()
    if not study:
        initial = score_steps(arguments.initial_model, *texts, arguments.max_steps)
        study = {**shared, "initial": initial, "runs": []}
    for (name, seed), settings in missing.items():
        try:
            valid = train_variant(recipe, settings, make_initial(known, variants[name], seed))
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"study.py: the training of {name!r}, seed {seed}, failed; it says why above.") from error
        last = Path(settings["output_folder"], "checkpoints", f"step-{valid['step']:07d}")
        run = {"name": name, "seed": seed, "variant": variants[name], "valid": valid}
        run |= score_steps(last, *texts, arguments.max_steps)
        run |= {"versions": describe_versions(), "machine": describe_machine(torch.device("cpu"))}
        study["runs"].append(run)
        write_json(file, study)
        print(json.dumps(run), flush=True)
    return study


if __name__ == "__main__":
    main()
