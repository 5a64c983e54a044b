"""Parallel text to token ids: cleaned with counted reasons, tokenised once, kept in a file that is mapped into memory.

What is unusual: words are encoded, not sentences. Text repeats its words, and a tokenizer that splits at spaces gives a
sentence the ids of its words one after another. Words that might do otherwise are checked when they are first seen.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lvnar_hf.ctc_lvnar import num_ctc_cells
from lvnar_hf.files.atomic import whole_folder
from training.data.corpora import TextPairs, file_stamps, load_distilled_pairs, load_pairs, load_text_pairs

__all__ = [
    "REASONS",
    "TokenizedPairs",
    "load_distilled_pairs",
    "load_pairs",
    "load_text_pairs",
    "pair_lengths",
    "tokenize_pairs",
]

# Why a pair is left out, in the order in which the reasons are tried; the first that holds is counted.
REASONS = ("malformed", "empty", "too_long", "length_ratio", "length_difference", "not_alignable", "duplicate")
CACHE_VERSION = 2  # one more whenever the same text and tokenizer would give other files
# What tokenizer_config.json says of the model and of where the tokenizer was loaded from.
NOT_OF_THE_IDS = ("model_max_length", "name_or_path", "is_local", "local_files_only")
CHUNK_SIZE = 8192  # pairs that a worker takes at once
CACHED_WORDS = 300_000  # words of a side whose ids a worker remembers, about 200 bytes each
LONGEST_CACHED_WORD = 40  # characters
# Printable ASCII and the Latin letters after it: nothing that could join its neighbours or turn into a space.
PLAIN_WORD = re.compile("[!-~À-ɏ]+")


class TokenizedPairs(Dataset):
    """A dataset with `row_id`, `input_ids`, `labels`, `source_length` and `target_length`.

    Batches of rows are fetched from its file without the detour by Python lists: ids are int64 arrays there, and the
    lengths are left out.
    """

    _views: "_Views | None" = None

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        if self._indices is not None or self._format_type is not None:
            return super().__getitems__(keys)
        if self._views is None:
            self._views = _Views(self.data)
        return self._views.rows(np.asarray(keys, np.int64))

    def __getstate__(self) -> dict[str, Any]:
        # The views would be copied out of the mapped file.
        return {**self.__dict__, "_views": None}


class _Views:
    """Arrays that look into the file of `TokenizedPairs`, one for each record batch and column."""

    def __init__(self, table: datasets.table.Table):
        batches = [batch for batch in table.to_batches() if batch.num_rows]
        self.starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.row_ids = [batch.column("row_id").to_numpy() for batch in batches]
        self.sides = []
        for name in ("input_ids", "labels"):
            # `values` and `offsets` are those of the whole array, even where a batch is a slice of one.
            columns = [batch.column(name) for batch in batches]
            offsets = np.concatenate([np.zeros(0, np.int32), *(column.offsets.to_numpy() for column in columns)])
            self.sides.append((offsets, [column.values.to_numpy() for column in columns]))

    def rows(self, keys: np.ndarray) -> list[dict[str, Any]]:
        """The rows of these numbers, (rows,)."""
        if len(keys) and not 0 <= keys.min() <= keys.max() < self.starts[-1]:
            raise IndexError(f"rows {keys.min()} to {keys.max()} of {self.starts[-1]}")
        batches = self.starts.searchsorted(keys, "right") - 1
        within = (keys - self.starts[batches]).tolist()
        columns = []
        for offsets, values in self.sides:
            # Each batch has one offset more than rows.
            begins, ends = offsets[keys + batches].tolist(), offsets[keys + batches + 1].tolist()
            columns.append(
                [
                    values[batch][begin:end].astype(np.int64)
                    for batch, begin, end in zip(batches.tolist(), begins, ends, strict=True)
                ]
            )
        row_ids = [int(self.row_ids[batch][row]) for batch, row in zip(batches.tolist(), within, strict=True)]
        return [
            {"row_id": row_id, "input_ids": source, "labels": target}
            for row_id, source, target in zip(row_ids, *columns, strict=True)
        ]


def pair_lengths(pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths in tokens of all pairs, (pairs,) int32 each, without a loop over rows."""
    if pairs._indices is not None:
        pairs = pairs.flatten_indices()
    source, target = (pairs.data.column(name).to_numpy() for name in ("source_length", "target_length"))
    return source, target


def tokenize_pairs(
    pairs: TextPairs | Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_length_offset: int | None,
    *,
    max_length_ratio: float = 0.0,
    upsampling_ratio: float | None = None,
    remove_duplicates: bool = False,
    num_workers: int = 1,
    cache_folder: str | Path | None = None,
) -> tuple[TokenizedPairs, dict[str, int]]:
    """Token ids of the pairs a model can be trained on, and how many pairs were left out for which reason.

    What is made of `TextPairs` is kept on disk and found again if the text, the tokenizer and all arguments that decide
    the result are the same. A `Dataset` is tokenised in memory.

    Args:
        pairs: with the columns `row_id`, `source` and `target`.
        tokenizer: gives `input_ids` and, by `text_target`, `labels`.
        max_length: longest side in tokens.
        max_length_offset: largest difference between the sides in tokens; None: any.
        max_length_ratio: largest ratio of the longer to the shorter side, in tokens with </s>; 0: any.
        upsampling_ratio: of a model with CTC alignment, which cannot say a target whose tokens, and a blank between
            equal neighbours, are more than its cells; None: a model without.
        remove_duplicates: leave out a pair if the same source and target were kept before.
        num_workers: processes that tokenise; the result is the same for any number.
        cache_folder: for what is kept on disk; None: a folder in that of `datasets`.

    Returns:
        The pairs that are kept, in order; counts with the keys `kept` and those of `REASONS`, and what reading
        counts: of augmented text, how many pairs of each kind were there before any was left out.

    Raises:
        ValueError: `upsampling_ratio` is not above 0.
        OSError: the disk is full, or the folder cannot be written to; nothing half-written is left to be read.
    """
    if upsampling_ratio is not None and upsampling_ratio <= 0:
        raise ValueError(f"upsampling_ratio is {upsampling_ratio}; it must be above 0, or None.")
    cleaning = Cleaning(max_length, max_length_offset, max_length_ratio, upsampling_ratio, remove_duplicates)
    encoder = PairEncoder(tokenizer, cleaning)
    if isinstance(pairs, Dataset):
        sink = pa.BufferOutputStream()
        counts = _write_pairs(_dataset_chunks(pairs), encoder, num_workers, sink, len(pairs))
        return TokenizedPairs.from_buffer(sink.getvalue()), counts
    if cache_folder is None:
        cache_folder = Path(datasets.config.HF_DATASETS_CACHE) / "lvnar_hf"
    key = {
        "version": CACHE_VERSION,
        "text": pairs.key,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "cleaning": vars(cleaning),
    }
    return _PairCache(Path(cache_folder), key).load_or_write(pairs, encoder, num_workers)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the files that `save_pretrained` writes, except what has no bearing on the ids of a text."""
    hashed = hashlib.sha256()
    if (kytea_model := getattr(tokenizer, "kytea_model", None)) is not None:
        hashed.update(json.dumps(file_stamps([kytea_model])).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            if not file.is_file():
                continue
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":
                config = json.loads(content)
                for name in NOT_OF_THE_IDS:
                    config.pop(name, None)
                content = json.dumps(config, sort_keys=True).encode()
            hashed.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
    return hashed.hexdigest()


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


# text to ids


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
        hashes = (
            [_hash_pair(sources[index], targets[index]) for index in kept] if self.cleaning.remove_duplicates else None
        )
        source_ids, target_ids = (np.frombuffer(b"".join([side[index] for index in kept]), self.dtype) for side in ids)
        return EncodedChunk(
            np.array([row_ids[index] for index in kept], np.int64),
            source_ids,
            target_ids,
            np.array([source_lengths[index] for index in kept], np.int32),
            np.array([target_lengths[index] for index in kept], np.int32),
            None if hashes is None else np.array(hashes, np.uint64),
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


def _hash_pair(source: str, target: str) -> int:
    """64 bits: for 4.5 million pairs, two different ones share a hash once in two million corpora."""
    return int.from_bytes(hashlib.blake2b(f"{source}\n{target}".encode(), digest_size=8).digest(), "little")


# chunks, in order, through the workers


def _text_chunks(pairs: TextPairs) -> Iterator[Chunk]:
    rows = pairs.read()
    for start in itertools.count(0, CHUNK_SIZE):
        part = list(itertools.islice(rows, CHUNK_SIZE))
        if not part:
            return
        yield Chunk(list(range(start, start + len(part))), *map(list, zip(*part, strict=True)))


def _dataset_chunks(pairs: Dataset) -> Iterator[Chunk]:
    for rows in pairs.iter(CHUNK_SIZE):
        yield Chunk(rows["row_id"], rows["source"], rows["target"])


def _encode_chunks(chunks: Iterator[Chunk], encoder: PairEncoder, num_workers: int) -> Iterator[EncodedChunk]:
    """Encode chunks in their order; in processes of their own if there is more than one chunk and one worker."""
    head = list(itertools.islice(chunks, 2))
    chunks = itertools.chain(head, chunks)
    if num_workers < 2 or len(head) < 2:
        yield from map(encoder, chunks)
        return
    # On Linux the workers are forked, as those of PyTorch's loader are: started at once, and nothing is pickled.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(num_workers, context, _start_worker, (encoder,)) as workers:
        waiting: deque[Future[EncodedChunk]] = deque()
        try:
            for chunk in chunks:
                waiting.append(workers.submit(_encode_in_worker, chunk))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


_worker_encoder: PairEncoder


def _start_worker(encoder: PairEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    # The workers are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent is killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    return _worker_encoder(chunk)


# the file


def _write_pairs(
    chunks: Iterator[Chunk], encoder: PairEncoder, num_workers: int, sink: BinaryIO | pa.NativeFile, total: int | None
) -> dict[str, int]:
    """Write what is kept as an Arrow stream, a record batch a chunk; return the counts."""
    ids = pa.list_(pa.from_numpy_dtype(encoder.dtype))
    schema = pa.schema(
        {
            "row_id": pa.int64(),
            "input_ids": ids,
            "labels": ids,
            "source_length": pa.int32(),
            "target_length": pa.int32(),
        }
    )
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    with (
        pa.ipc.new_stream(sink, schema) as writer,
        tqdm(total=total, unit=" pairs", desc="tokenising", mininterval=1.0, disable=None) as bar,
    ):
        for chunk in _encode_chunks(chunks, encoder, num_workers):
            bar.update(chunk.counts.total())
            if chunk.hashes is not None:
                chunk = chunk.select(_is_new(chunk.hashes, seen))
                num_duplicates = chunk.counts["kept"] - len(chunk.row_ids)
                chunk.counts.update(kept=-num_duplicates, duplicate=num_duplicates)
            counts.update(chunk.counts)
            columns = [
                pa.array(chunk.row_ids),
                _list_array(chunk.source_ids, chunk.source_lengths),
                _list_array(chunk.target_ids, chunk.target_lengths),
                pa.array(chunk.source_lengths),
                pa.array(chunk.target_lengths),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return {name: counts[name] for name in ("kept", *REASONS)}


def _is_new(hashes: np.ndarray, seen: set[int]) -> np.ndarray:
    """Which of the hashes are not in `seen`, nor earlier among themselves; they are added to it."""
    is_new = np.zeros(len(hashes), bool)
    for index, value in enumerate(hashes.tolist()):
        if value not in seen:
            seen.add(value)
            is_new[index] = True
    return is_new


def _list_array(ids: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))


class _PairCache:
    """A folder that holds tokenised pairs, named by a hash of all that decides them.

    It is complete or not there. Of several processes one writes.
    """

    def __init__(self, folder: Path, key: dict[str, Any]):
        # As JSON gives it back, so that it can be compared.
        self.key = json.loads(json.dumps(key))
        self.folder = folder / f"pairs-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}"

    def load_or_write(
        self, pairs: TextPairs, encoder: PairEncoder, num_workers: int
    ) -> tuple[TokenizedPairs, dict[str, int]]:
        found = self._load()
        if found is not None:
            return found
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            found = self._load()
            if found is not None:  # written while this process waited
                return found
            # With the lock held nobody else is writing.
            with whole_folder(self.folder) as unfinished:
                self._write(unfinished, pairs, encoder, num_workers)
        found = self._load()
        assert found is not None
        return found

    def _write(self, folder: Path, pairs: TextPairs, encoder: PairEncoder, num_workers: int) -> None:
        with (folder / "pairs.arrow").open("wb") as file:
            counts = _write_pairs(_text_chunks(pairs), encoder, num_workers, file, None) | pairs.counts
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        description = {"counts": counts, "num_bytes": size, "key": self.key}
        (folder / "pairs.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")

    def _load(self) -> tuple[TokenizedPairs, dict[str, int]] | None:
        """What is there, or None; a file that was damaged since counts as not there."""
        file = self.folder / "pairs.arrow"
        try:
            description = json.loads((self.folder / "pairs.json").read_text("utf-8"))
            if description["key"] != self.key or description["num_bytes"] != file.stat().st_size:
                return None
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return TokenizedPairs.from_file(str(file)), description["counts"]
