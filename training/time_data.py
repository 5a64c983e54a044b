"""What a recipe's training text costs before a step is taken: tokenising, planning, fetching; and the memory for it.

    python training/time_data.py --config training/configs/wmt14_en_de.yaml --output_file runs/data_times.json

It reads the sections data, model and training of the recipe. The text is tokenised into a folder of its own, which is
removed; then a fresh process does what a run does that finds it there: open, plan an epoch, fetch batches in the order
of the plan.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

from lvnar_hf import LvnarTokenizer
from lvnar_hf.files.outputs import refuse_existing
from lvnar_hf.jobs.environment import describe_processor
from training.data.batching import TokenBudgetBatchSampler, TranslationCollator
from training.data.encoding import load_pairs, pair_lengths, tokenize_pairs
from training.recipe import DataArguments, ModelArguments, OptimizationArguments, parse_recipe

STARTED = time.perf_counter() - time.process_time()  # about when the process began, before its imports


@dataclass
class TimingArguments:
    """How much is timed; these are flags, not part of a recipe."""

    num_batches: int = field(default=300, metadata={"help": "batches fetched; 0: all of an epoch"})
    is_second_process: bool = field(default=False, metadata={"help": "set by the command itself"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with the result"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and return what is in the JSON.

    Raises:
        ValueError: there is no tokenizer folder; what `load_pairs` refuses.
    """
    sections = {"data": DataArguments, "model": ModelArguments, "training": OptimizationArguments}
    data, sizes, optimization, arguments = parse_recipe({**sections, "timing": TimingArguments}, argv)
    if data.tokenizer_folder is None:
        raise ValueError("Give --tokenizer_folder, or name it in section data of the recipe.")
    if arguments.is_second_process:
        result = time_batches(data, sizes, optimization, arguments.num_batches)
        print(json.dumps(result))
        return result
    if arguments.output_file is not None:
        refuse_existing(arguments.output_file, optimization.overwrite, "--output_file")
    with tempfile.TemporaryDirectory(dir=data.cache_folder) as folder:
        data.cache_folder = folder
        result = time_tokenising(data, sizes)
        # The last of two equal flags holds.
        flags = [*(sys.argv[1:] if argv is None else argv), "--cache_folder", folder, "--is_second_process", "true"]
        command = [sys.executable, str(Path(__file__).resolve()), *flags]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result["batches"] = json.loads(output.splitlines()[-1])
    result["machine"] = {"processor": describe_processor(), "cores": os.cpu_count(), "workers": data.num_workers}
    if arguments.output_file is not None:
        Path(arguments.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))
    return result


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
            "peak_memory_mb": _peak_memory_mb(resource.RUSAGE_SELF),
            "peak_memory_of_a_worker_mb": _peak_memory_mb(resource.RUSAGE_CHILDREN),
            "file_mb": sum(Path(file["filename"]).stat().st_size for file in pairs.cache_files) / 1e6,
        },
    }


def time_batches(
    data: DataArguments, sizes: ModelArguments, optimization: OptimizationArguments, num_batches: int
) -> dict[str, Any]:
    """Open what is tokenised, plan an epoch and fetch batches as a run does."""
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
        first = first or end - STARTED
        fetching.append(fetched - begin)
        collating.append(end - fetched)
        num_pairs.append(len(rows))
        num_tokens += int(batch["attention_mask"].sum() + (batch["labels"] >= 0).sum())
        num_places += batch["input_ids"].numel() + batch["labels"].numel()
    return {
        "seconds_to_first_batch": first,
        "seconds_to_open": opened - STARTED,
        "seconds_to_plan": planned - opened,
        "num_batches": len(sampler),
        "num_batches_fetched": len(fetching),
        "pairs_per_batch": statistics.mean(num_pairs),
        "milliseconds_to_fetch_100_pairs": 1e5 * sum(fetching) / sum(num_pairs),
        "milliseconds_to_collate_100_pairs": 1e5 * sum(collating) / sum(num_pairs),
        "median_milliseconds_a_batch": 1e3 * statistics.median(map(sum, zip(fetching, collating, strict=True))),
        "padding_share": 1 - num_tokens / num_places,
        "peak_memory_mb": _peak_memory_mb(resource.RUSAGE_SELF),
    }


def _tokenise(data: DataArguments, sizes: ModelArguments) -> Any:
    tokenizer = LvnarTokenizer.from_pretrained(data.tokenizer_folder)
    return tokenize_pairs(
        load_pairs(data, "train"),
        tokenizer,
        min(data.max_sentence_length, sizes.max_position_embeddings),
        sizes.max_length_offset,
        max_length_ratio=data.max_length_ratio,
        remove_duplicates=data.remove_duplicates,
        num_workers=data.num_workers,
        cache_folder=data.cache_folder,
    )


def _peak_memory_mb(whose: int) -> float:
    """Largest resident memory so far, pages of mapped files included; of children, that of the largest."""
    return resource.getrusage(whose).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
