"""A file translated line by line: in shards of neighbouring lines, which are put together in order.

A run may be killed at any moment and continued by any number of processes (`lvnar_hf/jobs/shards.py`).
"""

import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lvnar_hf.files.atomic import atomic_file, read_json, write_json
from lvnar_hf.files.outputs import refuse_existing
from lvnar_hf.files.text import check_files, one_line, read_lines, spool
from lvnar_hf.jobs.environment import describe_machine, num_threads
from lvnar_hf.jobs.line_translator import LineTranslator, load_translator
from lvnar_hf.jobs.processes import check_executor, worker_devices
from lvnar_hf.jobs.shards import ShardedRun

SOURCE_FILE, PLAN_FILE = "source.txt", "plan.json"


class FileTranslation(ShardedRun):
    r"""One run: `prepare`, then `run_tasks`, then `merge`.

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

    def _translate_shard(self, content: bytes) -> tuple[dict[str, Any], Iterable[str]]:
        lines = content.decode().removesuffix("\n").split("\n")
        start, clock = time.time(), time.perf_counter()
        translation = self.engine.translate(lines, self.on_progress)
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
        return header, map(one_line, translation.texts)

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
        num_lines = json.loads((self.work / "run.json").read_text("utf-8"))["input_lines"]
        if counts["sentences"] != num_lines:
            raise RuntimeError(f"{self.place} has {counts['sentences']} lines; the input has {num_lines}.")
        num_translated = sum(header["translated"] for header in headers)
        has_steps = num_translated and description["num_refinement_steps"] is not None
        mean_steps = sum(header["steps_taken"] for header in headers) / num_translated if has_steps else None
        result = {**counts, **description, "mean_steps_taken": mean_steps}
        return self._finish(result, headers, {self.place.name: counts["sentences"]})


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
    executor: str = "local",
    executor_options: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Translate a file line by line; killed at any moment and called again, it goes on where it was.

    Args:
        input_file: text, UTF-8, plain or gzip; -: standard input.
        output_file: a line for each line; a description in JSON is written beside it.
        model, engine, num_refinement_steps, preserve_format, search: as of `load_translator`.
        max_batch_tokens: of a batch, padding included; by default 512 on the CPU, 16384 on a GPU.
        shard_size: lines that are sorted, translated and stored together.
        num_workers: processes on this machine; by default one a core on the CPU, else one a GPU.
        device: by default a GPU where there is one; on a cluster, "cpu".
        overwrite: throw away what is there.
        executor, executor_options: as of `run_tasks`; a cluster must see the same files. Slurm translates later: called
            again then, this puts the output together.

    Returns:
        The description; None if Slurm has taken the tasks.

    Raises:
        ValueError: for arguments that are wrong or cannot be combined, or settings that differ from those of the
            translation that was begun.
        FileNotFoundError: there is no such input, or no such graph.
        FileExistsError: there is an output already, and `overwrite` is not given.
        RuntimeError: a process was killed, or tasks of a cluster failed.
    """
    is_local = check_executor(executor)
    devices = worker_devices(device, num_workers) if is_local else [device or "cpu"]
    if not is_local and devices != ["cpu"] and engine == "auto":
        engine = "torch"  # what it comes to there; it is loaded here, on the CPU
    if str(input_file) == "-":
        spooled = spool(sys.stdin.buffer)
        input_file = f"/dev/fd/{spooled.fileno()}"
    run = FileTranslation(input_file, output_file, {"shard_size": shard_size, "preserve_format": preserve_format})
    if len(devices) > 1:
        devices = devices[: max(1, -(-run._fingerprint()["input_lines"] // shard_size))]
    threads = max(1, num_threads() // len(devices))
    load_arguments: dict[str, Any] = {
        "name": os.path.abspath(model) if Path(model).is_dir() else model,
        "num_refinement_steps": num_refinement_steps,
        "max_batch_tokens": default_batch_tokens(devices[0]) if max_batch_tokens is None else max_batch_tokens,
        "preserve_format": preserve_format,
        "search": search,
        "num_threads": threads,
    }
    here = devices[0] if is_local else "cpu"
    translator = load_any_translator(**load_arguments, engine=engine, device=here, with_fingerprint=True)
    load_arguments |= {"engine": translator.engine, "num_threads": threads if is_local else None}
    run.load_engine = partial(_load, load_arguments)
    run.settings |= {
        "model_fingerprint": translator.fingerprint,
        "engine": translator.engine,
        "num_refinement_steps": translator.num_refinement_steps,
        "max_batch_tokens": translator.max_batch_tokens,
        "search": {name: value for name, value in (search or {}).items() if value is not None},
    }
    if run.prepare(overwrite):
        print(f"nothing to do: {run.place} is finished", file=sys.stderr)
        return read_json(run.result_file)
    from lvnar_hf.jobs.executors import run_tasks  # takes a third of a second to import

    alone = translator if is_local and len(devices) == 1 else None
    if not run_tasks(run, alone, devices, executor, executor_options):
        return None
    return run.merge(
        {
            "model": model,
            "engine": translator.engine,
            "num_refinement_steps": translator.num_refinement_steps,
            "num_processes": len(devices) if is_local else run.num_shards,
            "machine": describe_machine(here) | {"threads": threads},
        }
    )


def _load(arguments: dict[str, Any], device: str) -> LineTranslator:
    arguments["num_threads"] = arguments["num_threads"] or num_threads()  # of a cluster's task, its own
    return load_any_translator(**arguments, device=device)


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
    place = worker_devices(device, 1)[0]
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
