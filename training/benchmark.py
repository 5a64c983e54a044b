"""Latency, throughput, memory and quality beside autoregressive baselines, in one run.

    python training/benchmark.py --output_folder runs/benchmark
    python training/benchmark.py --output_folder runs/benchmark \
        --model model_cards/lvnar-tatoeba-en-de --teacher runs/tatoeba_en_de/teacher/best \
        --source_file data/tatoeba_en-de/test.en --target_file data/tatoeba_en-de/test.de

With random weights (mode "random": the paper's sizes, or others, as `--alignment ctc --num_decoder_layers 3` asks for)
and, if a model is named, with trained models on real sentences (mode "trained"). Writes `benchmark.json`, from which
everything else is made: the tables `benchmark.md`, and the plots `throughput.*.png` and `quality.*.png`. The last line
printed is JSON: milliseconds per sentence.
"""

import importlib.util
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing
from training.data.evaluation_sets import TestSetArguments, load_test_set
from training.sections import ModelArguments
from training.speed.arguments import TimingArguments

MODES = ("random", "trained")


@dataclass
class BenchmarkArguments:
    """Which benchmarks, and where the results go."""

    output_folder: str = field(metadata={"help": "benchmark.json, benchmark.md and the plots"})
    modes: list[str] = field(
        default_factory=list, metadata={"help": "random, trained; by default random, and with --model both"}
    )
    model: str | None = field(default=None, metadata={"help": "trained: model of this package, folder or Hub id"})
    teacher: list[str] = field(
        default_factory=list, metadata={"help": "trained: autoregressive models, folders or Hub ids"}
    )
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})

    def __post_init__(self) -> None:
        self.modes = self.modes or list(MODES[: 1 if self.model is None else 2])
        if unknown := [mode for mode in self.modes if mode not in MODES]:
            raise ValueError(f"modes holds {', '.join(unknown)}; there are {', '.join(MODES)}.")
        if ("trained" in self.modes) != (self.model is not None):
            raise ValueError("The mode trained and --model belong together: give both or neither.")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the modes, write all files, print one JSON line last; return what is in benchmark.json."""
    begin = time.monotonic()
    parser = HfArgumentParser((BenchmarkArguments, TimingArguments, TestSetArguments, ModelArguments))
    arguments, timing, named_test_set, sizes = parser.parse_args_into_dataclasses(argv)

    import torch

    from lvnar_hf import LvnarConfig
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from training.speed.forced_lengths import read_lengths
    from training.speed.modes import run_random, run_trained

    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("matplotlib, which draws the plots, is not installed: pip install 'lvnar-hf[eval]'")
    test_set = load_test_set(named_test_set) if "trained" in arguments.modes else None
    torch.set_num_threads(timing.num_threads)
    benchmark: dict[str, Any] = {
        "machine": describe_machine(timing.device),
        "versions": describe_versions(),
        "modes": {},
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as models:
        if "random" in arguments.modes:
            config = sizes.to_config(LvnarConfig().vocab_size, None)
            benchmark["modes"]["random"] = run_random(timing, config, read_lengths(), Path(models, "random"))
        if test_set is not None:
            benchmark["modes"]["trained"] = run_trained(
                timing, arguments.model, arguments.teacher, test_set, Path(models, "trained")
            )
    benchmark["seconds"] = time.monotonic() - begin
    write_results(folder, benchmark)
    latencies = {
        mode: {
            name: round(system["model"]["latency_ms"]["mean"], 1)
            for name, system in result["systems"].items()
            if "latency_ms" in system["model"]
        }
        for mode, result in benchmark["modes"].items()
    }
    print(json.dumps(latencies))
    return benchmark


def write_results(folder: Path, benchmark: dict[str, Any]) -> None:
    """benchmark.json, benchmark.md and the plots."""
    from training.reports.speed_plots import draw_quality, draw_throughput
    from training.reports.speed_tables import render_document

    write_json(folder / "benchmark.json", benchmark)
    (folder / "benchmark.md").write_text(render_document(benchmark), "utf-8")
    for mode, result in benchmark["modes"].items():
        draw_throughput(result).savefig(folder / f"throughput.{mode}.png", dpi=200)
        if mode == "trained":
            draw_quality(result).savefig(folder / f"quality.{mode}.png", dpi=200)


if __name__ == "__main__":
    main()
