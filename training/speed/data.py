"""Times and memory of tokenising a recipe's text and of fetching its batches."""

import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lvnar_hf import LvnarTokenizer
from training.data.batching import TokenBudgetBatchSampler, TranslationCollator
from training.data.corpora import load_raw_pairs
from training.data.encoding import tokenize_pairs
from training.data.tokenized_pairs import pair_lengths
from training.sections import DataArguments, ModelArguments, OptimizationArguments


def time_tokenising(data: DataArguments, sizes: ModelArguments) -> dict[str, Any]:
    """Read, clean and tokenise the training text, and write it."""
    begin, cpu_begin = time.perf_counter(), sum(os.times()[:4])
    pairs, counts = _tokenise(data, sizes)
    seconds, cpu_seconds = time.perf_counter() - begin, sum(os.times()[:4]) - cpu_begin
    num_pairs = sum(counts.values())
    return {
        "counts": counts,
        "mean_source_length": float(pair_lengths(pairs)[0].mean()),
        "mean_target_length": float(pair_lengths(pairs)[1].mean()),
        "tokenising": {
            "seconds": seconds,
            "pairs_per_second": num_pairs / seconds,
            # Others on the machine slow the first figure more than this one.
            "pairs_per_cpu_second": num_pairs / cpu_seconds,
            "peak_memory_mb": peak_memory_mb(resource.RUSAGE_SELF),
            "peak_memory_of_a_worker_mb": peak_memory_mb(resource.RUSAGE_CHILDREN),
            "file_mb": sum(Path(file["filename"]).stat().st_size for file in pairs.cache_files) / 1e6,
        },
    }


def time_batches(
    data: DataArguments, sizes: ModelArguments, optimization: OptimizationArguments, num_batches: int, started: float
) -> dict[str, Any]:
    """Open what is tokenised, plan an epoch and fetch batches as a run does.

    Args:
        num_batches: fetched at most; 0: all.
        started: when the process began, by `time.perf_counter`.
    """
    pairs, _ = _tokenise(data, sizes)
    opened = time.perf_counter()
    source_lengths, target_lengths = pair_lengths(pairs)
    sampler = TokenBudgetBatchSampler(
        source_lengths, target_lengths, optimization.max_tokens_per_batch, optimization.seed
    )
    planned = time.perf_counter()
    collate = TranslationCollator(pad_token_id=0)
    fetching, collating, num_pairs, num_tokens, num_places = [], [], [], 0, 0
    first = 0.0
    for indices in sampler.batches[: num_batches or None]:
        begin = time.perf_counter()
        rows = pairs.__getitems__(indices)
        fetched = time.perf_counter()
        batch = collate(rows)
        end = time.perf_counter()
        first = first or end - started
        fetching.append(fetched - begin)
        collating.append(end - fetched)
        num_pairs.append(len(rows))
        num_tokens += int(batch["attention_mask"].sum() + (batch["labels"] >= 0).sum())
        num_places += batch["input_ids"].numel() + batch["labels"].numel()
    return {
        "seconds_to_first_batch": first,
        "seconds_to_open": opened - started,
        "seconds_to_plan": planned - opened,
        "num_batches": len(sampler),
        "num_batches_fetched": len(fetching),
        "pairs_per_batch": statistics.mean(num_pairs),
        "milliseconds_to_fetch_100_pairs": 1e5 * sum(fetching) / sum(num_pairs),
        "milliseconds_to_collate_100_pairs": 1e5 * sum(collating) / sum(num_pairs),
        "median_milliseconds_a_batch": 1e3 * statistics.median(map(sum, zip(fetching, collating, strict=True))),
        "padding_share": 1 - num_tokens / num_places,
        "peak_memory_mb": peak_memory_mb(resource.RUSAGE_SELF),
    }


def _tokenise(data: DataArguments, sizes: ModelArguments) -> Any:
    tokenizer = LvnarTokenizer.from_pretrained(data.tokenizer_folder)
    return tokenize_pairs(
        load_raw_pairs(data),
        tokenizer,
        min(data.max_sentence_length, sizes.max_position_embeddings),
        sizes.max_length_offset,
        max_length_ratio=data.max_length_ratio,
        remove_duplicates=data.remove_duplicates,
        num_workers=data.num_workers,
        cache_folder=data.cache_folder,
    )


def peak_memory_mb(whose: int) -> float:
    """Largest resident memory so far, pages of mapped files included; of children, that of the largest."""
    return resource.getrusage(whose).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
