"""The output folder of a run.

Nothing is written over unasked, another run is not taken for this one, and one training at a time is at work in it.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lvnar_hf import LvnarTokenizer
from lvnar_hf.files.atomic import read_json, try_lock
from lvnar_hf.files.outputs import different_settings, refuse_existing

FOLDERS = ("checkpoints", "best", "states", "tensorboard")
LOCK_FILE, RUN_FILE = "lock", "run.json"
_WRITTEN = ("log.jsonl", RUN_FILE, f".{RUN_FILE}.unfinished", LOCK_FILE, *FOLDERS)  # by a run
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system's that has none


def has_taken_steps(folder: Path) -> bool:
    """Whether a run there has logged a step, or left a state or a checkpoint."""
    log = folder / "log.jsonl"
    folders = (folder / name for name in ("states", "checkpoints", "best"))
    return (log.exists() and log.stat().st_size > 0) or any(f.is_dir() and any(f.iterdir()) for f in folders)


def holds_other_files(folder: Path) -> bool:
    """Whether there is a file that is no run's."""
    return folder.exists() and (not folder.is_dir() or any(path.name not in _WRITTEN for path in folder.iterdir()))


def refuse_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a run or other files, unless `overwrite` is given; a run without a step is no run.

    Raises:
        FileExistsError: names the folder and both ways out.
    """
    has_begun = (folder / RUN_FILE).exists() and has_taken_steps(folder)
    is_free = overwrite or not (has_begun or holds_other_files(folder))
    refuse_existing(folder, is_free, "--output_folder (or --resume)")


def prepare_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuse what `refuse_output_folder` does; else remove what an earlier run has written there."""
    refuse_output_folder(folder, overwrite)
    for name in ("log.jsonl", RUN_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def only_training_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process, for the time of the block; see `try_lock`.

    Raises:
        RuntimeError: another training holds it; names its process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            is_mine = stack.enter_context(try_lock(file))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{folder} is on a file system without locks: start no other training there.", stacklevel=3)
            is_mine = True
        if not is_mine:
            raise RuntimeError(
                f"Another training is at work in {folder}: {file.read_text('utf-8').strip() or 'it has just begun'}. "
                "Wait until it ends, end it, or name another --output_folder."
            )
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n", "utf-8")
        yield


def describe_inputs(train_text: Any, valid_text: Any, tokenizer: LvnarTokenizer) -> dict[str, str]:
    """What a run is made from, beside its settings, as SHA-256: both texts and the vocabularies.

    Args:
        train_text, valid_text: keys of `TextPairs`.
    """
    vocabularies = [b.get_vocab() for b in (tokenizer.backend_tokenizer, tokenizer.target_backend_tokenizer)]
    inputs = {"train_text": train_text, "valid_text": valid_text, "vocabularies": vocabularies}
    return {
        f"{name}_sha256": hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for name, value in inputs.items()
    }


def check_same_run(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Refuse to resume a run with other settings, text or vocabularies than it was begun with, which `run.json` holds.

    A run that was begun before inputs were written down is taken to have had these.

    Raises:
        ValueError: names each that differs, with both values.
    """
    begun_with = read_json(folder / RUN_FILE) or {}
    if unknown := {name: value for name, value in inputs.items() if name not in begun_with}:
        warnings.warn(f"{folder / RUN_FILE} does not know {', '.join(unknown)}: taken as found now.", stacklevel=2)
    if different := different_settings({**begun_with, **unknown}, {**settings, **inputs}):
        raise ValueError(f"The run in {folder} was begun with other settings. {different}")
