"""Work in shards, killed and continued at will; a shard is a task of datatrove.

The shards do not depend on the number of processes, and a finished one appears under its name by a rename. So a run may
be killed at any moment and continued by any number of processes, and what is merged in the end is the same.
"""

import abc
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lvnar_hf.files.atomic import atomic_file, check_writable, hash_file, read_json, write_json
from lvnar_hf.files.outputs import different_settings


class ShardedRun(abc.ABC):
    """One run: `prepare`, then `run_tasks`, then merging.

    A subclass says what the shards are, translates one, and merges them. The description of the result, a JSON file
    with `settings` and the `sha256` of each of its `files`, appears last and makes it whole.

    Attributes:
        noun, flag: what this is and which option says where it goes, for messages.
        unit: what a shard's size is counted in, for the progress bar.
        engine: of this process; if it is None, `load_engine` loads it, on `device`.
        num_translated: by all processes of this machine, of unfinished shards.

    Args:
        place: where the result goes, as it is given.
        work: the folder of the run's own files, until the result is there.
        result_file: the description of the result, beside its files.
        settings: all that the result depends on; a run is continued with the same only.
    """

    noun: str
    flag: str
    unit: str
    engine: Any = None
    load_engine: Callable[[str], Any] | None = None
    device = "cpu"
    num_translated: Any = None
    of_process: tuple[str, ...] = ("engine", "num_translated", "_lock")  # no other process is sent these
    _lock: int | None = None

    def __init__(self, place: Path, work: Path, result_file: Path, settings: dict[str, Any]):
        self.place, self.work, self.result_file, self.settings = place, work.absolute(), result_file, settings

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self.of_process}

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
    def _read_shard(self, shard: int) -> Any:
        """What is to be translated."""

    @abc.abstractmethod
    def _translate_shard(self, content: Any) -> tuple[dict[str, Any], Iterable[str]]:
        """Translate what was read by `self.engine`; a header in JSON and lines, for the shard's file."""

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
        for file in {self.place, self.result_file} - {self.result_file.parent}:
            check_writable(file)
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
                (shutil.rmtree if file.is_dir() else os.unlink)(file)

    # Shards

    @property
    def num_shards(self) -> int:
        """Shards of the whole work."""
        return len(self.shard_sizes)

    @cached_property
    def name(self) -> str:
        """Begins the names of the run's files; of the settings, so that what another run left behind is not ours."""
        return f"shard-{hash_file(self.work / 'run.json')[:8]}"

    def _shard_file(self, shard: int) -> Path:
        return self.work / f"{self.name}-{shard:06d}.jsonl"

    def _unfinished_shards(self) -> list[int]:
        finished = {path.name for path in self.work.iterdir()}
        return [shard for shard in range(self.num_shards) if self._shard_file(shard).name not in finished]

    @property
    def pipeline(self) -> list[Callable[..., Iterator[Any]]]:
        """The steps of a task, for datatrove, which gives each what the last has yielded, and the task's number."""
        return [self._read, self._translate, self._write]

    def _read(self, data: Any, shard: int, num_shards: int) -> Iterator[Any]:
        if not self._shard_file(shard).exists():  # killed before datatrove had noted it
            yield self._read_shard(shard)

    def _translate(self, data: Iterable[Any], shard: int, num_shards: int) -> Iterator[Any]:
        for content in data:
            if self.engine is None and self.load_engine is not None:
                self.engine = self.load_engine(self.device)
            yield self._translate_shard(content)

    def _write(self, data: Iterable[Any], shard: int, num_shards: int) -> Iterator[None]:
        # Whole or not at all. Should two processes be at the same shard, each has a file of its own; either's is right.
        process = f"{socket.gethostname()}:{os.getpid()}"
        for header, lines in data:
            with (
                atomic_file(self._shard_file(shard), f".{process}") as unfinished,
                unfinished.open("w", encoding="utf-8") as file,
            ):
                for line in (json.dumps({"shard": shard, **header, "process": process}), *lines):
                    file.write(line + "\n")
                self.on_progress(-self.shard_sizes[shard])
            yield

    def on_progress(self, size: int) -> None:
        """So much of unfinished shards is translated; less than 0: a shard of this size is finished."""
        if self.num_translated is not None:
            with self.num_translated.get_lock():
                self.num_translated.value += size

    # After

    def _finish(
        self, result: dict[str, Any], headers: Sequence[dict[str, Any]], lines: dict[str, int]
    ) -> dict[str, Any]:
        """Write the description, which makes the result whole, and remove the run's own files.

        `seconds` is the time in which at least one process was at a shard; loading and merging are not in it.

        Args:
            result: goes into it.
            headers: of all shards, with "started", "seconds" and "sentences".
            lines: of each of the result's files.
        """
        seconds, end = 0.0, 0.0
        for header in sorted(headers, key=lambda header: header["started"]):
            finished = header["started"] + header["seconds"]
            seconds += max(0.0, finished - max(end, header["started"]))
            end = max(end, finished)
        files = {name: {"lines": lines[name], "sha256": hash_file(self.result_file.with_name(name))} for name in lines}
        result = {
            **result,
            "seconds": seconds,
            "sentences_per_second": sum(header["sentences"] for header in headers) / seconds if seconds else None,
            "processes_of_all_runs": len({header["process"] for header in headers}),
            "files": files,
            "settings": read_json(self.work / "run.json"),
        }
        write_json(self.result_file, result)
        self.clean_up()
        return result

    def clean_up(self) -> None:
        """Remove the run's own files, when the result is whole."""
        shutil.rmtree(self.work)
        self.close()

    def close(self) -> None:
        """Let other runs have the place; the end of the process does the same."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
