"""Commands run by a process that has the heavy modules imported: a fork of it, in place of a start of seconds.

What runs is what `python -c CODE`, `python -m MODULE` or `python SCRIPT` runs: as `__main__`, with arguments, folder,
environment and standard input of its own, to the interpreter's own end. What Python and the libraries take from the
environment when they are imported (PYTHONPATH, HF_HOME, HF_HUB_OFFLINE, OMP_NUM_THREADS) is the server's.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "support")))
# Not this package: whoever runs imports it, or must not.
MODULES = ("torch", "transformers.pipelines", "transformers.modeling_utils", "transformers.models.auto")
OF_TRAINING = ("accelerate", "datasets", "sacrebleu")


class _Server:
    """Forks one process after another, of one Python."""

    def __init__(self, python: str):
        self.folder = Path(tempfile.mkdtemp(prefix="lvnar-forks-"))
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
        environment |= {name: str(self.folder / name) for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE")}
        modules = MODULES + OF_TRAINING * (python == sys.executable)
        self.process = subprocess.Popen(
            [python, __file__, self.folder, *modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, command: list[Any], input: str, env: dict[str, str] | None, cwd: Any, timeout: float
    ) -> subprocess.CompletedProcess:
        (self.folder / "stdin").write_text(input, "utf-8")
        task = {"command": list(map(str, command)), "cwd": str(cwd or Path.cwd()), "env": {**os.environ, **(env or {})}}
        print(json.dumps(task), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            os.killpg(self.process.pid, signal.SIGKILL)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(command, timeout)
        code = int(self.process.stdout.readline())
        output = [(self.folder / stream).read_text("utf-8", "replace") for stream in ("stdout", "stderr")]
        return subprocess.CompletedProcess(command, code, *output)


_server = functools.cache(_Server)


def run_forked(
    command: list[Any],
    python: str = sys.executable,
    input: str = "",
    env: dict[str, str] | None = None,
    cwd: Any = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """What `subprocess.run([python, *command])` gives: exit code and output. `env` is added to this environment."""
    return _server(python).run(command, input, env, cwd, timeout)


def _become(task: dict[str, Any], folder: Path) -> None:
    """Turn this process into the one asked for, and run what it runs."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        with open(folder / name, mode, encoding="utf-8") as file:
            os.dup2(file.fileno(), descriptor)
        setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(task["env"])
    os.chdir(task["cwd"])
    name, *arguments = task["command"]
    if name == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = [name, *arguments], ""
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif name == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [name, *arguments], ""
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [name, *arguments], str(Path(name).resolve().parent)
        runpy.run_path(name, run_name="__main__")


def _serve(folder: Path, modules: list[str]) -> None:
    """Fork for each task on standard input, and say how it ended."""
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else each fork copies all that is there when it ends
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line), folder)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
