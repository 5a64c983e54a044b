"""What the benchmark's JSON says of a mode: the systems, the sentences, and what was set."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from training.speed.arguments import TimingArguments
from training.speed.forced_lengths import Sample
from training.speed.timing import Measurements, find_crossovers, overhead_share, summarise_latency, summarise_throughput
from training.speed.workers import Worker

BASELINE_SETTING = "transformers, beam 3"


class TimeReport(TypedDict, total=False):
    """Times of one kind of workload; by batch size where there are several."""

    latency_ms: dict[str, float]
    sentences_per_second: dict[str, dict[str, float]]
    times_s: dict[str, list[list[float]]]
    speed_up: float


class SystemReport(TypedDict, total=False):
    """One system: what it is, its times, memory in MiB and, with trained models, its quality."""

    family: str
    engine: str
    compute_type: str
    tokens_tried: dict[str, dict[str, float]]  # by batch size; with a shortlist
    whole_vocabulary_share: float
    compilation_s: float
    inter_and_intra_threads: dict[str, list[int]]  # by batch size; of CTranslate2
    model: TimeReport  # from token ids to token ids
    end_to_end: TimeReport  # from text to text
    memory_mib: dict[str, Any]
    quality: dict[str, Any]
    mean_steps_taken: float
    mean_target_tokens: dict[str, float]  # by batch size; of random weights with alignment "ctc"


class RunReport(TypedDict):
    """A mode as a whole."""

    settings: dict[str, Any]
    sentences: dict[str, dict[str, Any]]
    baseline: str | None
    systems: dict[str, SystemReport]
    crossovers: dict[str, dict[str, int | None]]
    measured_seconds: float
    overhead_share: float


def describe_systems(
    workers: Mapping[str, Worker], measured: Measurements, samples: Sequence[Sample]
) -> dict[str, SystemReport]:
    """What the JSON says of each system, by name: its times, what they come to, and its memory."""
    systems: dict[str, SystemReport] = {}
    for name, worker in workers.items():
        spec, times = worker.spec, measured.times[name]
        system: dict[str, Any] = {
            "family": spec.family,
            "engine": spec.engine,
            "compute_type": spec.dtype if spec.engine.startswith("eager") else (*spec.engine.split(), spec.dtype)[1],
            **measured.descriptions[name],
        }
        for kind in sorted({kind for kind, _ in times}, reverse=True):  # "model" first
            summary: TimeReport = {}
            if (kind, 1) in times:
                summary["latency_ms"] = summarise_latency(times[kind, 1])
            summary["sentences_per_second"] = {
                str(sample.batch_size): summarise_throughput(times[kind, sample.batch_size], len(sample.indices))
                for sample in samples
            }
            summary["times_s"] = {str(sample.batch_size): times[kind, sample.batch_size] for sample in samples}
            system[kind] = summary
        system["memory_mib"] = {
            "libraries": worker.process.library_memory_mib,
            "loading": worker.process.loaded_memory_mib,
            "peak": {
                str(sample.batch_size): measured.peak_memory_mib[name]["model", sample.batch_size] for sample in samples
            },
        }
        systems[name] = cast(SystemReport, system)
    return systems


def count_rounds(measured: Measurements, batch_size: int) -> dict[str, list[int]]:
    """The fewest and the most repeats that a system had, by kind of workload."""
    counts: dict[str, list[int]] = {}
    for times in measured.times.values():
        for (kind, size), rounds in times.items():
            if size == batch_size:
                counts.setdefault(kind, []).append(len(rounds))
    return {kind: [min(numbers), max(numbers)] for kind, numbers in counts.items()}


def describe_run(
    arguments: TimingArguments,
    systems: dict[str, SystemReport],
    measured: Measurements,
    samples: Sequence[Sample],
    lengths: Sequence[tuple[int, int]],
) -> RunReport:
    """What the JSON says of a mode as a whole; speed-ups are added to the systems.

    Args:
        systems: of `describe_systems`.
        samples: the sentences of each batch size.
        lengths: source and (reference's) target tokens of every sentence of the test set.
    """
    baseline = next((name for name in systems if name.endswith(BASELINE_SETTING)), None)
    if baseline is not None and "latency_ms" in systems[baseline]["model"]:
        slowest = systems[baseline]["model"]["latency_ms"]["mean"]
        for system in systems.values():
            system["model"]["speed_up"] = slowest / system["model"]["latency_ms"]["mean"]
    throughputs = {
        name: {int(size): row["median"] for size, row in system["model"]["sentences_per_second"].items()}
        for name, system in systems.items()
    }
    return {
        "settings": {
            "device": arguments.device,
            "dtype": arguments.dtype,
            "threads": arguments.num_threads,
            "num_repeats": arguments.num_repeats,
            "max_minutes": arguments.max_minutes,
        },
        "sentences": {
            str(sample.batch_size): {
                "num_sentences": len(sample.indices),
                "num_batches": len(sample.batches),
                "mean_source_tokens": statistics.mean(lengths[index][0] for index in sample.indices),
                "mean_target_tokens": statistics.mean(lengths[index][1] for index in sample.indices),
                "num_rounds": count_rounds(measured, sample.batch_size),
            }
            for sample in samples
        },
        "baseline": baseline,
        "systems": systems,
        "crossovers": find_crossovers(throughputs, {name: system["family"] for name, system in systems.items()}),
        "measured_seconds": sum(measured.calls),
        "overhead_share": overhead_share(len(measured.calls), sum(measured.calls)),
    }
