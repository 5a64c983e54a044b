"""A file translated line by line: in shards of neighbouring lines that processes claim, and put together in order.

A run may be killed at any moment and continued by any number of processes (`training/shards.py`).
"""

import hashlib
import json
import multiprocessing
import os
import threading
import time
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from lvnar_hf.files.atomic import appearing, hash_file, read_json, write_json
from lvnar_hf.files.text import check_files, read_lines
from training.distillation.degeneration import one_line
from training.line_translator import LineTranslator, load_translator
from training.outputs import refuse_existing
from training.shards import ShardedRun, busy_seconds

SOURCE_FILE, PLAN_FILE = "source.txt", "plan.json"


class FileTranslation(ShardedRun):
    r"""One run: `prepare` by the first process, then `translate` by each, then, after all, `merge` by the first.

    While it lasts, its own files lie beside the output, in a folder whose name ends in ".unfinished". Memory holds one
    shard a process. Only "\n" ends a line; a translation that holds one has a space there.

    Args:
        input_file: text, one sentence a line, UTF-8, plain or gzip; it is copied first.
        output_file: the translations, a line each; a description in JSON is written beside it.
        settings: all that the result depends on. `shard_size`, in lines, is among them.

    Raises:
        ValueError: for a shard size below 1, or an output that would be the input or has a name of gzip's.
    """

    noun, flag, unit = "translation", "--output_file", "sentences"

    def __init__(self, input_file: str | Path, output_file: str | Path, settings: dict[str, Any]):
        if settings["shard_size"] < 1:
            raise ValueError(f"shard_size is {settings['shard_size']}; it must be at least 1.")
        self.input_file, output = Path(input_file), Path(output_file)
        if output.resolve() == self.input_file.resolve():
            raise ValueError(f"{output} is the input: name another --output_file.")
        if output.suffix == ".gz":
            raise ValueError(f"The output is not compressed: leave .gz out of --output_file {output}.")
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

    def _make_plan(self) -> None:
        offsets, num_lines = [0], 0
        with appearing(self.work / SOURCE_FILE) as unfinished, unfinished.open("wb") as copy:
            for num_lines, line in enumerate(read_lines(self.input_file), start=1):
                copy.write(line.encode() + b"\n")
                if num_lines % self.settings["shard_size"] == 0:
                    offsets.append(copy.tell())
            if copy.tell() > offsets[-1]:
                offsets.append(copy.tell())
        write_json(self.work / PLAN_FILE, {"num_lines": num_lines, "offsets": offsets})

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
        with appearing(self.place) as unfinished, unfinished.open("wb") as output:
            for shard, size in enumerate(self.shard_sizes):
                header, _, translations = self._shard_file(shard).read_bytes().partition(b"\n")
                headers.append(json.loads(header))
                num_lines, crc = translations.count(b"\n"), zlib.crc32(self._read_shard(shard))
                if num_lines != size or headers[-1]["source_crc"] != crc:
                    raise RuntimeError(f"{self._shard_file(shard)} does not hold the translations of its {size} lines.")
                output.write(translations)
        counts = {name: sum(header[name] for header in headers) for name in ("sentences", "blank", "cut")}
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
            "settings": read_json(self.work / "run.json"),
        }
        write_json(self.result_file, result)
        self.clean_up()
        return result


def translate_with_workers(
    run: FileTranslation, num_workers: int, num_threads: int, load_arguments: dict[str, Any]
) -> None:
    """Translate by this process and others on the same machine; they end with it, however it ends.

    Args:
        num_workers: processes, this one included.
        num_threads: of each.
        load_arguments: of `load_translator`.
    """
    context = multiprocessing.get_context("spawn")
    arguments = (run.input_file, run.place, run.settings, num_threads, load_arguments)
    workers = [context.Process(target=_work, args=(rank, *arguments), daemon=True) for rank in range(1, num_workers)]
    for worker in workers:
        worker.start()
    torch.set_num_threads(num_threads)
    run.translate(load_translator(**load_arguments))
    for worker in workers:  # none is at a shard any more; one may still be starting
        worker.terminate()
        worker.join()


def _work(
    rank: int,
    input_file: Path,
    output_file: Path,
    settings: dict[str, Any],
    num_threads: int,
    load_arguments: dict[str, Any],
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    transformers.utils.logging.disable_progress_bar()
    FileTranslation(input_file, output_file, settings).translate(load_translator(**load_arguments), rank)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
