"""Folders of a run: each appears whole or not at all, and nothing is written over unasked."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.outputs import refuse_existing


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when everything is written.

    Until then, and if writing fails (a full disk, a kill), what was in `folder` before stays there.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    put_in_place(unfinished, folder)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename a folder that is whole, over an older one of that name; `restore_replaced` undoes half a replacement."""
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(unfinished, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(folder: Path) -> None:
    """Put the older folder back, if the process was killed between the two renames of `put_in_place`."""
    replaced = folder.with_name(folder.name + ".replaced")
    if replaced.exists() and not folder.exists():
        os.rename(replaced, folder)


def prepare_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with something in it; or, with `overwrite`, remove what an earlier run has written there.

    Raises:
        FileExistsError: if the folder is not empty and `overwrite` is False.
    """
    refuse_existing(folder, overwrite, "--output_folder (or --resume)")
    for name in ("log.jsonl", "run.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "best", "states", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def check_same_run(folder: Path, description: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings than those it was begun with, which `run.json` holds.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    file = folder / "run.json"
    begun_with = json.loads(file.read_text("utf-8")) if file.exists() else {}
    names = sorted(begun_with.keys() | description.keys())
    different = [
        f"{name}: {begun_with.get(name)!r} then, {description.get(name)!r} now"
        for name in names
        if begun_with.get(name) != description.get(name)
    ]
    if different:
        raise ValueError(f"The run in {folder} was begun with other settings. " + "; ".join(different))
