"""The ways to run a model on the CPU, whose translations are compared."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_export import export_onnx
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.loading import load_model

REFERENCE = "eager, float32"


def load_engines(name: str) -> Iterator[tuple[str, Any]]:
    """The ways to run the model on the CPU, one at a time, PyTorch in float32 first."""
    model: Any = load_model(name, dtype=torch.float32).eval()
    yield REFERENCE, model
    with tempfile.TemporaryDirectory(prefix="onnx-") as folder:
        for precision, file in export_onnx(model, folder).items():
            yield f"onnx {precision}", LvnarOnnxModel(model.config, model.generation_config, file)
        with contextlib.suppress(FileNotFoundError):
            shortlist = Shortlist.from_pretrained(name, model.config)
            engine = LvnarOnnxModel(model.config, model.generation_config, file, shortlist=shortlist)
            yield f"onnx {precision} shortlist", engine
    for dtype in (torch.bfloat16, torch.float16):
        type_name = str(dtype).removeprefix("torch.")
        # Loaded anew: one type would round what the other has rounded.
        yield f"eager, {type_name}", load_model(name, dtype=dtype).eval()
