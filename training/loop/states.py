"""The states of a run: all that the rest of it depends on, weights, optimizer and progress.

What is unusual: two are kept, and each says what its files hold. One that was damaged since is seen before any of it is
loaded, by all processes alike, and the run goes on from the one before.
"""

import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from lvnar_hf.files.atomic import atomic_folder, hash_file, read_json, restore_replaced, write_json

STEP_FOLDERS = "step-" + "[0-9]" * 7  # those that are whole
NUM_KEPT = 2
HASHES_FILE = "sha256.json"


class RunStates:
    """The folder `states` of a run.

    Args:
        accelerator: saves and loads what it has prepared, and what is registered with it.
        folder: one folder in it a state.
    """

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.accelerator, self.folder = accelerator, folder

    def whole(self) -> list[Path]:
        """Those that were written to their end, oldest first."""
        return sorted(self.folder.glob(STEP_FOLDERS))

    def save(self, step: int) -> None:
        """Save one, which appears under its name when it is whole; then those before the last two go.

        Raises:
            OSError: the disk is full; those that were there stay.
        """
        accelerator, is_main = self.accelerator, self.accelerator.is_main_process
        folder = self.folder / f"step-{step:07d}"  # may be there: saved before its epoch's validation
        unfinished = folder.with_name(folder.name + ".unfinished")
        with atomic_folder(folder) if is_main else nullcontext():
            accelerator.wait_for_everyone()
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if is_main:
                write_json(unfinished / HASHES_FILE, _hash_files(unfinished))
        if is_main:
            self._remove_all_but(self.whole()[-NUM_KEPT:])
        accelerator.wait_for_everyone()

    def load_newest(self) -> Path | None:
        """Load the newest that can be loaded, remove newer ones, and return its folder; None if there is none at all.

        Raises:
            RuntimeError: none can be loaded; says why of each.
        """
        if self.accelerator.is_main_process:
            for replaced in self.folder.glob(STEP_FOLDERS + ".replaced"):
                restore_replaced(replaced.with_suffix(""))
        self.accelerator.wait_for_everyone()
        states = self.whole()
        if not states:
            return None
        reasons: list[str] = []
        for index in reversed(range(len(states))):
            reason = self._load(states[index])
            if reason is None:
                if self.accelerator.is_main_process:
                    for other in states[index + 1 :]:  # their steps will be run again
                        shutil.rmtree(other)
                self.accelerator.wait_for_everyone()
                return states[index]
            reasons.append(f"{states[index]}: {reason}")
            if index and self.accelerator.is_main_process:
                warnings.warn(f"A state cannot be loaded; trying the one before. {reasons[-1]}", stacklevel=2)
        raise RuntimeError(f"No state can be loaded; give --overwrite to begin anew. {'; '.join(reasons)}")

    def _load(self, folder: Path) -> str | None:
        """Load a state; or why not, if one process cannot."""
        reason = _damage(folder) if self.accelerator.is_main_process else None
        if not self._is_reason_of_any(reason):
            try:
                self.accelerator.load_state(str(folder))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            if not self._is_reason_of_any(reason):
                return None
        return reason or "another process has refused it"

    def _is_reason_of_any(self, reason: str | None) -> bool:
        is_reason = torch.tensor(int(reason is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(is_reason, "sum"))

    def _remove_all_but(self, kept: list[Path]) -> None:
        for other in self.folder.iterdir():
            if other not in kept:
                shutil.rmtree(other)


def _hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by its name from there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != HASHES_FILE)
    return {str(file.relative_to(folder)): hash_file(file) for file in files}


def _damage(folder: Path) -> str | None:
    """How a state is not as it was written, or None; of one without hashes, from before they were, nothing is known."""
    try:
        written = read_json(folder / HASHES_FILE)
        found = {} if written is None else _hash_files(folder)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    if written is None or written == found:
        return None
    missing = sorted(written.keys() - found.keys())
    changed = sorted(name for name in written.keys() & found.keys() if written[name] != found[name])
    parts = {"missing": missing, "not as written, by their hash": changed, "added": sorted(found.keys() - written)}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)
