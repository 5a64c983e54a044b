"""Parallel text to token ids: read, cleaned with counted reasons, tokenised."""

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from training.text import read_lines

TEXT_FEATURES = Features({"row_id": Value("int64"), "source": Value("string"), "target": Value("string")})


def load_text_pairs(source_files: Sequence[str], target_files: Sequence[str]) -> Dataset:
    """Line-aligned files to a dataset with the columns `row_id` (from 0), `source` and `target`.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: if no files are given, or the sides have different numbers of lines, or a line is not UTF-8.
    """
    if not source_files or not target_files:
        raise ValueError(f"Both sides need text files; given source {source_files}, target {target_files}.")
    for path in (*source_files, *target_files):
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no text file {path}.")
    # The sizes and times are part of what `datasets` caches by, so that an edited file is read again.
    # Tuples, since `datasets` takes lists for shards.
    stamps = tuple((Path(p).stat().st_size, Path(p).stat().st_mtime_ns) for p in (*source_files, *target_files))
    counts = [sum(1 for _ in chain.from_iterable(map(read_lines, files))) for files in (source_files, target_files)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"The sides have different numbers of lines: {counts[0]} in {list(source_files)}, "
            f"{counts[1]} in {list(target_files)}."
        )
    return Dataset.from_generator(
        _generate_rows,
        features=TEXT_FEATURES,
        gen_kwargs={"source_files": tuple(source_files), "target_files": tuple(target_files), "stamps": stamps},
    )


def _generate_rows(
    source_files: tuple[str, ...], target_files: tuple[str, ...], stamps: tuple
) -> Iterator[dict[str, Any]]:
    sides = (chain.from_iterable(map(read_lines, files)) for files in (source_files, target_files))
    for row_id, (source, target) in enumerate(zip_longest(*sides)):
        yield {"row_id": row_id, "source": source, "target": target}


def tokenize_pairs(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, max_length_offset: int
) -> tuple[Dataset, dict[str, int]]:
    """Token ids of the pairs a model can be trained on, and how many pairs were left out for which reason.

    Args:
        pairs: with the columns `row_id`, `source` and `target`.
        tokenizer: gives `input_ids` and, by `text_target`, `labels`.
        max_length: longest side in tokens.
        max_length_offset: largest difference between the sides in tokens.

    Returns:
        A dataset with `row_id`, `input_ids`, `labels`, `source_length`, `target_length`; counts with the keys `kept`,
        `empty`, `too_long` and `length_difference`, the reasons tried in this order.
    """

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(rows["source"], text_target=rows["target"])
        reasons = []
        for source, target, source_ids, target_ids in zip(
            rows["source"], rows["target"], encoded["input_ids"], encoded["labels"], strict=True
        ):
            if not source.strip() or not target.strip():
                reasons.append("empty")
            elif max(len(source_ids), len(target_ids)) > max_length:
                reasons.append("too_long")
            elif abs(len(source_ids) - len(target_ids)) > max_length_offset:
                reasons.append("length_difference")
            else:
                reasons.append("kept")
        return {
            "input_ids": encoded["input_ids"],
            "labels": encoded["labels"],
            "source_length": [len(ids) for ids in encoded["input_ids"]],
            "target_length": [len(ids) for ids in encoded["labels"]],
            "reason": reasons,
        }

    tokenized = pairs.map(tokenize, batched=True, remove_columns=["source", "target"], desc="tokenising")
    reasons = tokenized.with_format("numpy")["reason"][:]
    counts = {name: int((reasons == name).sum()) for name in ("kept", "empty", "too_long", "length_difference")}
    kept = tokenized.select((reasons == "kept").nonzero()[0])
    return kept.remove_columns("reason"), counts
