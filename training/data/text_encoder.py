"""Parallel text to token ids, a chunk at a time, cleaned with counted reasons.

What is unusual: words are encoded, not sentences. Text repeats its words, and a tokenizer that splits at spaces gives a
sentence the ids of its words one after another. Words that might do otherwise are checked when they are first seen.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lvnar_hf.ctc_lvnar import num_ctc_cells

CACHED_WORDS = 300_000  # words of a side whose ids a worker remembers, about 200 bytes each
LONGEST_CACHED_WORD = 40  # characters
# Printable ASCII and the Latin letters after it: nothing that could join its neighbours or turn into a space.
PLAIN_WORD = re.compile("[!-~À-ɏ]+")


@dataclass
class Cleaning:
    """Which pairs are kept; see `tokenize_pairs`."""

    max_length: int
    max_length_offset: int | None
    max_length_ratio: float
    upsampling_ratio: float | None
    remove_duplicates: bool

    def reason(self, source_length: int, target_length: int, num_repeats: int) -> str:
        """Why a pair of these lengths, in tokens, is left out, or "kept".

        Args:
            num_repeats: how often a token of the target equals the one before it.
        """
        if max(source_length, target_length) > self.max_length:
            return "too_long"
        if 0 < self.max_length_ratio * min(source_length, target_length) < max(source_length, target_length):
            return "length_ratio"
        if self.max_length_offset is not None and abs(source_length - target_length) > self.max_length_offset:
            return "length_difference"
        if self.upsampling_ratio is not None:
            num_cells = num_ctc_cells(source_length, self.upsampling_ratio)
            if target_length + num_repeats > num_cells:
                return "not_alignable"
        return "kept"


@dataclass
class Chunk:
    """Consecutive pairs of text; None and None for a malformed one."""

    row_ids: list[int]
    sources: list[str | None]
    targets: list[str | None]


@dataclass
class EncodedChunk:
    """The pairs of a chunk that are kept: ids one after another, and lengths and hashes, (pairs,)."""

    row_ids: np.ndarray
    source_ids: np.ndarray
    target_ids: np.ndarray
    source_lengths: np.ndarray
    target_lengths: np.ndarray
    hashes: np.ndarray | None
    counts: Counter[str]

    def select(self, is_kept: np.ndarray) -> "EncodedChunk":
        """The pairs at which the mask is true."""
        return EncodedChunk(
            self.row_ids[is_kept],
            self.source_ids[np.repeat(is_kept, self.source_lengths)],
            self.target_ids[np.repeat(is_kept, self.target_lengths)],
            self.source_lengths[is_kept],
            self.target_lengths[is_kept],
            None if self.hashes is None else self.hashes[is_kept],
            self.counts,
        )


class PairEncoder:
    """Chunks of text to chunks of ids, cleaned of all but duplicates, which a worker cannot know of."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cleaning: Cleaning):
        sizes = [len(tokenizer), *(backend.get_vocab_size() for backend in _backends(tokenizer))]
        # The smallest type that holds every id: half the disk, and half the memory of the mapped file.
        self.dtype = np.dtype(np.uint16 if max(sizes) <= 1 << 16 else np.int32)
        self.cleaning = cleaning
        self.encode_source, self.encode_target = (
            SideEncoder(tokenizer, is_target, self.dtype) for is_target in (False, True)
        )

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        counts: Counter[str] = Counter()
        row_ids, sources, targets = [], [], []
        for row_id, source, target in zip(chunk.row_ids, chunk.sources, chunk.targets, strict=True):
            if source is None or target is None:
                counts["malformed"] += 1
            elif not source.strip() or not target.strip():
                counts["empty"] += 1
            else:
                row_ids.append(row_id)
                sources.append(source)
                targets.append(target)
        ids = self.encode_source(sources), self.encode_target(targets)
        source_lengths, target_lengths = ([len(part) // self.dtype.itemsize for part in side] for side in ids)
        num_repeats = _count_repeats(np.frombuffer(b"".join(ids[1]), self.dtype), target_lengths)
        reasons = list(map(self.cleaning.reason, source_lengths, target_lengths, num_repeats))
        counts.update(reasons)
        kept = [index for index, reason in enumerate(reasons) if reason == "kept"]
        hashes: np.ndarray | None = None
        if self.cleaning.remove_duplicates:
            hashes = np.array([hash_text(f"{sources[index]}\n{targets[index]}") for index in kept], np.uint64)
        source_ids, target_ids = (np.frombuffer(b"".join([side[index] for index in kept]), self.dtype) for side in ids)
        return EncodedChunk(
            np.array([row_ids[index] for index in kept], np.int64),
            source_ids,
            target_ids,
            np.array([source_lengths[index] for index in kept], np.int32),
            np.array([target_lengths[index] for index in kept], np.int32),
            hashes,
            counts,
        )


def _count_repeats(ids: np.ndarray, lengths: list[int]) -> list[int]:
    """How many ids of each sequence equal the one before them; `ids` are the sequences one after another."""
    is_repeat = np.concatenate([[False], ids[1:] == ids[:-1]])
    # Before each id and at the end: the repeats so far. A sequence's first id has none before it.
    counts = np.concatenate([[0], np.cumsum(is_repeat)])
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    return (counts[ends] - counts[np.minimum(starts + 1, ends)]).tolist()


class SideEncoder:
    """Texts of one side to ids, each text's as bytes of `dtype`: those of the tokenizer's own call, found faster.

    A text goes to the vocabulary whole if a word of it depends on its neighbours, or if it has no words that come
    again, as Japanese without a segmenter.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, is_target: bool, dtype: np.dtype):
        self.tokenizer, self.is_target, self.dtype = tokenizer, is_target, dtype
        self.cache: dict[str, bytes | None] = {}
        # The tokenizer's own way also puts away the padding and truncation that an earlier call asked for.
        self.ending, self.neighbour = map(self._to_bytes, encode_texts(tokenizer, ["", "a"], is_target))
        self.neighbour = self.neighbour.removesuffix(self.ending)
        backends = _backends(tokenizer)
        self.backend = backends[is_target] if backends and _splits_at_spaces(backends[is_target]) else None
        name = "target_segmenter" if is_target else "source_segmenter"
        self.has_segmenter = getattr(tokenizer, name, "none") != "none"

    def __call__(self, texts: list[str]) -> list[bytes]:
        if self.backend is None:
            return [self._to_bytes(ids) for ids in encode_texts(self.tokenizer, texts, self.is_target)]
        if self.has_segmenter:
            texts = [self.tokenizer.segment(text, self.is_target) for text in texts]
        words = [text.split(" ") for text in texts]
        is_known = [len(parts) > 1 and max(map(len, parts)) <= LONGEST_CACHED_WORD for parts in words]
        self._learn({word for parts, known in zip(words, is_known, strict=True) if known for word in parts})
        results: list[bytes | None] = []
        for parts, known in zip(words, is_known, strict=True):
            pieces: Any = map(self.cache.__getitem__, parts)
            try:
                results.append(b"".join(pieces) + self.ending if known else None)
            except TypeError:  # one of them is None
                results.append(None)
        rest = [text for text, result in zip(texts, results, strict=True) if result is None]
        encodings = iter(self.backend.encode_batch_fast(rest))
        return [self._to_bytes(next(encodings).ids) if result is None else result for result in results]

    def _learn(self, words: set[str]) -> None:
        """Put words into the cache: their ids, or None for a word whose ids depend on its neighbours."""
        assert self.backend is not None
        if len(self.cache) > CACHED_WORDS:
            self.cache.clear()
        new = [word for word in words if word not in self.cache]
        for word, encoding in zip(new, self.backend.encode_batch_fast(new, add_special_tokens=False), strict=True):
            self.cache[word] = self._to_bytes(encoding.ids)
        odd = [word for word in new if not PLAIN_WORD.fullmatch(word)]
        between = self.backend.encode_batch_fast([f"a {word} a" for word in odd], add_special_tokens=False)
        for word, encoding in zip(odd, between, strict=True):
            own = self.cache[word]
            # A word that vanishes leaves its spaces, which may count at the end of a text.
            if not own or self._to_bytes(encoding.ids) != self.neighbour + own + self.neighbour:
                self.cache[word] = None

    def _to_bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str], is_target: bool) -> list[list[int]]:
    """Ids of each text, with </s>, by the tokenizer's own way."""
    if hasattr(tokenizer, "encode_texts"):
        return tokenizer.encode_texts(texts, target=is_target)
    return tokenizer(text_target=texts)["input_ids"] if is_target else tokenizer(texts)["input_ids"]


def _backends(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """The vocabularies of source and target; none for a tokenizer that is not this package's."""
    if not hasattr(tokenizer, "target_backend_tokenizer"):
        return ()
    return tokenizer.backend_tokenizer, tokenizer.target_backend_tokenizer


def _splits_at_spaces(backend: Any) -> bool:
    """Whether a vocabulary cuts a text at every space, and takes the first word like the others."""
    steps = json.loads(backend.to_str())["pre_tokenizer"] or {"type": None}
    return any(
        step["type"] == "Metaspace" and step["prepend_scheme"] == "always" and step.get("split", True)
        for step in steps.get("pretokenizers", [steps])
    )


def hash_text(text: str) -> int:
    """64 bits: of 4.5 million texts, two different ones share a hash once in two million corpora."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
