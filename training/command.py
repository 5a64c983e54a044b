"""How a script ends that cannot go on; see `lvnar_hf.commands.errors`.

What is unusual: a file that is not there, and a mistake in a recipe, are told in one line too.
"""

import sys
import traceback as tracebacks
from pathlib import Path
from types import TracebackType

from lvnar_hf.commands.errors import explain

# What to do after Ctrl-C, where it is not the same command again.
GO_ON = dict.fromkeys(["train.py", "teacher.py"], "give the same command with --resume")

# What reads recipes, and what is written as they are: its ValueErrors are mistakes in a file.
_READ_RECIPES = ("recipe.py", "sections.py", "study.py", "quality/variants.py")


def _explain(error: BaseException, script: str) -> str | None:
    if line := explain(error, script, *([GO_ON[script]] if script in GO_ON else [])):
        return line
    *_, last = [None, *tracebacks.extract_tb(error.__traceback__)]
    of_recipes = (Path(__file__).parent / name for name in _READ_RECIPES)
    # So are those of settings that check themselves.
    is_of_recipe = last is not None and (Path(last.filename) in of_recipes or last.name == "__post_init__")
    is_enough = isinstance(error, OSError) or (isinstance(error, ValueError) and is_of_recipe)
    return f"{script}: {error}" if is_enough else None


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    line = _explain(error, sys.argv[0].rpartition("/")[2])
    if line is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(line, file=sys.stderr)


if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:  # one of these scripts was started
    sys.excepthook = _hook
