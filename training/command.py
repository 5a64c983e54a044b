"""How a script ends that cannot go on: one line, in place of Python's traceback, for what its user can mend."""

import sys
from pathlib import Path
from types import TracebackType

# Modules that are no requirement of the package, and the extra of pyproject.toml that brings them.
EXTRAS = {
    **dict.fromkeys(["accelerate", "datasets", "filelock", "numpy", "pyarrow", "yaml"], "train"),
    **dict.fromkeys(["sacrebleu", "sentencepiece", "tensorboard", "tqdm"], "train"),
    **dict.fromkeys(["evaluate", "matplotlib"], "eval"),
    **dict.fromkeys(["fugashi", "sacremoses", "unidic_lite"], "ja"),
    **dict.fromkeys(["onnx", "onnxruntime", "onnxscript"], "export"),
    "ctranslate2": "distil",
    "Mykytea": "kytea",
}
# What to do after Ctrl-C; for all others, the same command again.
_GO_ON = dict.fromkeys(["train.py", "teacher.py"], "give the same command with --resume")


def explain(kind: type[BaseException], error: BaseException, script: str) -> str | None:
    """The line for an error that ended a script, or None for one that needs its traceback."""
    if issubclass(kind, KeyboardInterrupt):
        return f"Stopped. To go on, {_GO_ON.get(script, 'give the same command again')}."
    module = (getattr(error, "name", None) or "").partition(".")[0]
    if issubclass(kind, ModuleNotFoundError) and module in EXTRAS:
        return f"{script} needs {module}, which is not installed: pip install 'lvnar-hf[{EXTRAS[module]}]'"
    return None


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    line = explain(kind, error, sys.argv[0].rpartition("/")[2])
    if line is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        print(line, file=sys.stderr)


if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:  # one of these scripts was started
    sys.excepthook = _hook
