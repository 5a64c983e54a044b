"""A file translated line by line: in shards of neighbouring lines that processes claim, and put together in order.

A run may be killed at any moment and continued by any number of processes (`lvnar_hf/jobs/shards.py`).
"""

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvnar_hf.files.atomic import atomic_file, check_writable, hash_file, read_json, write_json
from lvnar_hf.files.outputs import refuse_existing
from lvnar_hf.files.text import check_files, one_line, read_lines, spool
from lvnar_hf.jobs.environment import describe_machine, may_have_gpu, num_threads
from lvnar_hf.jobs.line_translator import LineTranslator, load_translator
from lvnar_hf.jobs.shards import ShardedRun, busy_seconds

if TYPE_CHECKING:
    import torch

SOURCE_FILE, PLAN_FILE = "source.txt", "plan.json"


class FileTranslation(ShardedRun):
    r"""One run: `prepare` by the first process, then `translate` by each, then, after all, `merge` by the first.

    While it lasts, its own files lie beside the output, in a folder whose name ends in ".unfinished". Memory holds one
    shard a process. Only "\n" ends a line; a translation that holds one has a space there.

    Args:
        input_file: text, one sentence a line, UTF-8, plain or gzip; it is copied first.
        output_file: the translations, a line each; a description in JSON is written beside it.
        settings: all that the result depends on. `shard_size`, in lines, is among them; others may be added before
            `prepare`.

    Raises:
        ValueError: for a shard size below 1, or an output that would be the input or has a name of gzip's.
    """

    noun, flag, unit = "translation", "output file", "sentences"

    def __init__(self, input_file: str | Path, output_file: str | Path, settings: dict[str, Any]):
        if settings["shard_size"] < 1:
            raise ValueError(f"shard_size is {settings['shard_size']}; it must be at least 1.")
        self.input_file, output = Path(input_file), Path(output_file)
        if output.resolve() == self.input_file.resolve():
            raise ValueError(f"{output} is the input: name another output file.")
        if output.suffix == ".gz":
            raise ValueError(f"The output is not compressed: leave .gz out of its name, {output}.")
        work, result = (output.with_name(f"{output.name}.{end}") for end in ("unfinished", "translation.json"))
        super().__init__(output, work, result, settings)

    # Before

    def count_shards(self) -> int:
        """Shards that the input will make; reads it."""
        check_files([self.input_file])
        return -(-sum(1 for _ in read_lines(self.input_file)) // self.settings["shard_size"])

    def _fingerprint(self) -> dict[str, Any]:
        check_files([self.input_file])
        digest, num_lines = hashlib.sha256(), 0
        for line in read_lines(self.input_file):
            digest.update(line.encode() + b"\n")
            num_lines += 1
        return {"input_lines": num_lines, "input_sha256": digest.hexdigest()}

    def _refuse_foreign(self, overwrite: bool) -> None:
        refuse_existing(self.place, overwrite, self.flag)

    def _remove_result(self) -> None:
        self.place.unlink(missing_ok=True)

    def _refuse_unwritable(self) -> None:
        check_writable(self.place)
        super()._refuse_unwritable()

    def _make_plan(self) -> dict[str, Any]:
        offsets, num_lines, digest = [0], 0, hashlib.sha256()
        with atomic_file(self.work / SOURCE_FILE) as unfinished, unfinished.open("wb") as copy:
            for num_lines, line in enumerate(read_lines(self.input_file), start=1):
                content = line.encode() + b"\n"
                copy.write(content)
                digest.update(content)
                if num_lines % self.settings["shard_size"] == 0:
                    offsets.append(copy.tell())
            if copy.tell() > offsets[-1]:
                offsets.append(copy.tell())
        write_json(self.work / PLAN_FILE, {"num_lines": num_lines, "offsets": offsets})
        return {"input_lines": num_lines, "input_sha256": digest.hexdigest()}

    # Shards

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What `prepare` has left: the number of lines, and where each shard begins in the copy, and the last ends."""
        return json.loads((self.work / PLAN_FILE).read_text("utf-8"))

    @property
    def shard_sizes(self) -> list[int]:
        """Lines of each shard."""
        size, num_lines = self.settings["shard_size"], self.plan["num_lines"]
        return [min(size, num_lines - start) for start in range(0, num_lines, size)]

    def _read_shard(self, shard: int) -> bytes:
        start, end = self.plan["offsets"][shard : shard + 2]
        with (self.work / SOURCE_FILE).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _translate_shard(self, shard: int, engine: LineTranslator, on_progress: Callable[[int], None]) -> None:
        content = self._read_shard(shard)
        lines = content.decode().removesuffix("\n").split("\n")
        start, clock = time.time(), time.perf_counter()
        translation = engine.translate(lines, on_progress)
        header = {
            "started": start,
            "seconds": time.perf_counter() - clock,
            "sentences": len(lines),
            "blank": translation.num_blank,
            "cut": translation.num_cut,
            "translated": translation.num_sentences,
            "steps_taken": translation.num_steps_taken,
            "source_crc": zlib.crc32(content),
        }
        self._write_shard(shard, header, map(one_line, translation.texts))

    # After

    def merge(self, description: dict[str, Any]) -> dict[str, Any]:
        """Put the shards together, check that each line has its own, and write output and description.

        Args:
            description: goes into the description, beside what is counted here.

        Raises:
            RuntimeError: a line that is missing, doubled or of another text: a defect, so nothing is removed.
        """
        headers = []
        with atomic_file(self.place) as unfinished, unfinished.open("wb") as output:
            for shard, size in enumerate(self.shard_sizes):
                header, _, translations = self._shard_file(shard).read_bytes().partition(b"\n")
                headers.append(json.loads(header))
                num_lines, crc = translations.count(b"\n"), zlib.crc32(self._read_shard(shard))
                if num_lines != size or headers[-1]["source_crc"] != crc:
                    raise RuntimeError(f"{self._shard_file(shard)} does not hold the translations of its {size} lines.")
                output.write(translations)
        counts = {name: sum(header[name] for header in headers) for name in ("sentences", "blank", "cut")}
        settings = json.loads((self.work / "run.json").read_text("utf-8"))
        if counts["sentences"] != settings["input_lines"]:
            raise RuntimeError(
                f"{self.place} has {counts['sentences']} lines; the input has {settings['input_lines']}."
            )
        seconds, num_translated = busy_seconds(headers), sum(header["translated"] for header in headers)
        has_steps = num_translated and description["num_refinement_steps"] is not None
        result = {
            **counts,
            "seconds": seconds,
            "sentences_per_second": counts["sentences"] / seconds if seconds else None,
            **description,
            "mean_steps_taken": sum(h["steps_taken"] for h in headers) / num_translated if has_steps else None,
            "processes_of_all_runs": len({header["process"] for header in headers}),
            "files": {self.place.name: {"lines": counts["sentences"], "sha256": hash_file(self.place)}},
            "settings": settings,
        }
        write_json(self.result_file, result)
        self.clean_up()
        return result


def num_launched() -> int:
    """Processes that a launcher has started together, `accelerate launch` for example; else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Processes:
    """Those that a launcher has started together, or this one alone.

    Attributes:
        rank, count: this process among them.
        device: this process's.
        wait_for_all: returns when all have called it.
    """

    rank: int
    count: int
    device: str
    wait_for_all: Callable[[], None]

    @classmethod
    def started_together(cls, device: str | None = None) -> "Processes":
        """Those of this process.

        Args:
            device: by default a GPU where there is one.

        Raises:
            ImportError: there are several, and accelerate is missing.
        """
        if num_launched() == 1:
            device = device or _default_device()
            is_cpu = device.partition(":")[0] == "cpu"
            return cls(0, 1, "cpu" if is_cpu else str(find_device(device)), lambda: None)
        from accelerate import Accelerator, InitProcessGroupKwargs

        # They meet only when the first has copied the input, which takes minutes for a large one.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))
        state = Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
        return cls(state.process_index, state.num_processes, str(state.device), state.wait_for_everyone)

    def num_workers(self, asked: int | None) -> int:
        """How many processes this one may start, itself included; by default one a core on the CPU, else one.

        Raises:
            ValueError: that is not possible.
        """
        is_cpu = self.device == "cpu"
        number = asked
        if number is None:
            number = num_threads() if is_cpu and self.count == 1 else 1
        if number < 1 or (number > 1 and (self.count > 1 or not is_cpu)):
            raise ValueError(
                f"num_workers is {number}; it must be at least 1, and 1 on a GPU and where a launcher has started "
                f"several processes ({self.count})."
            )
        return number


def _default_device() -> str:
    """A GPU where there is one; torch is asked only where there may be."""
    if not may_have_gpu():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def find_device(name: str) -> "torch.device":
    """A device of torch, if this machine has it.

    Raises:
        ValueError: it has not.
    """
    import torch

    try:
        return torch.empty(0, device=name).device
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:  # each device has its own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device is {name!r}, which torch does not find here: {reason}") from error


def default_batch_tokens(device: str) -> int:
    """The tokens of a batch, padding included, that keep a device busy."""
    return 512 if device == "cpu" else 16_384


def translate_file(
    input_file: str | Path,
    output_file: str | Path,
    model: str,
    engine: str = "auto",
    num_refinement_steps: int | None = None,
    max_batch_tokens: int | None = None,
    shard_size: int = 2000,
    num_workers: int | None = None,
    preserve_format: bool = True,
    device: str | None = None,
    overwrite: bool = False,
    search: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Translate a file line by line; killed at any moment and called again, it goes on where it was.

    Args:
        input_file: text, UTF-8, plain or gzip; -: standard input.
        output_file: a line for each line; a description in JSON is written beside it.
        model, engine, num_refinement_steps, preserve_format, search: as of `load_translator`.
        max_batch_tokens: of a batch, padding included; by default 512 on the CPU, 16384 on a GPU.
        shard_size: lines that are sorted, translated and stored together.
        num_workers: processes on this machine; by default one a core on the CPU, else one.
        device: by default a GPU where there is one.
        overwrite: throw away what is there.

    Returns:
        The description; None in all processes of a launcher but the first.

    Raises:
        ValueError: for arguments that are wrong or cannot be combined, or settings that differ from those of the
            translation that was begun.
        FileNotFoundError: there is no such input, or no such graph.
        FileExistsError: there is an output already, and `overwrite` is not given.
    """
    processes = Processes.started_together(device)
    is_first = processes.rank == 0
    num_workers = processes.num_workers(num_workers)
    if str(input_file) == "-" and is_first:
        spooled = spool(sys.stdin.buffer)
        input_file = f"/dev/fd/{spooled.fileno()}"
    run = FileTranslation(input_file, output_file, {"shard_size": shard_size, "preserve_format": preserve_format})
    if num_workers > 1:
        num_workers = max(1, min(num_workers, run.count_shards()))
    load_arguments: dict[str, Any] = {
        "name": model,
        "num_refinement_steps": num_refinement_steps,
        "max_batch_tokens": default_batch_tokens(processes.device) if max_batch_tokens is None else max_batch_tokens,
        "device": processes.device,
        "preserve_format": preserve_format,
        "search": search,
        "num_threads": max(1, num_threads() // num_workers),
    }
    translator = load_any_translator(engine=engine, **load_arguments, with_fingerprint=True)
    load_arguments["engine"] = translator.engine
    run.settings |= {
        "model_fingerprint": translator.fingerprint,
        "engine": translator.engine,
        "num_refinement_steps": translator.num_refinement_steps,
        "max_batch_tokens": translator.max_batch_tokens,
        "search": {name: value for name, value in (search or {}).items() if value is not None},
    }
    if is_first:
        run.prepare(overwrite)
    processes.wait_for_all()
    if not run.work.exists():
        if is_first:
            print(f"nothing to do: {run.place} is finished", file=sys.stderr)
        return read_json(run.result_file) if is_first else None
    if num_workers > 1:
        _translate_with_workers(run, translator, num_workers, load_arguments)
    else:
        run.translate(translator, processes.rank)
    processes.wait_for_all()
    if not is_first:
        return None
    return run.merge(
        {
            "model": model,
            "engine": translator.engine,
            "num_refinement_steps": translator.num_refinement_steps,
            "num_processes": max(num_workers, processes.count),
            "machine": describe_machine(processes.device) | {"threads": load_arguments["num_threads"]},
        }
    )


def translate_text(
    text: str,
    model: str,
    engine: str = "auto",
    num_refinement_steps: int | None = None,
    max_batch_tokens: int | None = None,
    preserve_format: bool = True,
    device: str | None = None,
    search: dict[str, Any] | None = None,
) -> str:
    """The translation of a text; the arguments and the errors are those of `translate_file`."""
    place = Processes.started_together(device).device
    batch_tokens = default_batch_tokens(place) if max_batch_tokens is None else max_batch_tokens
    arguments = (model, engine, num_refinement_steps, batch_tokens, place, preserve_format, search)
    translator = load_any_translator(*arguments, num_threads=num_threads())
    translation = translator.translate([text])
    if translation.num_cut:
        print(f"cut at the model's limit: {translation.num_cut} sentences", file=sys.stderr)
    return translation.texts[0]


def load_any_translator(
    *arguments: Any, num_threads: int, with_fingerprint: bool = False, **named: Any
) -> LineTranslator:
    """That of `load_light_translator` where there is one, which begins seconds earlier, else that of `load_translator`.

    Args:
        arguments, named: as of both.
        num_threads: of this process.
        with_fingerprint: its fingerprint is needed.
    """
    from lvnar_hf.jobs.light_translator import load_light_translator

    light = load_light_translator(*arguments, **named, num_threads=num_threads, with_fingerprint=with_fingerprint)
    if light is not None:
        return light
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(num_threads)
    return load_translator(*arguments, **named)


def _translate_with_workers(
    run: FileTranslation,
    translator: LineTranslator,
    num_workers: int,
    load_arguments: dict[str, Any],
) -> None:
    """Translate by this process and others on the same machine; they end with it, however it ends.

    Args:
        num_workers: processes, this one included.
        load_arguments: of `load_any_translator`, in the others.
    """
    context = multiprocessing.get_context("spawn")
    arguments = (run.input_file, run.place, run.settings, load_arguments)
    workers = [context.Process(target=_work, args=(rank, *arguments), daemon=True) for rank in range(1, num_workers)]
    for worker in workers:
        worker.start()
    run.translate(translator)
    for worker in workers:  # none is at a shard any more; one may still be starting
        worker.terminate()
        worker.join()


def _work(
    rank: int,
    input_file: Path,
    output_file: Path,
    settings: dict[str, Any],
    load_arguments: dict[str, Any],
) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    FileTranslation(input_file, output_file, settings).translate(load_any_translator(**load_arguments), rank)


def end_with_parent() -> None:
    """Wait for the process that has started this one, and end this one; for a thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
