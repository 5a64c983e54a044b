"""The output folder of a run: nothing is written over unasked, and another run is not taken for this one."""

import json
import shutil
from pathlib import Path
from typing import Any

from training.outputs import refuse_existing


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
