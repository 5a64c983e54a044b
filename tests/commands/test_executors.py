"""The same tasks elsewhere: a process a device, Slurm by the script it writes, Ray with a cluster on this machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import PYTHONPATH

from lvnar_hf.jobs.executors import run_tasks
from lvnar_hf.jobs.file_translation import FileTranslation, translate_file
from lvnar_hf.jobs.line_translator import TranslatedLines
from lvnar_hf.jobs.processes import worker_devices
from tests.distillation.test_distil import flags, read
from tests.distillation.test_teacher_engines import make_teacher_model
from training import distil


class Marker:
    """Puts a mark before a line, for which a device may stand."""

    def __init__(self, mark: str, seconds: float = 0.0, failing: Path | None = None):
        self.mark, self.seconds, self.failing = mark, seconds, failing

    def translate(self, lines, on_progress=lambda lines: None):
        time.sleep(self.seconds)
        if self.failing is not None and self.failing.exists() and "4" in lines:
            raise OSError("no such weather")
        return TranslatedLines([f"{self.mark} {line}" for line in lines], 0, 0, 0, 0)


def load_marker(seconds: float, device: str) -> Marker:
    return Marker(device, seconds)


def load_failing(failing: Path, device: str) -> Marker:
    return Marker(device, failing=failing)


def make_run(folder: Path, **changes) -> FileTranslation:
    (folder / "in").write_text("".join(f"{number}\n" for number in range(9)))
    run = FileTranslation(folder / "in", folder / "out", {"shard_size": 3, **changes})
    run.prepare()
    return run


def test_each_process_has_a_device(tmp_path):
    run = make_run(tmp_path, shard_size=1)
    run.load_engine = partial(load_marker, 0.5)
    assert run_tasks(run, None, ["a", "b"])
    result = run.merge({"num_refinement_steps": None})
    devices, numbers = zip(*(line.split() for line in (tmp_path / "out").read_text().splitlines()), strict=True)
    assert set(devices) == {"a", "b"} and numbers == tuple("012345678")
    assert result["processes_of_all_runs"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.translation.json"]


def test_there_is_a_process_a_gpu(monkeypatch):
    monkeypatch.setattr("lvnar_hf.jobs.processes.may_have_gpu", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *sizes, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    gpus = ["cuda:0", "cuda:1", "cuda:2"]
    assert worker_devices(None, None) == worker_devices("cuda", 3) == gpus
    assert worker_devices("cuda", 2) == gpus[:2] and worker_devices("cuda:1", None) == ["cuda:1"]
    assert worker_devices("cpu", 2) == ["cpu", "cpu"] and worker_devices("cpu", None, 1) == ["cpu"]
    for device, number in (("cuda", 4), ("cuda:1", 2), ("cuda", 0)):
        with pytest.raises(ValueError, match=f"num_workers is {number}; it must be at least 1, and one a GPU at most"):
            worker_devices(device, number)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="A launcher has started 2 processes: start one"):
        worker_devices("cpu", None)


@pytest.mark.parametrize(
    ("executor", "options", "message"),
    [
        ("local", ["time=1"], "unexpected keyword argument 'time'"),
        ("slurm", ["time=1:00:00"], "missing 1 required positional argument: 'partition'"),
        ("ray", ["partition=cpu"], "unexpected keyword argument 'partition'"),
    ],
)
def test_an_executor_or_option_that_is_not_there_is_refused(tmp_path, executor, options, message):
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_tasks(run, Marker(""), ["cpu"], executor, options)
    run.close()


def test_an_executor_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "in").write_text("a\n")
    with pytest.raises(ValueError, match="executor is 'cloud'; it must be one of local, slurm, ray"):
        translate_file(tmp_path / "in", tmp_path / "out", "no model", executor="cloud")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# Slurm


SBATCH = """#!/bin/bash
cp "${@: -1}" "$SBATCH_SCRIPTS/$(ls "$SBATCH_SCRIPTS" | wc -l)"
echo Submitted batch job 7
"""
SRUN = """#!/bin/bash
while [[ $1 == -* || $1 == 1 ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "${@: -1}"
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch) -> Path:
    """Where what stands for Slurm's commands leaves the scripts that it is given."""
    (tmp_path / "bin").mkdir()
    for name, content in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "scripts").mkdir()
    monkeypatch.setenv("SBATCH_SCRIPTS", str(tmp_path / "scripts"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "scripts"


def run_as_array_job(script: Path, number: int) -> subprocess.CompletedProcess:
    environment = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}
    return subprocess.run(["bash", script], env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_slurm_does_the_tasks_of_the_script_it_is_given(tiny_repository, tiny_graphs, sample_texts, scripts, tmp_path):
    model = shutil.copytree(tiny_repository, tmp_path / "model")
    shutil.copytree(tiny_graphs, model / "onnx")
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in sample_texts[0][:20]))
    given = {"model": str(model), "engine": "onnx", "shard_size": 8, "device": "cpu", "input_file": tmp_path / "in"}
    translate_file(**given, output_file=tmp_path / "expected", num_workers=1)
    given["output_file"] = tmp_path / "out"
    cluster = {
        "executor": "slurm",
        "executor_options": ["time=1:00:00", "partition=cpu", "cpus_per_task=2", "workers=2"],
    }

    assert translate_file(**given, **cluster) is None and not (tmp_path / "out").exists()
    (script,) = scripts.iterdir()
    written = script.read_text().splitlines()
    for line in ("--array=0-2%2", "--time=1:00:00", "--partition=cpu", "--cpus-per-task=2"):
        assert f"#SBATCH {line}" in written
    assert f"export PATH={os.path.dirname(sys.executable)}:$PATH" in written
    assert written[-1].startswith("srun ") and " launch_pickled_pipeline /" in written[-1]
    for number in (0, 2):
        done = run_as_array_job(script, number)
        assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("out.unfinished/shard-*.jsonl"))) == 2

    # One is not done: it alone is sent again.
    assert translate_file(**given, **cluster) is None
    assert "#SBATCH --array=0-0%2" in (scripts / "1").read_text()
    assert run_as_array_job(scripts / "1", 0).returncode == 0
    with pytest.raises(ValueError, match="shard_size: 8 then, 9 now"):
        translate_file(**{**given, "shard_size": 9}, **cluster)
    result = translate_file(**given, **cluster)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert result["sentences"] == 20 and result["processes_of_all_runs"] == 3
    assert not (tmp_path / "out.unfinished").exists() and len(list(scripts.iterdir())) == 2


def test_slurm_distils(sample_tokenizer, sample_texts, scripts, tmp_path):
    make_teacher_model(len(sample_tokenizer)).save_pretrained(tmp_path / "teacher")
    sample_tokenizer.save_pretrained(tmp_path / "teacher")
    for name, side in zip(("train.en", "train.de"), sample_texts, strict=True):
        (tmp_path / name).write_text("\n".join(side[:20]) + "\n", "utf-8")
    changes = {"train_source_files": tmp_path / "train.en", "train_target_files": tmp_path / "train.de"}
    distil.main(flags(tmp_path, tmp_path / "expected", **changes, shard_size=20))
    cluster = ["--executor", "slurm", "--executor_options", "time=1:00:00", "partition=gpu", "gpus_per_task=1"]
    argv = [*flags(tmp_path, tmp_path / "out", **changes, shard_size=20), *cluster]
    assert distil.main(argv) is None
    (script,) = scripts.iterdir()
    assert "#SBATCH --gpus=1" in script.read_text()
    done = run_as_array_job(script, 0)
    assert done.returncode == 0, done.stderr
    assert distil.main(argv)["counts"]["translated"] == 19, "one is too long"
    assert read(tmp_path / "out") == read(tmp_path / "expected")


# Ray


@pytest.fixture(scope="module")
def cluster():
    """A local cluster of two cores."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_ray_does_the_tasks_and_goes_on_after_one_that_failed(cluster, tmp_path):
    from tests.commands import test_executors as here  # by the name that the cluster's processes import it by

    run = make_run(tmp_path)
    (tmp_path / "failing").touch()
    run.load_engine = partial(here.load_failing, tmp_path / "failing")
    arguments = None, ["cpu"], "ray", ["mem_per_cpu_gb=0.1"]
    with pytest.raises(RuntimeError, match=r"1 of 3 shards are not translated; .*/logs says why") as raised:
        run_tasks(run, *arguments)
    logs = Path(str(raised.value).partition("; ")[2].partition(" says")[0])
    assert "no such weather" in (logs / "task_00001.log").read_text()
    assert run._unfinished_shards() == [1]
    times = {file: file.stat().st_mtime_ns for file in run.work.glob("shard-*.jsonl")}
    (tmp_path / "failing").unlink()
    assert run_tasks(run, *arguments)
    assert all(file.stat().st_mtime_ns == time for file, time in times.items()), "they are not done again"
    result = run.merge({"num_refinement_steps": None})
    assert (tmp_path / "out").read_text() == "".join(f"cpu {number}\n" for number in range(9))
    assert result["processes_of_all_runs"] == 3


def test_ray_gives_the_same(cluster, tiny_repository, tiny_graphs, sample_texts, tmp_path):
    model = shutil.copytree(tiny_repository, tmp_path / "model")
    shutil.copytree(tiny_graphs, model / "onnx")
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in sample_texts[0][:20]))
    given = {"model": str(model), "engine": "onnx", "shard_size": 8, "device": "cpu", "input_file": tmp_path / "in"}
    translate_file(**given, output_file=tmp_path / "here", num_workers=1)
    ray = {"executor": "ray", "executor_options": ["mem_per_cpu_gb=0.1"]}
    result = translate_file(**given, output_file=tmp_path / "there", **ray)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert result == json.loads((tmp_path / "there.translation.json").read_text()) and result["num_processes"] == 3
