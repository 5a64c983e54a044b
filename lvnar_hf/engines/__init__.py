"""The model outside PyTorch's eager mode: the same `generate`."""

from typing import Any

# What the commands call the engines. "auto" is the fastest that a model's folder and the device have.
ENGINES = ("auto", "torch", "compiled", "onnx", "onnx-int8", "onnx-int8-shortlist")
# Of ONNX Runtime: arguments of `LvnarOnnxModel.from_pretrained`.
ONNX_ENGINES: dict[str, dict[str, Any]] = {
    "onnx": {"precision": "float32"},
    "onnx-int8": {"precision": "int8"},
    "onnx-int8-shortlist": {"precision": "int8", "shortlist": True},
}
