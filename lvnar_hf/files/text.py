"""Line-aligned text: one sentence a line, UTF-8, plain or gzip."""

import codecs
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

_GZIP_START = b"\x1f\x8b"


def read_lines(path: str | Path) -> Iterator[str]:
    r"""Yield the lines of a text file without their line ends, in order.

    Only "\n" ends a line, so that files stay aligned when a sentence holds U+2028, U+0085 or a form feed; a "\r" before
    it goes too, and so does a byte order mark at the start of the file. A file name that ends in ".gz" is read as gzip.

    Raises:
        ValueError: a line is not valid UTF-8; names the file and the line, counted from 1. Or a gzip file is cut off or
            damaged.
    """
    path = Path(path)
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error})") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}, after line {number}: not a whole gzip file ({error})") from error


def read_files(paths: Sequence[str]) -> Iterator[str]:
    """Yield the lines of several files, one file after another."""
    return chain.from_iterable(map(read_lines, paths))


def check_files(paths: Sequence[str | Path]) -> None:
    """Raise FileNotFoundError for the first of the files that is not there."""
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no text file {path}.")


def check_parallel(source_files: Sequence[str], target_files: Sequence[str]) -> int:
    """Read both sides once and return their number of lines.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: if a side has no lines, or the sides have different numbers of lines, or a line is not UTF-8.
    """
    num_source_lines, num_target_lines = (sum(1 for _ in read_files(files)) for files in (source_files, target_files))
    if num_source_lines != num_target_lines:
        raise ValueError(
            f"The sides have different numbers of lines: {num_source_lines} in {list(source_files)}, "
            f"{num_target_lines} in {list(target_files)}."
        )
    if not num_source_lines:
        raise ValueError(f"There is not a line in {list(source_files)} and {list(target_files)}.")
    return num_source_lines


def one_line(text: str) -> str:
    r"""The text with a space for each "\r\n", "\n" and "\r"; U+2028 and the like stay, as they end no line here."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def spool(stream: Any) -> BinaryIO:
    """Copy standard input's bytes, plain or gzip, to a file without a name, which is gone when it is closed.

    Args:
        stream: buffered.

    Raises:
        ValueError: it begins as gzip and is no whole gzip file.
    """
    file: Any = tempfile.TemporaryFile()  # noqa: SIM115  (the caller keeps it open)
    if stream.peek(2)[:2] == _GZIP_START:
        stream = gzip.open(stream)  # noqa: SIM115
    try:
        shutil.copyfileobj(stream, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"Standard input is not a whole gzip file: {error}") from error
    file.flush()
    return file
