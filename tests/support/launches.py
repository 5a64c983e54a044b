"""`accelerate launch` on two CPU processes; and the same without a launcher, forked from one that has all imported.

And commands that start processes themselves, to be killed.
"""

import functools
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from forks import PYTHONPATH

SHARDED = (
    "--use_fsdp",
    "--fsdp_version=2",
    "--fsdp_auto_wrap_policy=NO_WRAP",
    "--fsdp_cpu_ram_efficient_loading=false",
)


def launch(*command: str, folder: Path, is_sharded: bool = False) -> str:
    """What `accelerate launch` prints of a script that ends well."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += [*(SHARDED if is_sharded else ("--multi_gpu",)), "--num_machines", "1"]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(folder / "cache")}
    environment["OMP_NUM_THREADS"] = "1"
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run([*launcher, *command], **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@functools.cache
def launched_environments(is_sharded: bool = False) -> list[dict[str, str]]:
    """The environment variables that `accelerate launch` gives to each of two processes."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "script.py"
        script.write_text("import json, os\njson.dump(dict(os.environ), open(os.environ['RANK'] + '.json', 'w'))\n")
        launch(str(script), folder=script.parent, is_sharded=is_sharded)
        return [json.loads((script.parent / f"{rank}.json").read_text()) for rank in range(2)]


def _run_as_launched(environment: dict[str, str], folder: Path, command: tuple[str, ...]) -> None:
    """A command with the environment that a launcher would give, in this process and to its end."""
    with open(folder / f"rank-{environment['RANK']}.txt", "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    torch.set_num_threads(1)
    sys.argv = list(command)
    if command[0] == "-m":
        del sys.argv[0]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that calls this function, forked from one that has all modules imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.loop.test_processes", "tests.distillation.test_distil"])
    process = context.Process(target=target, args=arguments, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)  # for the process that is forked from, which the first start makes
        process.start()
    return process


def fork(*command: str, folder: Path, is_sharded: bool = False) -> list:
    """Two processes that run a script, or a module after "-m", as if launched; they print to rank-*.txt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for given in launched_environments(is_sharded):
        # There is no launcher to find the other process by: the first of the two waits for it at the port.
        environment = {name: value for name, value in given.items() if not name.startswith("TORCHELASTIC_")}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(start(_run_as_launched, environment, folder, tuple(map(str, command))))
    return processes


def wait_for(processes: list, folder: Path, timeout: float = 300) -> tuple[list[int], str]:
    """How both end, and what they print; one that fails ends the other, which would wait for it."""
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break
        time.sleep(0.02)
    kill(processes)
    output = "".join(file.read_text("utf-8") for file in sorted(folder.glob("rank-*.txt")))
    return [process.exitcode for process in processes], output


def kill(processes: list) -> None:
    """SIGKILL to those that are still there."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def run_apart(*command: object, env: dict[str, str] | None = None) -> subprocess.Popen:
    """A script, or a module after "-m", in a process of its own, which has just been started."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(env or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, **pipes)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen) -> None:
    """Return when it is so, and the process is still at work."""
    deadline = time.monotonic() + 200
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def kill_and_see_all_end(pid: int, process: subprocess.Popen) -> str:
    """SIGKILL to a process, which is a command's or one that it has started; what that printed, when none is left."""
    others = _children(process.pid)
    os.kill(pid, signal.SIGKILL)
    printed = process.communicate(timeout=60)[0]
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{other}/cmdline").exists() for other in others):
        assert time.monotonic() < deadline, printed
        time.sleep(0.05)
    return printed


def _children(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for file in files for child in file.read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]
