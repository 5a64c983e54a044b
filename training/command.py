"""How a script ends that cannot go on; see `lvnar_hf.commands.errors`."""

import sys
from pathlib import Path
from types import TracebackType

from lvnar_hf.commands.errors import explain

# What to do after Ctrl-C, where it is not the same command again.
GO_ON = dict.fromkeys(["train.py", "teacher.py"], "give the same command with --resume")


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    script = sys.argv[0].rpartition("/")[2]
    line = explain(error, script, *([GO_ON[script]] if script in GO_ON else []))
    if line is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(line, file=sys.stderr)


if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:  # one of these scripts was started
    sys.excepthook = _hook
