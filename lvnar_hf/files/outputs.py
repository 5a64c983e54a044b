"""What a command may write over, what it may read, and whether a run that was begun is the one that was asked for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def refuse_existing(path: str | Path, overwrite: bool, flag: str) -> Path:
    """The path, if nothing is there: no file, and no folder with something in it.

    Args:
        path: file or folder that is about to be written.
        overwrite: write all the same.
        flag: the command's flag for the path, for the message.

    Raises:
        FileExistsError: names the path and both ways out.
        NotADirectoryError, PermissionError: it cannot be written.
    """
    path = Path(path)
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{path} cannot be written, since {place} is a file: name another {flag}.")
    if not os.access(path if path.exists() else place, os.W_OK):
        raise PermissionError(f"{path} may not be written: name another {flag}.")
    exists = any(path.iterdir()) if path.is_dir() else path.exists()
    if exists and not overwrite:
        raise FileExistsError(f"{path} exists and is not empty: name another {flag}, or give --overwrite.")
    return path


def refuse_missing_folder(name: str) -> str:
    """The name of a model, unless it is plainly a path and nothing is there: the Hub would be asked in vain.

    A path begins with a sign of one, has more or fewer parts than `user/name`, or begins with a folder that is here.

    Raises:
        FileNotFoundError: names it.
    """
    first, *others = name.split("/")
    is_path = name.startswith((".", "/", "~")) or len(others) > 1 or (bool(others) and Path(first).is_dir())
    if is_path and not Path(name).exists():
        raise FileNotFoundError(f"There is no folder {name}, and it is no id of the Hub, which would be user/name.")
    return name


def different_settings(begun_with: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings in which a run that was begun is not the one that is asked for, both values of each; "" if none."""
    return "; ".join(
        f"{name}: {begun_with.get(name)!r} then, {settings.get(name)!r} now"
        for name in sorted(begun_with.keys() | settings.keys())
        if begun_with.get(name) != settings.get(name)
    )
