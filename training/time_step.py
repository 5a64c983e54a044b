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
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing
from training.recipe import parse_recipe
from training.sections import ModelArguments, OptimizationArguments


@dataclass
class TimingArguments:
    """How much is timed; these are flags, not part of a recipe."""

    vocab_size: int = field(default=8000, metadata={"help": "ids of the joint vocabulary"})
    sentence_length: int = field(default=10, metadata={"help": "tokens of every source and target"})
    num_repeats: int = field(default=20, metadata={"help": "timed steps of each kind"})
    num_threads: int = field(default=2, metadata={"help": "CPU threads"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with the result"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Time the step, print where its time goes, return what is in the JSON.

    Raises:
        FileExistsError: there is an output file, and `--overwrite` is not given.
        ValueError: the recipe asks for fp16, which is for a GPU.
    """
    sections = {"model": ModelArguments, "training": OptimizationArguments, "timing": TimingArguments}
    sizes, optimization, arguments = parse_recipe(sections, argv)

    import torch

    from lvnar_hf import LvnarForConditionalGeneration
    from lvnar_hf.jobs.environment import describe_processor
    from training.loop.objectives import LvnarObjective
    from training.loop.schedules import settings_at
    from training.speed.training_step import LEFT_OUT, OPERATORS, WithoutOperators, draw_batch

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
        write_json(Path(arguments.output_file), result)
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
