"""The pairs of a corpus that a model can be trained on: tokenised once, by several processes, and kept in a file.

The text is encoded by `training.data.text_encoder`; what is read back is `training.data.tokenized_pairs`.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lvnar_hf.files.atomic import atomic_folder, hash_file
from lvnar_hf.jobs.processes import end_with_parent
from training.data.corpora import TextPairs, file_hashes
from training.data.text_encoder import Chunk, Cleaning, EncodedChunk, PairEncoder
from training.data.tokenized_pairs import TokenizedPairs

# Why a pair is left out, in the order in which the reasons are tried; the first that holds is counted.
REASONS = ("malformed", "empty", "too_long", "length_ratio", "length_difference", "not_alignable", "duplicate")
CACHE_VERSION = 2  # one more whenever the same text and tokenizer would give other files
# What tokenizer_config.json says of the model and of where the tokenizer was loaded from.
NOT_OF_THE_IDS = ("model_max_length", "name_or_path", "is_local", "local_files_only")
CHUNK_SIZE = 8192  # pairs that a worker takes at once


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
        hashed.update(json.dumps(file_hashes([kytea_model])).encode())
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
    threading.Thread(target=end_with_parent, daemon=True).start()


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
            with atomic_folder(self.folder) as unfinished:
                self._write(unfinished, pairs, encoder, num_workers)
        found = self._load()
        assert found is not None
        return found

    def _write(self, folder: Path, pairs: TextPairs, encoder: PairEncoder, num_workers: int) -> None:
        with (folder / "pairs.arrow").open("wb") as file:
            counts = _write_pairs(_text_chunks(pairs), encoder, num_workers, file, None) | pairs.counts
        description = {"counts": counts, "sha256": hash_file(folder / "pairs.arrow"), "key": self.key}
        (folder / "pairs.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")

    def _load(self) -> tuple[TokenizedPairs, dict[str, int]] | None:
        """What is there, or None; a file that was damaged since counts as not there."""
        file = self.folder / "pairs.arrow"
        try:
            description = json.loads((self.folder / "pairs.json").read_text("utf-8"))
            if description["key"] != self.key or description["sha256"] != hash_file(file):
                return None
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return TokenizedPairs.from_file(str(file)), description["counts"]
