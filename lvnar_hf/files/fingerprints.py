"""Fingerprints: of a model folder; of weights, whether an ONNX graph or a shortlist was made from those beside it."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from lvnar_hf.files.atomic import hash_file

KEY = "weights_fingerprint"  # in the metadata of what was made
_SAMPLED = 64  # values of a tensor; training changes them all


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a model folder's weights, configuration and tokenizer, as 64 hex digits."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".model", ".spm", ".txt") and file.is_file():
            total.update(f"{file.name} {hash_file(file)}\n".encode())
    return total.hexdigest()


def weights_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """32 hex digits, of names, shapes and some values; the same in 16 bits and in 32, if the values are."""
    return _fingerprint(tensors.items())


def folder_weights_fingerprint(folder: str | os.PathLike) -> str | None:
    """That of the weights in a model folder, or None if it has none (or is an id of the Hub)."""
    files = sorted(Path(folder).glob("model*.safetensors")) if Path(folder).is_dir() else []
    tensors = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            tensors.update({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    return weights_fingerprint(tensors) if tensors else None


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


def _fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        values = tensor.detach().flatten()
        sample = values[:: max(1, len(values) // _SAMPLED)].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()
