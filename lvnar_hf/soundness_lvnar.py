"""What a model's files say of themselves is looked at before they are loaded.

This module travels to the Hub with the model: it imports nothing but torch, transformers and the standard library.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_JSON_BYTES = 2**28
_FINITE_PIECE = 32_767  # values; torch divides work among threads from one more on
_FLOATING = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


def read_json_object(file: str | Path) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object in UTF-8, or is larger than MAX_JSON_BYTES; names the file.
    """

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    file = Path(file)
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read.")
    try:
        fields = json.loads(file.read_text("utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must hold a JSON object; it is a {type(fields).__name__}.")
    return fields


def check_generation_fields(file: str | Path, own: Iterable[str]) -> dict[str, Any]:
    """The fields of a generation_config.json; a name that is not an option's would take the place of a method.

    Args:
        own: options of this model that transformers does not know.

    Raises:
        ValueError: names the file and the field.
    """
    from transformers import GenerationConfig

    fields = read_json_object(file)
    known = GenerationConfig().to_dict()
    for name in fields:
        if callable(getattr(GenerationConfig, name, None)) or (name.startswith("__") and name not in known):
            raise ValueError(f"{file}: {name} is no option of a generation config.")
    for name in ("return_dict_in_generate", "output_scores", "output_confidences", *own):
        value = fields.get(name)
        if isinstance(value, (list, dict, float)) or (isinstance(value, str) and value != "tokens"):
            raise ValueError(f"{file}: {name} is {value!r}; it must be true, false or a whole number.")
    return fields


def stored_shapes(files: Iterable[str | Path]) -> dict[str, tuple[int, ...]]:
    """The shape of each weight, from the headers of files in safetensors alone.

    Raises:
        ValueError: a file is damaged, or a weight holds no floating-point numbers or is there twice. Names the file.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(str(file), "pt") as stored:
                for name in stored.keys():  # noqa: SIM118  (it is no dictionary)
                    part = stored.get_slice(name)
                    if part.get_dtype() not in _FLOATING:
                        raise ValueError(
                            f"{file}: the weight {name} is of the type {part.get_dtype()}; it must be one of "
                            f"{', '.join(_FLOATING)}."
                        )
                    if name in shapes:
                        raise ValueError(f"{file}: the weight {name} is in another file too.")
                    shapes[name] = tuple(part.get_shape())
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}") from error
    return shapes


def check_shapes(
    shapes: dict[str, tuple[int, ...]], needed: dict[str, tuple[int, ...]], takes_other_shapes: bool = False
) -> None:
    """Refuse weights that are not exactly those of a model.

    Args:
        shapes, needed: of the weights that are there, and of the model's.
        takes_other_shapes: weights may have other shapes.

    Raises:
        ValueError: weights are missing or unknown, or have another shape; names them.
    """
    if missing := sorted(needed.keys() - shapes.keys()):
        raise ValueError(f"The checkpoint lacks {len(missing)} weights: {', '.join(missing[:5])}.")
    if unknown := sorted(shapes.keys() - needed.keys()):
        raise ValueError(
            f"The checkpoint has {len(unknown)} weights that the configuration has no layers for: "
            f"{', '.join(unknown[:5])}."
        )
    others = [
        f"{name} is {shapes[name]}, not {needed[name]}" for name in sorted(needed) if shapes[name] != needed[name]
    ]
    if others and not takes_other_shapes:
        raise ValueError(
            f"These weights have another shape in the checkpoint than the configuration asks: {'; '.join(others[:5])}."
        )


def shapes_of(tensors: "dict[str, torch.Tensor]") -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def is_finite(tensor: "torch.Tensor") -> bool:
    """Whether all values are, found on the CPU without torch's threads: a process that has started them cannot fork.

    By the sum of its pieces, which are small enough for one thread.
    """
    if tensor.device.type != "cpu":
        return bool(tensor.isfinite().all())
    pieces = tensor.flatten().split(_FINITE_PIECE)
    return all(math.isfinite(float((piece * 0).float().sum())) for piece in pieces)
