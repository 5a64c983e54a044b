"""The ONNX graphs of a model folder, made and compared with PyTorch."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_export import export_onnx, source_pieces
from lvnar_hf.engines.onnx_search import export_cells, export_rescorer
from lvnar_hf.files.fingerprints import folder_weights_fingerprint
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from lvnar_hf.loading import load_model

NUM_CHECKED = 256  # sentences, of random tokens


def export_and_compare(
    name: str, output_folder: str | None = None, overwrite: bool = False, search: bool = False
) -> dict[str, Any]:
    """Write the graphs to a folder's onnx/; their sizes, and how many sentences each translates otherwise than PyTorch.

    Of an autoregressive model, the graphs of a rescorer are written, and their sizes given.

    Args:
        name: model folder or Hub id.
        output_folder: by default the model's own.
        search: the graphs of the cells too.

    Raises:
        FileExistsError: there are graphs, and `overwrite` is not given.
        ValueError: the model is no folder, and no output folder is given; or it is of a type that is not exported.
    """
    refuse_missing_folder(name)
    folder = output_folder or name
    if output_folder is None and not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: give --output-folder.")
    refuse_existing(Path(folder) / "onnx", overwrite, "--output-folder")
    model: Any = load_model(name, dtype=torch.float32).eval()
    result: dict[str, Any] = {"model": name}
    if model.config.model_type != "lvnar":
        return result | {"rescorer": _sizes(export_rescorer(model, folder, folder_weights_fingerprint(name)))}
    make_pieces = cache(partial(source_pieces, model))  # of both graphs
    if search:
        result["cells"] = _sizes(export_cells(model, folder, make_pieces))
    result["num_sentences"] = NUM_CHECKED
    files = export_onnx(model, folder, make_pieces)
    engines = [LvnarOnnxModel(model.config, model.generation_config, file) for file in files.values()]
    sizes = _sizes(files)
    for precision, num_different in zip(files, count_different(model, engines), strict=True):
        result[precision] = sizes[precision] | {"different_sentences": num_different}
    return result


def _sizes(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {precision: {"file": str(file), "bytes": file.stat().st_size} for precision, file in files.items()}


def count_different(model: PreTrainedModel, engines: Sequence[LvnarOnnxModel], batch_size: int = 32) -> list[int]:
    """How many of NUM_CHECKED sentences of random tokens and lengths each engine translates otherwise, by one step."""
    generator = torch.Generator().manual_seed(0)
    longest = min(50, model.config.max_position_embeddings)
    num_different = [0] * len(engines)
    for _ in range(NUM_CHECKED // batch_size):
        input_ids = torch.randint(3, model.config.vocab_size, (batch_size, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (batch_size, 1), generator=generator)
        input_ids[torch.arange(longest) >= lengths] = model.config.pad_token_id
        expected, *others = (_translations(one, input_ids) for one in (model, *engines))
        for number, rows in enumerate(others):
            num_different[number] += sum(row != wanted for row, wanted in zip(rows, expected, strict=True))
    return num_different


def _translations(model: Any, input_ids: torch.Tensor) -> list[list[int]]:
    rows = model.generate(input_ids, remove_repetitions=False).tolist()
    return [[token for token in row if token] for row in rows]
