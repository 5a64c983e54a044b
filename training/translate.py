r"""Translate a file, or standard input, line by line; the output has a line for each.

    python training/translate.py --model model_cards/lvnar-tatoeba-en-de --input_file in.txt --output_file out.txt
    accelerate launch --num_processes 4 training/translate.py --model ... --input_file in.txt.gz --output_file out.txt

Killed at any moment and started again, with any number of processes, it goes on where it was. The last line on standard
output is a summary in JSON, which `out.txt.translation.json` keeps.
"""

import gzip
import json
import shutil
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TextIO

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs
from transformers import HfArgumentParser

from lvnar_hf.files.atomic import read_json
from training.file_translation import FileTranslation, translate_with_workers
from training.line_translator import ENGINES, load_translator
from training.reports.environment import describe_machine

GZIP_START = b"\x1f\x8b"


@dataclass
class TranslationArguments:
    """What is translated by which model, and how."""

    model: str = field(metadata={"help": "model folder or Hub id"})
    input_file: str = field(metadata={"help": "text, UTF-8, plain or gzip; -: standard input"})
    output_file: str = field(
        metadata={"help": "the translations, a line each; -: standard output, and the summary on standard error"}
    )
    engine: str = field(default="auto", metadata={"help": f"one of {', '.join(ENGINES)}"})
    num_refinement_steps: int | None = field(default=None, metadata={"help": "by default the model's own"})
    max_batch_tokens: int | None = field(
        default=None, metadata={"help": "of a batch, padding included; by default 512 on the CPU, 16384 on a GPU"}
    )
    shard_size: int = field(default=2000, metadata={"help": "lines that are sorted, translated and stored together"})
    num_workers: int | None = field(
        default=None, metadata={"help": "processes on this machine; by default one a core on the CPU, else one"}
    )
    preserve_format: bool = field(
        default=True,
        metadata={"help": "several sentences a line, with marks and spans that must not change, are taken apart first"},
    )
    overwrite: bool = field(default=False, metadata={"help": "throw away what is there"})


def spool_standard_input() -> BinaryIO:
    """Copy standard input, plain or gzip, to a file without a name, which is gone when it is closed.

    Raises:
        ValueError: it begins as gzip and is no whole gzip file.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller keeps it open)
    stream: Any = sys.stdin.buffer
    if stream.peek(2)[:2] == GZIP_START:
        stream = gzip.open(stream)  # noqa: SIM115
    try:
        shutil.copyfileobj(stream, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"Standard input is not a whole gzip file: {error}") from error
    file.flush()
    return file


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Translate, print the summary, and return it, in the first process.

    To standard output, it goes by way of a file that is gone afterwards; so there is nothing to go on with.

    Raises:
        ValueError: for arguments that are wrong or cannot be combined, or settings that differ from those of the
            translation that was begun.
        FileNotFoundError: there is no such input, or no such graph.
        FileExistsError: there is an output already, and `--overwrite` is not given.
    """
    (arguments,) = HfArgumentParser(TranslationArguments).parse_args_into_dataclasses(argv)
    if arguments.output_file != "-":
        return translate(arguments, sys.stdout)
    with tempfile.TemporaryDirectory(prefix="lvnar-translate-") as folder:
        arguments.output_file = str(Path(folder, "translations.txt"))
        result = translate(arguments, sys.stderr)
        with open(arguments.output_file, "rb") as translations:
            shutil.copyfileobj(translations, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return result


def translate(arguments: TranslationArguments, summary: TextIO) -> dict[str, Any] | None:
    """What `main` does, to a file; the summary goes to a stream."""
    # The processes meet only when the first has copied the input, which takes minutes for a large one.
    state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))])
    if not state.is_main_process:
        transformers.utils.logging.disable_progress_bar()
    if summary is sys.stderr and state.num_processes > 1:
        raise ValueError("--output_file - is for one process: name a file, which all processes can see.")
    is_cpu = state.device.type == "cpu"
    num_workers, max_batch_tokens = arguments.num_workers, arguments.max_batch_tokens
    if num_workers is None:
        num_workers = torch.get_num_threads() if is_cpu and state.num_processes == 1 else 1
    if max_batch_tokens is None:
        max_batch_tokens = 512 if is_cpu else 16_384
    if num_workers < 1 or (num_workers > 1 and (state.num_processes > 1 or not is_cpu)):
        raise ValueError(
            f"num_workers is {num_workers}; it must be at least 1, and 1 on a GPU and where accelerate has started "
            f"several processes ({state.num_processes})."
        )
    load_arguments = {
        "name": arguments.model,
        "num_refinement_steps": arguments.num_refinement_steps,
        "max_batch_tokens": max_batch_tokens,
        "device": state.device,
        "preserve_format": arguments.preserve_format,
    }
    translator = load_translator(engine=arguments.engine, **load_arguments)
    load_arguments["engine"] = translator.engine
    settings = {
        "model_fingerprint": translator.fingerprint,
        "engine": translator.engine,
        "num_refinement_steps": translator.num_refinement_steps,
        "max_batch_tokens": translator.max_batch_tokens,
        "shard_size": arguments.shard_size,
        "preserve_format": arguments.preserve_format,
    }
    input_file = arguments.input_file
    if input_file == "-" and state.is_main_process:
        spooled = spool_standard_input()
        input_file = f"/dev/fd/{spooled.fileno()}"
    run = FileTranslation(input_file, arguments.output_file, settings)
    if state.is_main_process:
        run.prepare(arguments.overwrite)
    state.wait_for_everyone()
    if not run.work.exists():
        state.print(f"nothing to do: {run.place} is finished", file=sys.stderr)
        result = read_json(run.result_file)
        state.print(json.dumps(result), file=summary)
        return result
    num_workers = max(1, min(num_workers, run.num_shards))
    if num_workers > 1:
        translate_with_workers(run, num_workers, max(1, torch.get_num_threads() // num_workers), load_arguments)
    else:
        run.translate(translator, state.process_index)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    result = run.merge(
        {
            "model": arguments.model,
            "engine": translator.engine,
            "num_refinement_steps": translator.num_refinement_steps,
            "num_processes": max(num_workers, state.num_processes),
            "machine": describe_machine(state.device),
        }
    )
    print(json.dumps(result), file=summary)
    return result


if __name__ == "__main__":
    main()
