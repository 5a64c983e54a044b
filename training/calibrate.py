"""Calibrate a model's confidence in its words on a validation set, and measure it on a test set.

    python training/calibrate.py --model model_cards/lvnar-tatoeba-en-de --valid_source_file valid.en \
        --valid_target_file valid.de --source_file test.en --target_file test.de --results_file runs/confidence.json

Writes `calibration.json` beside the weights, which `generate` and the pipeline use; with `--figure_file` a reliability
diagram. With `--teacher`, an autoregressive model is calibrated and measured in the same way, by greedy search, and
nothing is written beside it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from training.data.evaluation_sets import TestSet, TestSetArguments, load_test_set


@dataclass
class CalibrationArguments:
    """Which model, the validation set, and where the results go."""

    model: str = field(metadata={"help": "model folder"})
    valid_source_file: str = field(metadata={"help": "source text, a sentence a line, plain or .gz"})
    valid_target_file: str = field(metadata={"help": "reference translations, line-aligned"})
    output_folder: str | None = field(
        default=None, metadata={"help": "calibration.json goes there; by default into the model's own folder"}
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON with what was measured"})
    figure_file: str | None = field(default=None, metadata={"help": "PNG with the reliability diagram"})
    teacher: str | None = field(default=None, metadata={"help": "an autoregressive model to measure beside it"})
    batch_size: int = field(default=32, metadata={"help": "sentences translated at once"})
    overwrite: bool = field(default=False, metadata={"help": "replace what is there"})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1.")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Translate, calibrate, measure, write; return what is in the results' JSON.

    Raises:
        FileExistsError: what would be written is there, and `--overwrite` is not given.
        ValueError, FileNotFoundError, OSError: what `load_test_set` refuses; no word is translated; the model is not
            of this package.
    """
    parser = HfArgumentParser((CalibrationArguments, TestSetArguments))
    arguments, test_set_arguments = parser.parse_args_into_dataclasses(argv)

    import torch

    from lvnar_hf.confidence_lvnar import FILE
    from lvnar_hf.files.fingerprints import folder_weights_fingerprint
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.loading import load_model, load_tokenizer
    from training.quality import confidence
    from training.quality.refinement import load_lvnar

    folder = Path(arguments.output_folder or arguments.model)
    outputs = {"--output_folder": folder / FILE}
    outputs |= {"--results_file": arguments.results_file, "--figure_file": arguments.figure_file}
    for flag, path in outputs.items():
        if path is not None:
            refuse_existing(path, arguments.overwrite, flag)
    valid_files = {"source_file": arguments.valid_source_file, "target_file": arguments.valid_target_file}
    valid, test = load_test_set(TestSetArguments(**valid_files)), load_test_set(test_set_arguments)
    model, tokenizer = load_lvnar(refuse_missing_folder(arguments.model))
    fingerprint = folder_weights_fingerprint(arguments.model)

    def measure(generate: Any, tokenizer: Any, limit: int, weights_fingerprint: str | None) -> tuple[Any, dict]:
        def scored(test_set: TestSet) -> confidence.ScoredWords:
            sides = (test_set.source_texts, test_set.target_texts)
            return confidence.score_words(generate, tokenizer, *sides, arguments.batch_size, limit)

        calibration = confidence.fit_calibration(scored(valid), weights_fingerprint)
        return calibration, confidence.measure_calibration(scored(test), calibration)

    limit = model.config.max_position_embeddings
    generate = confidence.generate_refined(model, tokenizer)
    calibration, measured = measure(generate, tokenizer, limit, fingerprint)
    result: dict[str, Any] = {
        "model": arguments.model,
        "calibrated_on": {"valid_set": valid.name, "num_sentences": len(valid.source_texts)},
        "test_set": test.name,
        "num_sentences": len(test.source_texts),
        "num_refinement_steps": getattr(model.generation_config, "num_refinement_steps", None),
        **measured,
        "teacher": None,
        "versions": describe_versions(),
        "machine": describe_machine(model.device),
    }
    if arguments.teacher is not None:
        other = load_model(refuse_missing_folder(arguments.teacher), dtype=torch.float32).eval()
        other_tokenizer = load_tokenizer(arguments.teacher)
        limit = other.config.max_position_embeddings
        _, measured = measure(confidence.generate_greedily(other), other_tokenizer, limit, None)
        result["teacher"] = {"model": Path(arguments.teacher).name, **measured}
    write_json(folder / FILE, calibration.to_dict())
    if arguments.results_file is not None:
        write_json(Path(arguments.results_file), result)
    if arguments.figure_file is not None:
        from training.reports.figures import plot_reliability, save_figure

        save_figure(plot_reliability(result), Path(arguments.figure_file))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
