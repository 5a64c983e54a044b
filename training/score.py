"""Score a model on a test set: this package's with each number of refinement steps, another with each beam.

    python training/score.py --model model_cards/lvnar-tatoeba-en-de --source_file test.en --target_file test.de \
        --output_folder runs/evaluation

Writes `hypotheses.N-steps.txt` for each number of steps N (`hypotheses.beam-N.txt` for an autoregressive model), and
`metrics.json`. Speed is not measured here: see benchmark.py. What an ELBO is of, the references or the model's own
translations, makes the difference; here it is of the references, and analyse.py has the other.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from training.data.evaluation_sets import TestSetArguments, load_test_set

REMOVALS: dict[str, bool | str] = {"words": True, "tokens": "tokens", "none": False}


@dataclass
class ScoreArguments:
    """What to score, and where the results go."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    output_folder: str = field(metadata={"help": "where hypotheses and metrics.json go"})
    num_refinement_steps: list[int] | None = field(
        default=None, metadata={"help": "each is scored; for this package's models; by default 0 1 3"}
    )
    num_beams: list[int] | None = field(
        default=None, metadata={"help": "each is scored; for autoregressive models; by default 1 3"}
    )
    num_elbo_samples: int = field(default=20, metadata={"help": "latent samples per sentence; 0: no ELBO"})
    num_bootstrap: int = field(default=1000, metadata={"help": "resamples for the scores' 95 %% intervals; 0: none"})
    remove_repetitions: str | None = field(
        default=None,
        metadata={
            "choices": [*REMOVALS],
            "help": "tokens: consecutive equal ones, as the paper does; words; none; by default what the model's "
            "generation_config.json says",
        },
    )
    num_latent_candidates: int | None = field(default=None, metadata={"help": "a search: latents tried"})
    latent_noise_scale: float | None = field(default=None, metadata={"help": "how far from the prior's mean they are"})
    num_length_candidates: int | None = field(default=None, metadata={"help": "a search: lengths tried"})
    beam_size: int | None = field(default=None, metadata={"help": "a search: beam over the cells of CTC"})
    candidate_score: str | None = field(
        default=None, metadata={"help": "what decides: beam, bound, elbo, consensus or rescorer"}
    )
    rescorer: str | None = field(
        default=None, metadata={"help": "an autoregressive model of the same vocabulary that decides"}
    )
    batch_size: int = field(default=64, metadata={"help": "sentences translated at once"})
    seed: int = field(default=1, metadata={"help": "of the latent samples"})
    revision: str | None = field(default=None, metadata={"help": "the model's revision on the Hub"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})

    @property
    def search(self) -> dict[str, Any]:
        """Options of a search that were given."""
        names = ("num_latent_candidates", "latent_noise_scale", "num_length_candidates", "beam_size")
        values = {name: getattr(self, name) for name in (*names, "candidate_score", "rescorer")}
        return {name: value for name, value in values.items() if value is not None}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Translate, score, write; return what is in metrics.json.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError, FileNotFoundError, OSError: what `load_test_set` refuses; options and languages that are not the
            model's.
    """
    parser = HfArgumentParser((ScoreArguments, TestSetArguments))
    arguments, test_set_arguments = parser.parse_args_into_dataclasses(argv)

    import torch

    import lvnar_hf  # noqa: F401  (registers model and tokenizer)
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.loading import load_model, load_search, load_tokenizer
    from lvnar_hf.steps import repetition_removal
    from training.quality.evaluation import elbo_of_references, score_refined, score_searched

    refuse_missing_folder(arguments.model)
    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    test_set = load_test_set(test_set_arguments)
    where = {} if arguments.revision is None else {"revision": arguments.revision}
    model = load_model(arguments.model, dtype=torch.float32, **where).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(arguments.model, **where)
    is_lvnar = model.config.model_type == "lvnar"
    names = ["num_beams"] if is_lvnar else ["num_refinement_steps", "remove_repetitions", *arguments.search]
    if wrong := [name for name in names if getattr(arguments, name) is not None]:
        raise ValueError(
            f"--{wrong[0]} means nothing for {arguments.model}, a model of type {model.config.model_type}."
        )
    if is_lvnar:
        model.config.check_languages(test_set.source_language, test_set.target_language)
    folder.mkdir(parents=True, exist_ok=True)
    if is_lvnar and arguments.remove_repetitions is not None:
        model.generation_config.remove_repetitions = REMOVALS[arguments.remove_repetitions]
    search = load_search(arguments.search, model.device)
    option, default = ("num_refinement_steps", [0, 1, 3]) if is_lvnar else ("num_beams", [1, 3])
    results = []
    for value in getattr(arguments, option) or default:
        result: dict[str, Any] = {
            option: value,
            "hypotheses": f"hypotheses.{f'{value}-steps' if is_lvnar else f'beam-{value}'}.txt",
        }
        common = (model, tokenizer, test_set, arguments.batch_size, arguments.num_bootstrap)
        if is_lvnar and not search:
            hypotheses, scores = score_refined(*common, value)
        else:
            settings: Any = {option: value, **search}
            hypotheses, scores = score_searched(*common, **settings)
        (folder / result["hypotheses"]).write_text("".join(h + "\n" for h in hypotheses), "utf-8")
        results.append(result | scores)
        print(f"{result['hypotheses']}: {json.dumps(scores)}", flush=True)
    metrics = {
        "model": arguments.model,
        "num_parameters": model.num_parameters(),
        "test_set": test_set.name,
        "source_language": test_set.source_language,
        "target_language": test_set.target_language,
        "num_sentences": len(test_set.source_texts),
        "batch_size": arguments.batch_size,
        "remove_repetitions": repetition_removal(model) if is_lvnar else None,
        "search": arguments.search,
        "results": results,
        "elbo_of_references": None,
        "versions": describe_versions(),
        "machine": describe_machine(model.device),
    }
    if is_lvnar and arguments.num_elbo_samples:
        metrics["elbo_of_references"] = elbo_of_references(
            model, tokenizer, test_set, arguments.num_elbo_samples, arguments.seed, arguments.batch_size
        )
        print(f"ELBO of the references: {json.dumps(metrics['elbo_of_references'])}", flush=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    return metrics


if __name__ == "__main__":
    main()
