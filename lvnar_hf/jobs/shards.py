"""Work in shards that processes claim, killed and continued at will.

What is unusual: the processes do not talk to each other. The work is cut into shards that do not depend on the number
of processes. A process claims a shard by a lock on a file, which the system takes back when the process dies; a
finished shard appears under its name by a rename. So a run may be killed at any moment and continued by any number of
processes, and what is merged in the end is the same.
"""

import abc
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvnar_hf.files.atomic import atomic_file, check_writable, hash_file, read_json, try_lock, write_json
from lvnar_hf.files.outputs import different_settings


class ShardedRun(abc.ABC):
    """One run: `prepare` by the first process, then `translate` by each, then, after all, merging by the first.

    A subclass says what the shards are, translates one, and merges them. The description of the result, a JSON file
    with `settings` and the `sha256` of each of its `files`, appears last and makes it whole.

    Attributes:
        noun, flag: what this is and which option says where it goes, for messages.
        unit: what a shard's size is counted in, for the progress bar.

    Args:
        place: where the result goes, as it is given.
        work: the folder of the run's own files, until the result is there.
        result_file: the description of the result, beside its files.
        settings: all that the result depends on; a run is continued with the same only.
    """

    noun: str
    flag: str
    unit: str

    def __init__(self, place: Path, work: Path, result_file: Path, settings: dict[str, Any]):
        self.place, self.work, self.result_file, self.settings = place, work, result_file, settings
        self._name: str | None = None
        self._lock: int | None = None

    @abc.abstractmethod
    def _fingerprint(self) -> dict[str, Any]:
        """What identifies the input, beside the settings."""

    @abc.abstractmethod
    def _refuse_foreign(self, overwrite: bool) -> None:
        """Raise FileExistsError if the place holds something else than such a result."""

    @abc.abstractmethod
    def _remove_result(self) -> None:
        """Remove the files of a result that is thrown away."""

    @abc.abstractmethod
    def _make_plan(self) -> dict[str, Any]:
        """Write to the work folder what the processes need to find their shards.

        Returns:
            The fingerprint of what was read for it, if that is a file, which may have changed; else {}.
        """

    @property
    @abc.abstractmethod
    def shard_sizes(self) -> list[int]:
        """The size of each shard."""

    @abc.abstractmethod
    def _translate_shard(self, shard: int, engine: Any, on_progress: Callable[[int], None]) -> None:
        """Translate a shard and write its file; `on_progress` is called with the size of what is done."""

    # Before

    def prepare(self, overwrite: bool = False) -> bool:
        """Check what is there and make the plan; True if the whole result is there already.

        Args:
            overwrite: throw away what another run has left; one with the same settings is continued.

        Raises:
            ValueError: there is a run with other settings; each is named with both values.
            FileExistsError: there is something else.
            OSError: the result could not be written.
        """
        settings = {**self.settings, **self._fingerprint()}
        if self._what_is_there(settings, overwrite) == "finished" and not self.work.exists():
            return True
        self.result_file.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_unwritable()
        if self._wait_for_other_runs():
            settings |= self._fingerprint()  # the input may have changed
        found = self._what_is_there(settings, overwrite)
        if found == "finished":
            self.clean_up()
            return True
        if found == "nothing":
            self._remove_all()
            write_json(self.work / "run.json", settings | self._make_plan())
        return False

    def _refuse_unwritable(self) -> None:
        """Fail before the work as what is written after it would."""
        check_writable(self.result_file)

    def _what_is_there(self, settings: dict[str, Any], overwrite: bool) -> str:
        """ "finished", "begun" (both with these settings), or "nothing" to keep; raises what `prepare` does."""
        result, run = read_json(self.result_file), read_json(self.work / "run.json")
        begun_with = result["settings"] if result else run
        if begun_with is None:
            self._refuse_foreign(overwrite)
            return "nothing"
        if different := different_settings(begun_with, settings):
            if not overwrite:
                raise ValueError(
                    f"The {self.noun} in {self.place} was begun with other settings: {different}. Give the same, "
                    f"another {self.flag}, or --overwrite to throw away what is there."
                )
            return "nothing"
        if result is None:
            return "begun"
        for name, description in result["files"].items():
            file = self.result_file.with_name(name)
            if not file.exists() or hash_file(file) != description["sha256"]:
                raise ValueError(
                    f"{file} is not as {self.result_file.name} says: remove {self.result_file.name} to make it anew."
                )
        return "finished"

    def _wait_for_other_runs(self) -> bool:
        """Hold a lock as long as this process lives: of a killed launcher the processes may go on, and then finish.

        Returns:
            Whether there was one to wait for.
        """
        has_waited = False
        while True:
            self.work.mkdir(parents=True, exist_ok=True)
            file = self.work / "lock"
            self._lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another run is at work in {self.place}: waiting until it ends", file=sys.stderr, flush=True)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                has_waited = True
            if file.exists() and file.stat().st_ino == os.fstat(self._lock).st_ino:
                return has_waited
            self.close()  # the other run has ended, and its files are gone

    def _remove_all(self) -> None:
        # The result's description first: without it the rest is nothing.
        self.result_file.unlink(missing_ok=True)
        self._remove_result()
        (self.work / "run.json").unlink(missing_ok=True)
        for file in self.work.iterdir():
            if file.name != "lock":
                file.unlink()

    # Shards

    @property
    def num_shards(self) -> int:
        """Shards of the whole work."""
        return len(self.shard_sizes)

    def _shard_file(self, shard: int) -> Path:
        if self._name is None:
            # The settings are in the name: what a process that was left over from another run may write is not ours.
            self._name = f"shard-{hash_file(self.work / 'run.json')[:8]}"
        return self.work / f"{self._name}-{shard:06d}.jsonl"

    def _unfinished_shards(self) -> list[int]:
        finished = {path.name for path in self.work.iterdir()}
        return [shard for shard in range(self.num_shards) if self._shard_file(shard).name not in finished]

    def translate(self, engine: Any, rank: int = 0, poll_seconds: float = 0.5) -> None:
        """Translate shards that nobody else is at, until none is left to claim; process 0 stays until all are done.

        Args:
            engine: goes to `_translate_shard`.
            rank: this process among those started together.
            poll_seconds: time between looks at what others have finished.
        """
        with Progress(self, is_shown=rank == 0) as progress:
            while unfinished := self._unfinished_shards():
                num_claimed = 0
                for shard in unfinished:
                    with try_lock(self._shard_file(shard).with_suffix(".lock")) as is_mine:
                        if is_mine and not self._shard_file(shard).exists():
                            self._translate_shard(shard, engine, progress.add)
                            num_claimed += 1
                    progress.look()
                if rank != 0 and not num_claimed:
                    return
                if not num_claimed:
                    time.sleep(poll_seconds)

    def _write_shard(self, shard: int, header: dict[str, Any], lines: Iterable[str]) -> None:
        """A shard's file, whole or not at all: a header in JSON, and lines.

        Where a file system does not keep locks between machines, two processes may be at the same shard: each writes a
        file of its own, and either's is right.
        """
        process = f"{socket.gethostname()}:{os.getpid()}"
        header = {"shard": shard, **header, "process": process}
        with (
            atomic_file(self._shard_file(shard), f".{process}") as unfinished,
            unfinished.open("w", encoding="utf-8") as file,
        ):
            for line in (json.dumps(header), *lines):
                file.write(line + "\n")

    # After

    def clean_up(self) -> None:
        """Remove the run's own files, when the result is whole."""
        shutil.rmtree(self.work)
        self.close()

    def close(self) -> None:
        """Let other runs have the place; the end of the process does the same."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Progress:
    """A bar over the sizes of shards.

    It counts what other processes have finished, and this process's shard as it goes.
    """

    def __init__(self, run: ShardedRun, is_shown: bool):
        self.run = run
        self.sizes = run.shard_sizes
        self.unfinished = set(range(run.num_shards))
        self.is_shown = is_shown
        self.of_this_shard = 0
        done = self._finished_size()
        self.bar = tqdm(
            total=sum(self.sizes),
            initial=done,
            disable=not is_shown,
            unit=run.unit,
            unit_scale=True,
            smoothing=0.0,
            mininterval=1.0,
            desc="translating",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def _finished_size(self) -> int:
        self.unfinished &= set(self.run._unfinished_shards())
        return sum(self.sizes) - sum(self.sizes[shard] for shard in self.unfinished)

    def add(self, size: int) -> None:
        """This process has done so much more of its shard."""
        self.of_this_shard += size
        self._show()

    def look(self) -> None:
        """This process is at no shard."""
        self.of_this_shard = 0
        self._show()

    def _show(self) -> None:
        if self.is_shown and (new := self._finished_size() + self.of_this_shard - self.bar.n) > 0:
            self.bar.update(new)


def busy_seconds(headers: Sequence[dict[str, Any]]) -> float:
    """The time in which at least one process was at a shard, by the shards' headers."""
    seconds, end = 0.0, 0.0
    for header in sorted(headers, key=lambda header: header["started"]):
        finished = header["started"] + header["seconds"]
        seconds += max(0.0, finished - max(end, header["started"]))
        end = max(end, finished)
    return seconds
