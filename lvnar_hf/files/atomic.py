"""Files and folders that are there whole or not at all, and locks that end with the process that holds them."""

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def map_file(file: Path) -> mmap.mmap:
    """A file's bytes, read as they are asked for."""
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


_held: set[int] = set()  # descriptors that hold locks


def _let_go() -> None:
    """A forked child, such as a worker of a data loader, would keep its parent's locks after the parent's death."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def try_lock(file: Path) -> Iterator[bool]:
    """Whether this process has the lock on a file, for the time of the block; the system frees it at death.

    It is an flock: between machines it holds where the shared file system passes such locks on, as NFS does from
    Linux 2.6.12 on, with its lock service, and Lustre when mounted with the option `flock`.
    """
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


@contextlib.contextmanager
def atomic_file(file: Path, writer: str = "") -> Iterator[Path]:
    """A name to write to; if the block ends well, the file is brought to disk and gets its own name.

    Args:
        writer: is in the name to write to, where several may write the same file at the same time.
    """
    unfinished = file.with_name(f".{file.name}{writer}.unfinished")
    try:
        yield unfinished
        _sync(unfinished)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, file)
    _sync(file.parent)


def check_writable(file: Path) -> None:
    """Raise OSError if `atomic_file` could not write this file: a name that is too long, a folder of this name."""
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder: it cannot be written as a file.")
    # As long a name, and nobody else's.
    probe = file.with_name(f".{file.name}.{os.getpid():0{len('unfinished')}d}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(error.errno, f"{file} cannot be written: {error.strerror}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when everything is written.

    Until then, and if writing fails (a full disk, a kill), what was in `folder` before stays there.

    Raises:
        OSError: the disk is full, whichever library met it.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            _sync(path)
    except BaseException as error:
        num_free = shutil.disk_usage(unfinished).free if unfinished.exists() else 0
        shutil.rmtree(unfinished, ignore_errors=True)
        if _is_of_full_disk(error):
            raise OSError(
                errno.ENOSPC,
                f"No space left on device: {num_free:,} bytes were free when this could not be written; what was "
                "there before stays",
                str(folder),
            ) from error
        raise
    _put_in_place(unfinished, folder)


def _is_of_full_disk(error: BaseException) -> bool:
    """Whether a disk or a quota is full: torch speaks of its archive then, safetensors of the system's number."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    marks = (
        "inline_container.cc",
        "PytorchStreamWriter",
        "iostream error",
        f"os error {errno.ENOSPC}",
        f"os error {errno.EDQUOT}",
    )
    return any(mark in str(error) for mark in marks)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a folder that is whole, over an older one of that name; `restore_replaced` undoes half a replacement."""
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(unfinished, folder)
    _sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(folder: Path) -> None:
    """Put the older folder back, if the process was killed between the two renames of `atomic_folder`."""
    replaced = folder.with_name(folder.name + ".replaced")
    if replaced.exists() and not folder.exists():
        os.rename(replaced, folder)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write JSON that is there whole or not at all, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(file: Path) -> dict[str, Any] | None:
    """What a file holds, or None if there is none."""
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def hash_file(file: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
