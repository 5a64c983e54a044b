"""Latency at the paper's sizes beside an autoregressive Transformer of the same sizes, random weights, one run.

    python training/benchmark.py --output_file runs/benchmark.json

Every system translates the same source of 25 tokens into 25 tokens, one sentence at a time; repeats are interleaved.
What is timed is `generate` alone: no tokenizer, no loading. The baseline is transformers' MarianMTModel (6-6 layers)
with its key-value cache.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from transformers import HfArgumentParser, MarianConfig, MarianMTModel

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration
from training.outputs import refuse_existing

NUM_STEPS = (0, 1, 3)


@dataclass
class BenchmarkArguments:
    """How much is timed."""

    length: int = field(default=25, metadata={"help": "source and target tokens, end-of-sentence included"})
    num_repeats: int = field(default=15, metadata={"help": "timed calls of each system"})
    num_threads: int = field(default=2, metadata={"help": "CPU threads"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with every time"})
    overwrite: bool = field(default=False, metadata={"help": "write over an output file"})

    def __post_init__(self) -> None:
        if self.num_repeats < 2:
            raise ValueError(f"num_repeats is {self.num_repeats}; a spread needs at least 2.")


def lvnar_model() -> LvnarForConditionalGeneration:
    """The paper's WMT14 sizes; the length predictor is set to predict the source's length."""
    model = LvnarForConditionalGeneration(LvnarConfig()).eval()
    with torch.no_grad():
        model.length_predictor.proj.weight.zero_()
        model.length_predictor.proj.bias.zero_()
        model.length_predictor.proj.bias[model.config.max_length_offset] = 1.0
    return model


def marian_model() -> MarianMTModel:
    """The base Transformer of the same sizes: 6 + 6 layers, one joint vocabulary, tied output projection."""
    sizes = LvnarConfig()
    config = MarianConfig(
        vocab_size=sizes.vocab_size,
        d_model=sizes.hidden_size,
        encoder_layers=6,
        decoder_layers=6,
        encoder_ffn_dim=sizes.intermediate_size,
        decoder_ffn_dim=sizes.intermediate_size,
        encoder_attention_heads=sizes.num_attention_heads,
        decoder_attention_heads=sizes.num_attention_heads,
        activation_function="relu",
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=None,
        decoder_start_token_id=0,
    )
    return MarianMTModel(config).eval()


def source_that_keeps_changing(model: LvnarForConditionalGeneration, length: int, num_steps: int) -> torch.Tensor:
    """A random source, (1, length), whose translation no refinement step leaves as it was: all steps are then timed."""
    for _ in range(1000):
        source = torch.randint(3, model.config.vocab_size, (1, length))
        output: Any = model.generate(source, num_refinement_steps=num_steps + 1, return_dict_in_generate=True)
        if int(output.num_steps_taken) == num_steps + 1:
            return source
    raise RuntimeError(f"No source in 1,000 takes {num_steps} steps with these random weights; try another seed.")


def systems(lvnar: LvnarForConditionalGeneration, length: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What is timed, by name: source ids (1, length) to translations."""
    marian = marian_model()
    forced: dict[str, Any] = {"min_new_tokens": length, "max_new_tokens": length, "use_cache": True, "do_sample": False}
    timed: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for num_steps in NUM_STEPS:
        options: dict[str, Any] = {"num_refinement_steps": num_steps, "remove_repetitions": False}
        timed[f"lvnar, eager, {num_steps} step{'s' * (num_steps != 1)}"] = partial(lvnar.generate, **options)
    for num_beams in (1, 3):
        timed[f"marian 6-6, cache, beam {num_beams}"] = partial(marian.generate, num_beams=num_beams, **forced)
    return timed


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Time every system, print a table and one JSON line last; return what is in the JSON."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses(argv)
    torch.set_num_threads(arguments.num_threads)
    torch.manual_seed(0)
    if arguments.output_file is not None:
        refuse_existing(arguments.output_file, arguments.overwrite, "--output_file")
    lvnar = lvnar_model()
    timed = systems(lvnar, arguments.length)
    source = source_that_keeps_changing(lvnar, arguments.length, max(NUM_STEPS))
    milliseconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(-2, arguments.num_repeats):  # two rounds of warm-up
        for name, translate in timed.items():
            start = time.perf_counter()
            translations = translate(source)
            elapsed = (time.perf_counter() - start) * 1000
            num_tokens = translations.shape[1] - ("marian" in name)  # Marian's output begins with its start token
            if num_tokens != arguments.length:
                raise RuntimeError(f"{name} gave {num_tokens} tokens, not {arguments.length}.")
            if repeat >= 0:
                milliseconds[name].append(elapsed)
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    baseline = "marian 6-6, cache, beam 3"
    result: dict[str, Any] = {
        "what": f"latency in ms, batch 1, {arguments.length} source and target tokens, float32, random weights",
        "baseline": baseline,
        "systems": {
            name: {
                "median_ms": medians[name],
                "mean_ms": statistics.mean(times),
                "std_ms": statistics.stdev(times),
                "speed_up_over_baseline": medians[baseline] / medians[name],
                "times_ms": times,
            }
            for name, times in milliseconds.items()
        },
        "machine": {"processor": describe_processor(), "threads": arguments.num_threads, "cores": os.cpu_count()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(f"{'system':<28} {'median ms':>10} {'std':>7} {'speed-up over ' + baseline:>40}")
    for name, row in result["systems"].items():
        print(f"{name:<28} {row['median_ms']:>10.1f} {row['std_ms']:>7.1f} {row['speed_up_over_baseline']:>40.1f}")
    if arguments.output_file is not None:
        Path(arguments.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps({name: round(median, 1) for name, median in medians.items()}))
    return result


def describe_processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n") if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
