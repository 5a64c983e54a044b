"""The arrays of a shortlist, read, checked and looked up without torch; see `lvnar_hf.engines.shortlist`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from lvnar_hf.files.fingerprints import KEY as FINGERPRINT
from lvnar_hf.files.fingerprints import refuse_stale

FILE = "shortlist.safetensors"
HOW = "from the training text, in a checkout of lvnar-hf"


class TriedTokens(NamedTuple):
    """Which target tokens are tried for a sentence: the fields of `Shortlist`, as arrays."""

    candidates: np.ndarray
    frequent: np.ndarray
    min_confidence: np.ndarray

    def candidates_of(self, input_ids: np.ndarray, attention_mask: np.ndarray, config: Any) -> np.ndarray:
        """The tokens tried for each sentence, once each: (batch, largest number of them) int64, padded on the right.

        With alignment "ctc" blank, which is the padding id, is always one of them.

        Args:
            input_ids, attention_mask: (batch, source_length).
        """
        tokens = self.candidates[input_ids]  # (batch, source_length, k)
        tokens = np.where(attention_mask[..., None] == 0, config.pad_token_id, tokens)
        num_sentences, num_targets = len(tokens), config.decoder_vocab_size
        is_tried = np.zeros((num_sentences, num_targets), dtype=bool)
        is_tried[:, self.frequent] = True
        is_tried[np.arange(num_sentences)[:, None], tokens.reshape(num_sentences, -1)] = True
        is_tried[:, config.pad_token_id] = config.alignment == "ctc"
        counts = is_tried.sum(-1)
        result = np.full((num_sentences, max(1, counts.max())), config.pad_token_id, dtype=np.int64)
        result[np.arange(result.shape[1]) < counts[:, None]] = is_tried.nonzero()[1]
        return result


def load_tried_tokens(file: str | Path, config: Any) -> TriedTokens:
    """From the file of a shortlist, for a model.

    Raises:
        ValueError: the file is damaged, or is of another model's vocabularies; names it.
    """
    names = TriedTokens._fields
    try:
        with safe_open(str(file), "np") as tensors:
            tokens = TriedTokens(*map(tensors.get_tensor, names))
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no shortlist: {error}") from error
    expected = ((np.int32, 2), (np.int32, 1), (np.float32, 0))
    for name, array, (dtype, rank) in zip(names, tokens, expected, strict=True):
        if array.dtype != dtype or array.ndim != rank:
            raise ValueError(
                f"{file}: {name} is {array.dtype} of the shape {array.shape}; it must be {np.dtype(dtype)} with {rank} "
                "dimensions."
            )
    num_targets = config.decoder_vocab_size
    if any(bool(((array < 0) | (array >= num_targets)).any()) for array in (tokens.candidates, tokens.frequent)):
        raise ValueError(f"{file} is no shortlist of target ids 0 to {num_targets - 1}.")
    if bool(np.isnan(tokens.min_confidence)):
        raise ValueError(f"{file}: min_confidence is not a number.")
    if len(tokens.candidates) != config.vocab_size:
        raise ValueError(f"{file} is for {len(tokens.candidates)} source tokens; the model has {config.vocab_size}.")
    return tokens


def refuse_stale_shortlist(file: str | Path, name: str | os.PathLike) -> None:
    """Refuse a shortlist that was made for other weights than those of a model, where those are in a folder.

    Raises:
        StaleError: says how to make it.
    """
    with safe_open(str(file), "np") as stored:
        made_from = (stored.metadata() or {}).get(FINGERPRINT)
    remedy = f"python training/shortlist.py --config RECIPE --model {name} --overwrite, {HOW}"
    refuse_stale(file, made_from, name, remedy)
