"""Rounds in which every system is measured at every batch size, and what is made of their times.

The order of the systems moves on by one in each round, so that none always comes after the same; and a
round that would end too late is not begun, so that the benchmark ends in time on a slow machine, with fewer repeats, as
its JSON then says.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from training.speed.workers import Measurement, Runner, Workload, time_calls

MIN_ROUNDS = 2
# At batch size 1 a system that took less than so many seconds for its sentences takes them so many times a round: what
# is quickly done is easily disturbed, and a machine that others use too is slower for seconds at a time.
QUICK_SECONDS = 1.0
QUICK_REPEATS = 3
SETTLING_SECONDS = 0.05  # between measurements: threads that still wait for work are then asleep

WorkloadKey = tuple[str, int]  # kind of workload and batch size
Times = dict[str, dict[WorkloadKey, list[list[float]]]]  # by system: rounds of the seconds of each batch


def interleave(names: Sequence[str], num_rounds: int) -> Iterator[tuple[int, list[str]]]:
    """Each round with the order of the systems in it; the order moves on by one from round to round."""
    for number in range(num_rounds):
        first = number % len(names)
        yield number, [*names[first:], *names[:first]]


@dataclass
class Measurements:
    """What came of all rounds.

    Attributes:
        times: by system and workload.
        peak_memory_mib: by system and workload, in its first round; None where it is not known.
        descriptions: of the systems, by themselves.
    """

    times: Times
    peak_memory_mib: dict[str, dict[WorkloadKey, float | None]]
    descriptions: dict[str, dict[str, Any]]

    @property
    def calls(self) -> list[float]:
        """Seconds of every call."""
        return [
            seconds
            for workloads in self.times.values()
            for rounds in workloads.values()
            for batches in rounds
            for seconds in batches
        ]


def measure_rounds(
    runners: Mapping[str, Runner],
    workloads: Mapping[WorkloadKey, Workload],
    num_rounds: int,
    max_seconds: float,
    check: Callable[[Runner, WorkloadKey, Measurement], None],
    progress_name: str,
) -> Measurements:
    """Measure every system with every workload, round by round.

    Args:
        runners: by the systems' names.
        workloads: what is translated.
        num_rounds: repeats of each workload; of quick ones at batch size 1, `QUICK_REPEATS` times as many.
        max_seconds: from now on; after `MIN_ROUNDS` repeats a workload gets another one only if it would end by then.
        check: is called with each result; it raises if the system has not done what was asked.
        progress_name: of the progress bar.
    """
    measured = Measurements(
        {name: {key: [] for key in workloads} for name in runners}, {name: {} for name in runners}, {}
    )
    durations = dict.fromkeys(workloads, 0.0)
    begin = time.monotonic()
    with tqdm(total=num_rounds * len(workloads) * len(runners), desc=progress_name, unit="measurement") as progress:

        def measure(name: str, key: WorkloadKey) -> None:
            progress.set_postfix_str(f"{name}, batch {key[1]}", refresh=False)
            result = runners[name].run(workloads[key])
            check(runners[name], key, result)
            measured.times[name][key].append(result.seconds)
            measured.peak_memory_mib[name].setdefault(key, result.peak_memory_mib)
            measured.descriptions[name] = result.description
            time.sleep(SETTLING_SECONDS)
            progress.update()

        def is_due_again(name: str, key: WorkloadKey, number: int) -> bool:
            times = measured.times[name][key]
            return key[1] == 1 and len(times) < QUICK_REPEATS * (number + 1) and sum(times[-1]) < QUICK_SECONDS

        for number, names in interleave(list(runners), num_rounds):
            for key in workloads:
                start = time.monotonic()
                if number >= MIN_ROUNDS and start - begin + durations[key] > max_seconds:
                    progress.update(len(names))
                    continue
                for name in names:
                    measure(name, key)
                again = [
                    (name, other)
                    for other in workloads
                    if other != key
                    for name in names
                    if measured.times[name][other]
                ]
                for name, other in again:
                    if is_due_again(name, other, number):
                        progress.total += 1
                        measure(name, other)
                durations[key] = time.monotonic() - start
    return measured


def quantile(values: Sequence[float], share: float) -> float:
    """With linear interpolation between the two nearest values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def summarise_latency(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Milliseconds per sentence from times at batch 1.

    Args:
        rounds: seconds of each sentence, round by round.

    Returns:
        mean, std, p50 and p95 over sentences, of which each counts with its median over the rounds; lowest and highest
        mean of a round.
    """
    medians = [1000 * statistics.median(seconds) for seconds in zip(*rounds, strict=True)]
    means = [1000 * statistics.mean(seconds) for seconds in rounds]
    return {
        "mean": statistics.mean(medians),
        "std": statistics.stdev(medians) if len(medians) > 1 else 0.0,
        "p50": quantile(medians, 0.5),
        "p95": quantile(medians, 0.95),
        "lowest_mean": min(means),
        "highest_mean": max(means),
    }


def summarise_throughput(rounds: Sequence[Sequence[float]], num_sentences: int) -> dict[str, float]:
    """Sentences per second: by the median round, by the slowest and by the fastest.

    Args:
        rounds: seconds of each batch, round by round.
        num_sentences: in all batches of a round.
    """
    totals = [sum(seconds) for seconds in rounds]
    return {
        "median": num_sentences / statistics.median(totals),
        "lowest": num_sentences / max(totals),
        "highest": num_sentences / min(totals),
    }


def find_crossovers(
    throughputs: Mapping[str, Mapping[int, float]], families: Mapping[str, str]
) -> dict[str, dict[str, int | None]]:
    """The smallest measured batch size at which each autoregressive system is at least as fast as each of this model's.

    Args:
        throughputs: sentences per second by system and batch size.
        families: "lvnar" or "autoregressive" by system.

    Returns:
        By this model's system and the autoregressive one; None: at no batch size that was measured.
    """
    return {
        own: {
            other: next((size for size in sorted(speeds) if throughputs[other][size] >= speeds[size]), None)
            for other, family in families.items()
            if family == "autoregressive"
        }
        for own, speeds in throughputs.items()
        if families[own] == "lvnar"
    }


def overhead_share(num_calls: int, measured_seconds: float) -> float:
    """Time that the benchmark's own loop takes for so many calls of nothing, relative to what was measured."""
    start = time.perf_counter()
    time_calls(lambda batch: batch, [[]] * num_calls, lambda: None)
    return (time.perf_counter() - start) / measured_seconds
