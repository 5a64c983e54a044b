"""The shards of a run as tasks of datatrove: in processes of this machine, by Slurm, or on a Ray cluster."""

import contextlib
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger
from tqdm import tqdm

from lvnar_hf.jobs.processes import EXECUTORS, end_with_parent
from lvnar_hf.jobs.shards import ShardedRun


def run_here(executor: LocalPipelineExecutor, run: ShardedRun, devices: Sequence[str]) -> None:
    """Do the tasks that are not done, in a process a device, which loads the engine once; in this one if there is one.

    What is unusual: the pool is Python's. datatrove's waits for ever for the task of a process that was killed, and
    leaves a process behind when this one is killed.

    Raises:
        RuntimeError: a process was killed.
    """
    shards = executor.get_incomplete_ranks()
    if len(devices) == 1:
        for shard in shards:
            executor._run_for_rank(shard)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for device in devices:
        queue.put(device)
    with ProcessPoolExecutor(len(devices), context, _begin, (executor, run, queue, run.num_translated)) as pool:
        try:
            list(pool.map(_do, shards))
        except BrokenProcessPool as error:
            raise RuntimeError("A process was killed, perhaps for want of memory. Start again; it goes on.") from error


_executor: LocalPipelineExecutor  # of a process of the pool


def _begin(executor: LocalPipelineExecutor, run: ShardedRun, devices: Any, num_translated: Any) -> None:
    global _executor
    _executor, run.device, run.num_translated = executor, devices.get(), num_translated
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    logger.disable("datatrove")


def _do(shard: int) -> None:
    _executor._run_for_rank(shard)


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's, without its last job, which would add up statistics."""

    def launch_merge_stats(self) -> None:
        """Do nothing."""


_CLASSES: dict[str, Any] = dict(
    zip(EXECUTORS, (LocalPipelineExecutor, SlurmExecutor, RayPipelineExecutor), strict=True)
)


@contextlib.contextmanager
def progress(run: ShardedRun) -> Iterator[Callable[[], tqdm]]:
    """A bar over the sizes of shards: finished ones, and what this machine's processes have done of others.

    Yields:
        Brings the bar up to date, as is done every second, and returns it.
    """
    sizes, is_over = run.shard_sizes, threading.Event()
    run.num_translated = multiprocessing.get_context("spawn").Value("q", 0)

    def num_done() -> int:
        return sum(sizes) - sum(sizes[shard] for shard in run._unfinished_shards()) + run.num_translated.value

    def look() -> tqdm:
        bar.update(max(0, num_done() - bar.n))
        return bar

    def watch() -> None:
        while not is_over.wait(1.0):
            look()

    with tqdm(None, "translating", sum(sizes), initial=num_done(), unit=run.unit, unit_scale=True, smoothing=0) as bar:
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield look
        finally:
            is_over.set()
            thread.join()
            look()


def run_tasks(
    run: ShardedRun,
    engine: Any,
    devices: Sequence[str] = ("cpu",),
    executor: str = "local",
    options: Sequence[str] = (),
) -> bool:
    """Translate the shards that are not finished.

    Args:
        engine: of this process; None: it is loaded where it is needed.
        devices: one a process; on a cluster, that of each is the first.
        executor: one of EXECUTORS.
        options: arguments of datatrove's executor of a cluster, "name=value" each; the value is JSON, or else text.

    Returns:
        Whether all are finished; False: Slurm has the tasks.

    Raises:
        ValueError: there is no such option, or one is missing.
        FileNotFoundError: Slurm is not on this machine.
        RuntimeError: some are not finished, since a process was killed, or tasks of the cluster failed.
    """
    if not run._unfinished_shards():
        return True
    logger.disable("datatrove")
    run.engine, run.device = engine, devices[0]
    arguments: dict[str, Any] = {"tasks": run.num_shards, "logging_dir": str(run.work / f"{run.name}-tasks")}
    if executor == "slurm":  # where this process is, are datatrove's commands
        arguments["env_command"] = f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH"
    for name, _, value in (option.partition("=") for option in options):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
        arguments[name] = value
    try:
        tasks = _CLASSES[executor](run.pipeline, **arguments)
    except TypeError as error:
        raise ValueError(f"executor {executor} with {list(options)}: {error}") from error
    if executor == "slurm":
        tasks.run()
        run.close()
        print("Slurm has the tasks. When they are done, give the same command again.", file=sys.stderr)
        return False
    with progress(run):
        tasks.run() if executor == "ray" else run_here(tasks, run, devices)
    if unfinished := run._unfinished_shards():
        logs = f"{arguments['logging_dir']}/logs says why"
        raise RuntimeError(f"{len(unfinished)} of {run.num_shards} shards are not translated; {logs}. Start again.")
    return True
