"""How much faster the ELBO from many samples is than as many passes of the model, on the same sentences in one run.

    python training/time_elbo.py --model model_cards/lvnar-tatoeba-en-de --source_file data/tatoeba_en-de/test.en \
        --target_file data/tatoeba_en-de/test.de --num_sentences 128 --output_file runs/elbo_speed.json

A pass draws one latent a sentence. It is timed sentence by sentence and in batches of the same sentences that
`elbo_of_sequences` has: source and target are encoded once there, decoder and vocabulary still see every sample, so in
batches the gain is bounded by their share of a pass.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from training.data.evaluation_sets import TestSetArguments, load_test_set

BATCH_SIZES = (1, 64)


@dataclass
class ElboTimingArguments:
    """What is timed."""

    model: str = field(metadata={"help": "folder or Hub id of a model of this package"})
    output_file: str = field(metadata={"help": "JSON with the result"})
    num_samples: int = field(default=20, metadata={"help": "latent samples per sentence"})
    num_repeats: int = field(default=3, metadata={"help": "times that each way is timed"})
    overwrite: bool = field(default=False, metadata={"help": "write over an output file"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Time both ways in turns, print and write the medians; return what is in the JSON."""
    arguments, named = HfArgumentParser((ElboTimingArguments, TestSetArguments)).parse_args_into_dataclasses(argv)

    import torch

    import lvnar_hf  # noqa: F401  (registers model and tokenizer)
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.loading import load_model, load_tokenizer
    from training.quality.elbo import can_be_scored, elbo_of_sequences, pad_rows

    refuse_missing_folder(arguments.model)
    refuse_existing(arguments.output_file, arguments.overwrite, "--output_file")
    test_set = load_test_set(named)
    model: Any = load_model(arguments.model, dtype=torch.float32).eval()
    tokenizer: Any = load_tokenizer(arguments.model)
    ids = zip(
        tokenizer(test_set.source_texts, verbose=False)["input_ids"],
        tokenizer(text_target=test_set.target_texts, verbose=False)["input_ids"],
        strict=True,
    )
    pairs = sorted((pair for pair in ids if can_be_scored(model, *pair)), key=lambda pair: tuple(map(len, pair)))
    sources, targets = map(list, zip(*pairs, strict=True))
    generator = torch.Generator().manual_seed(0)

    def passes(batch_size: int) -> None:
        for start in range(0, len(sources), batch_size):
            rows = slice(start, start + batch_size)
            input_ids = pad_rows(sources[rows], model.config.pad_token_id)
            with torch.no_grad():
                model(input_ids, labels=pad_rows(targets[rows], -100), generator=generator)

    def many_samples(batch_size: int) -> None:
        elbo_of_sequences(model, sources, targets, arguments.num_samples, seed=0, batch_size=batch_size)

    ways: dict[tuple[str, int], Callable[[], None]] = {}
    for size in BATCH_SIZES:
        ways["one pass", size] = partial(passes, size)
        ways["many samples", size] = partial(many_samples, size)
    seconds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for repeat in range(-1, arguments.num_repeats):  # one round of warm-up
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            if repeat >= 0:
                seconds[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    result = {
        "model": arguments.model,
        "test_set": test_set.name,
        "num_sentences": len(sources),
        "num_samples": arguments.num_samples,
        "num_repeats": arguments.num_repeats,
        "batch_sizes": {
            str(size): {
                "seconds_one_pass": medians["one pass", size],
                "seconds_many_samples": medians["many samples", size],
                "times_as_fast": arguments.num_samples * medians["one pass", size] / medians["many samples", size],
            }
            for size in BATCH_SIZES
        },
        "machine": describe_machine(model.device),
        "versions": describe_versions(),
    }
    write_json(Path(arguments.output_file), result)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
