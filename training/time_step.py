"""Where the time of a training step goes: its parts by the clock, its operators by the profiler.

What attention and dropout take is seen by steps without them: their shares are what is saved, backward pass included.

    python training/time_step.py --config training/configs/tatoeba_en_de.yaml --output_file runs/training_step.json

The batch is drawn at random with the sentence length and the token budget of the recipe's training data, so that no
text is needed; loading is measured in the run itself (`loading_share` in its log). The step is that of the trainer on a
CPU: alignment, precision and the first step's settings are the recipe's, and the operators `FastCpuTraining`'s; torch's
own are timed beside them.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.files.outputs import refuse_existing
from lvnar_hf.jobs.environment import describe_processor
from training.loop.cpu_operators import FastCpuTraining
from training.loop.objectives import Batch, LvnarObjective
from training.loop.schedules import settings_at
from training.recipe import ModelArguments, OptimizationArguments, parse_recipe

OPERATORS: dict[str, Callable[[], AbstractContextManager]] = {"fast": FastCpuTraining, "torch": nullcontext}
NUM_SPECIAL_IDS = 3


@dataclass
class TimingArguments:
    """How much is timed; these are flags, not part of a recipe."""

    vocab_size: int = field(default=8000, metadata={"help": "ids of the joint vocabulary"})
    sentence_length: int = field(default=10, metadata={"help": "tokens of every source and target"})
    num_repeats: int = field(default=20, metadata={"help": "timed steps of each kind"})
    num_threads: int = field(default=2, metadata={"help": "CPU threads"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with the result"})


class WithoutOperators(TorchFunctionMode):
    """Within it, attention, dropout or both cost next to nothing; what comes before and after them stays.

    For attention stands a sum of the queries and of the means of keys and values, so that gradients reach all three.
    """

    def __init__(self, *left_out: str):
        super().__init__()
        self.left_out = left_out

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is functional.dropout and "dropout" in self.left_out:
            return args[0]
        if function is functional.scaled_dot_product_attention:
            if "attention" in self.left_out:
                query, key, value = args[:3]
                return query + (key + value).mean(-2, keepdim=True)
            if "dropout" in self.left_out:
                kwargs["dropout_p"] = 0.0
        return function(*args, **kwargs)


LEFT_OUT = {"step": (), "without_attention": ("attention",), "without_dropout": ("dropout",)}


def draw_batch(num_sentences: int, sentence_length: int, vocab_size: int) -> Batch:
    """Random sources and targets without padding; no target has equal neighbours, so that each fits into any cells."""
    shape, num_words = (num_sentences, sentence_length), vocab_size - NUM_SPECIAL_IDS
    differences = torch.randint(1, num_words, shape)
    return {
        "input_ids": torch.randint(NUM_SPECIAL_IDS, vocab_size, shape),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "labels": differences.cumsum(-1) % num_words + NUM_SPECIAL_IDS,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Time the step, print where its time goes, return what is in the JSON.

    Raises:
        FileExistsError: there is an output file, and `--overwrite` is not given.
        ValueError: the recipe asks for fp16, which is for a GPU.
    """
    sections = {"model": ModelArguments, "training": OptimizationArguments, "timing": TimingArguments}
    sizes, optimization, arguments = parse_recipe(sections, argv)
    if arguments.output_file is not None:
        refuse_existing(arguments.output_file, optimization.overwrite, "--output_file")
    if optimization.mixed_precision == "fp16":
        raise ValueError("mixed_precision is 'fp16'; on a CPU it must be 'no' or 'bf16'.")
    torch.set_num_threads(arguments.num_threads)
    torch.manual_seed(optimization.seed)
    model = LvnarForConditionalGeneration(sizes.to_config(arguments.vocab_size, None)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, betas=(0.9, 0.98), fused=True)
    objective = LvnarObjective()
    num_sentences = optimization.max_tokens_per_batch // arguments.sentence_length
    batch = draw_batch(num_sentences, arguments.sentence_length, arguments.vocab_size)
    num_tokens = num_sentences * arguments.sentence_length
    settings = settings_at(optimization, optimization.max_steps, 1, 0.0)
    del settings["learning_rate"]  # it takes no time

    def step(operators: str, left_out: Sequence[str]) -> dict[str, float]:
        """Seconds of each part."""
        times = [time.perf_counter()]
        # The mode that is entered last sees a call first.
        with OPERATORS[operators](), WithoutOperators(*left_out) if left_out else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=optimization.mixed_precision == "bf16"):
                loss, _ = objective.training_loss(model, batch, num_tokens, optimization.label_smoothing, settings)
            times.append(time.perf_counter())
            loss.backward()
        times.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimization.max_grad_norm or float("inf"))
        times.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        parts = ("forward", "backward", "clipping", "optimizer")
        return {part: end - begin for part, begin, end in zip(parts, times[:-1], times[1:], strict=True)}

    kinds = {(way, name): partial(step, way, left_out) for way in OPERATORS for name, left_out in LEFT_OUT.items()}
    seconds: dict[tuple[str, str], list[dict[str, float]]] = {kind: [] for kind in kinds}
    for repeat in range(-2, arguments.num_repeats):  # in turns; two of warm-up
        for kind, work in kinds.items():
            parts = work()
            if repeat >= 0:
                seconds[kind].append(parts)
    own = seconds["fast", "step"]
    medians = {part: statistics.median(parts[part] for parts in own) for part in own[0]}
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            step("fast", ())
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    whole = {kind: statistics.median(sum(parts.values()) for parts in runs) for kind, runs in seconds.items()}
    result = {
        "num_parameters": model.num_parameters(),
        "alignment": sizes.alignment,
        "mixed_precision": optimization.mixed_precision,
        "settings": settings,
        "num_sentences": num_sentences,
        "sentence_length": arguments.sentence_length,
        "target_tokens_per_second": num_tokens / sum(medians.values()),
        "seconds": medians,
        "operators": {way: {name: whole[way, name] for name in LEFT_OUT} for way in OPERATORS},
        "operator_shares": {event.key: event.self_cpu_time_total / total for event in events[:12]},
        "machine": {"processor": describe_processor(), "threads": arguments.num_threads},
        "versions": {"torch": torch.__version__},
    }
    if arguments.output_file is not None:
        Path(arguments.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
