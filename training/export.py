"""Write the ONNX graphs of a model beside its weights, and compare their translations with PyTorch's.

    python training/export.py --model model_cards/lvnar-tatoeba-en-de

`onnx/model.onnx` is float32, `onnx/model_int8.onnx` has weights and activations in 8 bits.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import torch
from transformers import AutoModelForSeq2SeqLM, HfArgumentParser, PreTrainedModel

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_export import export_onnx
from training.outputs import refuse_existing, refuse_missing_folder

NUM_CHECKED = 256  # sentences, of random tokens


@dataclass
class ExportArguments:
    """Which model, and where its graphs go."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    output_folder: str | None = field(
        default=None, metadata={"help": "the graphs go to its onnx/; by default the model's own folder"}
    )
    overwrite: bool = field(default=False, metadata={"help": "write over graphs that are there"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Export, check, print one JSON line; return what is in it.

    Raises:
        FileExistsError: there are graphs, and `--overwrite` is not given.
        ValueError: --model is no folder, and no --output_folder is given.
        RuntimeError: a float32 translation differs from PyTorch's.
    """
    (arguments,) = HfArgumentParser(ExportArguments).parse_args_into_dataclasses(argv)
    refuse_missing_folder(arguments.model)
    folder = arguments.output_folder or arguments.model
    if arguments.output_folder is None and not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: give --output_folder.")
    refuse_existing(Path(folder) / "onnx", arguments.overwrite, "--output_folder")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    files = export_onnx(model, folder)
    result: dict[str, Any] = {"model": arguments.model, "num_sentences": NUM_CHECKED}
    for precision, file in files.items():
        engine = LvnarOnnxModel(model.config, model.generation_config, file)
        result[precision] = {"bytes": file.stat().st_size, "different_sentences": count_different(model, engine)}
    print(json.dumps(result))
    if result["float32"]["different_sentences"]:
        raise RuntimeError(f"{files['float32']} translates otherwise than PyTorch: {result['float32']}.")
    return result


def count_different(model: PreTrainedModel, engine: LvnarOnnxModel, batch_size: int = 32) -> int:
    """How many of NUM_CHECKED sentences of random tokens and lengths the engine translates otherwise, one step each."""
    generator = torch.Generator().manual_seed(0)
    longest = min(50, model.config.max_position_embeddings)
    num_different = 0
    for _ in range(NUM_CHECKED // batch_size):
        input_ids = torch.randint(3, model.config.vocab_size, (batch_size, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (batch_size, 1), generator=generator)
        input_ids[torch.arange(longest) >= lengths] = model.config.pad_token_id
        rows, others = (m.generate(input_ids, remove_repetitions=False).tolist() for m in (model, engine))
        num_different += sum(_tokens(row) != _tokens(other) for row, other in zip(rows, others, strict=True))
    return num_different


def _tokens(row: list[int]) -> list[int]:
    return [token for token in row if token]


if __name__ == "__main__":
    main()
