"""Parallel text to token ids: read, cleaned with counted reasons, tokenised."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from training.text import check_parallel, read_files

TEXT_FEATURES = Features({"row_id": Value("int64"), "source": Value("string"), "target": Value("string")})


def load_text_pairs(source_files: Sequence[str], target_files: Sequence[str]) -> Dataset:
    """Line-aligned files to a dataset with the columns `row_id` (from 0), `source` and `target`.

    Raises:
        FileNotFoundError, ValueError: what `check_parallel` refuses.
    """
    check_parallel(source_files, target_files)
    # The sizes and times are part of what `datasets` caches by, so that an edited file is read again.
    # Tuples, since `datasets` takes lists for shards.
    stamps = tuple((Path(p).stat().st_size, Path(p).stat().st_mtime_ns) for p in (*source_files, *target_files))
    return Dataset.from_generator(
        _generate_rows,
        features=TEXT_FEATURES,
        gen_kwargs={"source_files": tuple(source_files), "target_files": tuple(target_files), "stamps": stamps},
    )


def _generate_rows(
    source_files: tuple[str, ...], target_files: tuple[str, ...], stamps: tuple
) -> Iterator[dict[str, Any]]:
    sides = zip(read_files(source_files), read_files(target_files), strict=True)
    for row_id, (source, target) in enumerate(sides):
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
