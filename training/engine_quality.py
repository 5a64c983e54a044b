"""What other engines and smaller numbers cost: BLEU on a test set, and sentences that come out otherwise.

    python training/engine_quality.py --model model_cards/lvnar-tatoeba-en-de --source_file test.en \
        --target_file test.de --source_language en --target_language de --output_file runs/engine_quality.json

Each way of running the model is compared with PyTorch in float32. The ONNX graphs are made for the occasion; the
shortlist is the repository's, if it has one.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from training.data.evaluation_sets import TestSetArguments, load_test_set


@dataclass
class EngineQualityArguments:
    """Which model, and where the result goes."""

    model: str = field(metadata={"help": "model folder or Hub id, of this package"})
    output_file: str = field(metadata={"help": "JSON"})
    num_refinement_steps: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "each is scored"})
    batch_size: int = field(default=64, metadata={"help": "sentences translated at once"})
    overwrite: bool = field(default=False, metadata={"help": "write over an output file that is there"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Translate the test set with every engine, score, write; return what is in the file.

    Raises:
        FileExistsError: the output file is there and `--overwrite` is not given.
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError, FileNotFoundError, OSError: what `load_test_set` refuses.
    """
    parser = HfArgumentParser((EngineQualityArguments, TestSetArguments))
    arguments, test_set_arguments = parser.parse_args_into_dataclasses(argv)

    import torch

    import lvnar_hf  # noqa: F401  (registers the tokenizer)
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.loading import load_tokenizer
    from training.quality.decoding import translate_texts
    from training.quality.engines import load_engines
    from training.translation_quality.bleu import corpus_scores

    file = refuse_existing(arguments.output_file, arguments.overwrite, "--output_file")
    test_set = load_test_set(test_set_arguments)
    tokenizer = load_tokenizer(refuse_missing_folder(arguments.model))
    engines: dict[str, dict[str, Any]] = {}
    references: dict[int, list[str]] = {}  # by number of steps, the translations of the first engine
    for name, model in load_engines(arguments.model):
        engines[name] = {"results": []}
        for num_steps in arguments.num_refinement_steps:
            texts = translate_texts(
                model, tokenizer, test_set.source_texts, arguments.batch_size, num_refinement_steps=num_steps
            )
            result = {
                "num_refinement_steps": num_steps,
                "different_sentences": sum(map(str.__ne__, texts, references.setdefault(num_steps, texts))),
                "bleu": corpus_scores(texts, test_set.target_texts)["bleu"],
            }
            engines[name]["results"].append(result)
            print(f"{name}: {json.dumps(result)}", flush=True)
    result = {
        "model": arguments.model,
        "test_set": test_set.name,
        "source_language": test_set.source_language,
        "target_language": test_set.target_language,
        "num_sentences": len(test_set.source_texts),
        "engines": engines,
        "versions": describe_versions(),
        "machine": describe_machine(torch.device("cpu")),
    }
    write_json(file, result)
    return result


if __name__ == "__main__":
    main()
