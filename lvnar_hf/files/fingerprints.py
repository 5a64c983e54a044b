"""Fingerprints: of a model folder; of weights, whether an ONNX graph or a shortlist was made from those beside it."""

import hashlib
import json
import math
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvnar_hf.files.atomic import hash_file
from lvnar_hf.soundness_lvnar import MAX_JSON_BYTES

if TYPE_CHECKING:
    import torch

KEY = "weights_fingerprint"  # in the metadata of what was made
_SAMPLED = 64  # values of a tensor; training changes them all
_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # types of weights


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a model folder's weights, configuration and tokenizer, as 64 hex digits."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".model", ".spm", ".txt") and file.is_file():
            total.update(f"{file.name} {hash_file(file)}\n".encode())
    return total.hexdigest()


def weights_fingerprint(tensors: "Mapping[str, torch.Tensor]") -> str:
    """32 hex digits, of names, shapes and some values; the same in 16 bits and in 32, if the values are."""

    def sample(tensor: "torch.Tensor") -> np.ndarray:
        values = tensor.detach().flatten()
        return values[:: _distance(len(values))].float().cpu().numpy()

    return _fingerprint((name, tuple(tensor.shape), sample(tensor)) for name, tensor in tensors.items())


def folder_weights_fingerprint(folder: str | os.PathLike) -> str | None:
    """That of the weights in a model folder, or None if it has none (or is an id of the Hub).

    Raises:
        ValueError: a file of weights is damaged; names it.
    """
    files = sorted(Path(folder).glob("model*.safetensors")) if Path(folder).is_dir() else []
    tensors = {name: (shape, values) for file in files for name, shape, values in sample_weights(file)}
    return _fingerprint((name, *found) for name, found in tensors.items()) if tensors else None


def sample_weights(file: Path) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Of each weight in a safetensors file its name, shape, and the values that a fingerprint is of, as float32.

    Read from the mapped file without torch, which takes seconds to import.

    Raises:
        ValueError: the file is damaged, or has a type of number that is not one of weights; names it.
    """
    try:
        content = np.memmap(file, dtype=np.uint8, mode="r")
        (header_size,) = struct.unpack("<Q", content[:8].tobytes())
        if header_size > min(len(content) - 8, MAX_JSON_BYTES):
            raise ValueError(f"its header would have {header_size:,} bytes")
        for name, entry in json.loads(content[8 : 8 + header_size].tobytes()).items():
            if name == "__metadata__":
                continue
            start, end = (8 + header_size + offset for offset in entry["data_offsets"])
            values = np.frombuffer(content, _STORED[entry["dtype"]], math.prod(entry["shape"]), start)
            if not 8 + header_size <= start <= end <= len(content) or values.nbytes != end - start:
                raise ValueError(f"{name} is not where the header says")
            values = values[:: _distance(len(values))]
            if entry["dtype"] == "BF16":  # the upper half of a float32
                values = (values.astype(np.uint32) << 16).view(np.float32)
            yield name, tuple(entry["shape"]), values.astype(np.float32)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from error


class StaleError(ValueError):
    """A file was made from other weights than those beside it, or by another version of this package."""


def refuse_stale(file: str | os.PathLike, made_from: str | None, folder: str | os.PathLike, remedy: str) -> None:
    """Refuse a file whose fingerprint is not that of the folder's weights; warn where it has none.

    Args:
        file: what was made.
        made_from: its fingerprint.
        folder: of the weights; where there are none, or for an id of the Hub, nothing is known.
        remedy: the command that makes it anew.

    Raises:
        StaleError: says how to make it.
    """
    weights = folder_weights_fingerprint(folder)
    if weights is None or made_from == weights:
        return
    if made_from is None:
        warnings.warn(f"{file} does not say which weights it was made from; make it anew: {remedy}", stacklevel=3)
        return
    raise StaleError(f"{file} was made from other weights than those in {folder}. Make it anew: {remedy}")


def _distance(num_values: int) -> int:
    """Every so many-th value is looked at."""
    return max(1, num_values // _SAMPLED)


def _fingerprint(tensors: Iterable[tuple[str, tuple[int, ...], np.ndarray]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, shape, sample in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {shape}".encode() + sample.tobytes())
    return digest.hexdigest()
