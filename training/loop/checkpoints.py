"""The output folder of a run: nothing is written over unasked, and another run is not taken for this one."""

import json
import shutil
from pathlib import Path
from typing import Any

from lvnar_hf.files.outputs import different_settings, refuse_existing

_WRITTEN = ("log.jsonl", "run.json", "checkpoints", "best", "states", "tensorboard")  # by a run


def has_taken_steps(folder: Path) -> bool:
    """Whether a run there has logged a step, or left a state or a checkpoint."""
    log = folder / "log.jsonl"
    folders = (folder / name for name in ("states", "checkpoints", "best"))
    return (log.exists() and log.stat().st_size > 0) or any(f.is_dir() and any(f.iterdir()) for f in folders)


def holds_other_files(folder: Path) -> bool:
    """Whether there is a file that is no run's."""
    return folder.exists() and (not folder.is_dir() or any(path.name not in _WRITTEN for path in folder.iterdir()))


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
    if different := different_settings(begun_with, description):
        raise ValueError(f"The run in {folder} was begun with other settings. {different}")
