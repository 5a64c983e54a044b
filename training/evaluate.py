"""Score a model on line-aligned text: this package's with each number of refinement steps, another with each beam.

    python training/evaluate.py --model model_cards/lvnar-tatoeba-en-de --source_file test.en --target_file test.de \
        --output_folder runs/evaluation

Writes `hypotheses.N-steps.txt` for each number of steps N (`hypotheses.beam-N.txt` for an autoregressive model), and
`metrics.json`.
"""

import json
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, HfArgumentParser

import lvnar_hf
from training.benchmark import describe_processor
from training.outputs import refuse_existing
from training.scoring import corpus_scores, elbo_of_translations, translate_texts
from training.text import read_lines


@dataclass
class EvaluationArguments:
    """What to score, on what, and where the results go."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    source_file: str = field(metadata={"help": "source text, a sentence a line"})
    target_file: str = field(metadata={"help": "reference translations, line-aligned"})
    output_folder: str = field(metadata={"help": "where hypotheses and metrics.json go"})
    test_set: str | None = field(default=None, metadata={"help": "name of the test set, for the record"})
    num_refinement_steps: list[int] = field(
        default_factory=lambda: [0, 1, 3], metadata={"help": "each is scored; for this package's models"}
    )
    num_beams: list[int] = field(
        default_factory=lambda: [1, 3], metadata={"help": "each is scored; for autoregressive models"}
    )
    num_elbo_samples: int = field(default=20, metadata={"help": "latent samples a sentence"})
    batch_size: int = field(default=64, metadata={"help": "sentences translated at once"})
    seed: int = field(default=1, metadata={"help": "of the latent samples"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Translate, score, write; return what is in metrics.json.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError: if the files have different numbers of lines.
    """
    (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(argv)
    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    sources, targets = (list(read_lines(p)) for p in (arguments.source_file, arguments.target_file))
    if len(sources) != len(targets) or not sources:
        raise ValueError(
            f"{len(sources)} lines in {arguments.source_file}, {len(targets)} in {arguments.target_file}; they must be "
            "equal, and not 0."
        )
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    is_lvnar = model.config.model_type == "lvnar"
    option = "num_refinement_steps" if is_lvnar else "num_beams"
    for value in getattr(arguments, option):
        start = time.perf_counter()
        hypotheses = translate_texts(model, tokenizer, sources, batch_size=arguments.batch_size, **{option: value})
        seconds = time.perf_counter() - start
        hypotheses = [" ".join(hypothesis.split("\n")) for hypothesis in hypotheses]  # a line each
        name = f"{value}-steps" if is_lvnar else f"beam-{value}"
        (folder / f"hypotheses.{name}.txt").write_text("".join(h + "\n" for h in hypotheses), "utf-8")
        result: dict[str, Any] = {option: value, **corpus_scores(hypotheses, targets), "seconds": seconds}
        if is_lvnar:
            result["elbo_of_translations"] = elbo_of_translations(
                model,
                tokenizer,
                sources,
                value,
                num_samples=arguments.num_elbo_samples,
                seed=arguments.seed,
                batch_size=arguments.batch_size,
            )
        results.append(result)
        print(f"{name}: {json.dumps(result)}", flush=True)
    metrics = {
        "model": arguments.model,
        "num_parameters": model.num_parameters(),
        "test_set": arguments.test_set or Path(arguments.source_file).name,
        "num_sentences": len(sources),
        "num_elbo_samples": arguments.num_elbo_samples if is_lvnar else None,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "remove_repetitions": getattr(model.generation_config, "remove_repetitions", None),
        "results": results,
        "versions": {
            "lvnar_hf": lvnar_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "processor": describe_processor(),
            "threads": torch.get_num_threads(),
            "device": str(model.device),
            "dtype": str(model.dtype),
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    return metrics


if __name__ == "__main__":
    main()
