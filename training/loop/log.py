"""The log of a run: a line of JSON each time, and the same for TensorBoard if asked."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvnar_hf.files.atomic import atomic_file
from training.loop.objectives import Objective


class RunLog:
    """Writes `log.jsonl` in the output folder, and the folder `tensorboard` if it is wanted.

    Raises:
        ImportError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool):
        self.file = folder / "log.jsonl"
        self.tensorboard_folder = folder / "tensorboard" if tensorboard else None
        self._writer: Any = None
        if tensorboard:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError as error:
                raise ImportError("TensorBoard is not installed: pip install tensorboard") from error

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; it has `kind`, `epoch`, `step`, `minutes` and figures."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.tensorboard_folder is not None:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.tensorboard_folder), purge_step=line["step"])
            for name, value in line.items():
                if name not in ("kind", "step"):
                    self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])
            self._writer.flush()

    def num_lines(self, kind: str) -> int:
        """Lines of a kind so far."""
        lines = self.file.read_text("utf-8").splitlines() if self.file.exists() else []
        return sum(f'"kind": "{kind}"' in line for line in lines)

    def cut_after(self, step: int) -> None:
        """Remove what was logged after a step: it will be run again."""
        if not self.file.exists():
            return
        lines = self.file.read_text("utf-8").splitlines()
        with atomic_file(self.file) as unfinished:
            unfinished.write_text("".join(line + "\n" for line in lines if _is_logged_by(line, step)), "utf-8")


def _is_logged_by(line: str, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to `step`."""
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:  # cut off when the process was killed
        return False


class LogWindow:
    """Sums over the steps since the last line of the log; saved and loaded with the state of the run."""

    def __init__(self) -> None:
        self._start_anew()
        self.start = self.last_time = time.perf_counter()

    def _start_anew(self) -> None:
        self.sums: Counter[str] = Counter()
        self.num_steps = 0
        self.settings: Mapping[str, float] = {}
        self.seconds_loading = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the next line needs of the steps that were taken."""
        seconds = self.last_time - self.start
        return {
            **vars(self),
            "sums": dict(self.sums),
            "settings": dict(self.settings),
            "start": 0.0,
            "last_time": seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The steps of another session; `leave_out_pause` must follow."""
        vars(self).update(state, sums=Counter(state["sums"]))

    def leave_out_pause(self) -> None:
        """Not count the time since the last step, in which something else was done."""
        now = time.perf_counter()
        self.start, self.last_time = self.start + (now - self.last_time), now

    def add(self, sums: Mapping[str, float], settings: Mapping[str, float], seconds_loading: float) -> None:
        """One step: what can be added up, with `loss` and `grad_norm`; and what it was taken with."""
        self.sums.update(sums)
        self.num_steps += 1
        self.settings = settings
        self.seconds_loading += seconds_loading
        self.last_time = time.perf_counter()

    def summary(self, objective: Objective) -> dict[str, float]:
        """Figures of the steps, and speeds a second; then start anew."""
        seconds = self.last_time - self.start
        line = {
            **objective.figures(self.sums),
            "loss": self.sums["loss"] / self.num_steps,
            "grad_norm": self.sums["grad_norm"] / self.num_steps,
            **self.settings,
            "target_tokens_per_second": self.sums["target_tokens"] / seconds,
            "loading_share": self.seconds_loading / seconds,
        }
        self._start_anew()
        self.start = self.last_time
        return line
