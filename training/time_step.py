"""Where the time of a training step goes: its parts by the clock, and its operators by the profiler.

    python training/time_step.py --config training/configs/tatoeba_en_de.yaml --output_file runs/training_step.json

The batch is drawn at random with the sentence length and the token budget of the recipe's training data, so that no
text is needed; loading is measured in the run itself (`loading_share` in its log).
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import torch

from lvnar_hf import LvnarForConditionalGeneration
from training.environment import describe_processor
from training.outputs import refuse_existing
from training.recipe import ModelArguments, OptimizationArguments, parse_recipe


@dataclass
class TimingArguments:
    """How much is timed; these are flags, not part of a recipe."""

    vocab_size: int = field(default=8000, metadata={"help": "ids of the joint vocabulary"})
    sentence_length: int = field(default=10, metadata={"help": "tokens of every source and target"})
    num_repeats: int = field(default=20, metadata={"help": "timed steps"})
    num_threads: int = field(default=2, metadata={"help": "CPU threads"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with the result"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Time the step, print where its time goes, return what is in the JSON."""
    sections = {"model": ModelArguments, "training": OptimizationArguments, "timing": TimingArguments}
    sizes, optimization, arguments = parse_recipe(sections, argv)
    if arguments.output_file is not None:
        refuse_existing(arguments.output_file, optimization.overwrite, "--output_file")
    torch.set_num_threads(arguments.num_threads)
    torch.manual_seed(optimization.seed)
    model = LvnarForConditionalGeneration(sizes.to_config(arguments.vocab_size, None)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, betas=(0.9, 0.98), fused=True)
    num_sentences = optimization.max_tokens_per_batch // arguments.sentence_length
    shape = (num_sentences, arguments.sentence_length)
    batch = {name: torch.randint(3, arguments.vocab_size, shape) for name in ("input_ids", "labels")}
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "clipping": [], "optimizer": []}

    def step() -> None:
        times = [time.perf_counter()]
        loss = model(**batch, kl_budget=1.0, smoothing=optimization.label_smoothing).loss
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimization.max_grad_norm or float("inf"))
        times.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        for part, begin, end in zip(seconds, times[:-1], times[1:], strict=True):
            seconds[part].append(end - begin)

    for _ in range(3):  # warm-up
        step()
    seconds = {part: [] for part in seconds}
    for _ in range(arguments.num_repeats):
        step()
    medians = {part: statistics.median(values) for part, values in seconds.items()}
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    result = {
        "num_parameters": model.num_parameters(),
        "num_sentences": num_sentences,
        "sentence_length": arguments.sentence_length,
        "target_tokens_per_second": num_sentences * arguments.sentence_length / sum(medians.values()),
        "seconds": medians,
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
