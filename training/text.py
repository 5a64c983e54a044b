"""Reading line-aligned text: one sentence a line, UTF-8, plain or gzip."""

import gzip
from collections.abc import Iterator
from pathlib import Path


def read_lines(path: str | Path) -> Iterator[str]:
    r"""Yield the lines of a text file without their line ends, in order.

    Only "\n" ends a line, so that files stay aligned when a sentence holds U+2028, U+0085 or a form feed; a "\r" before
    it goes too. A file name that ends in ".gz" is read as gzip.

    Raises:
        ValueError: a line is not valid UTF-8; names the file and the line, counted from 1.
    """
    path = Path(path)
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error})") from error
