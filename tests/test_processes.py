"""Two processes train as one that takes the batches of both; and each number of processes resumes to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from transformers import AutoModelForSeq2SeqLM

from tests.conftest import ROOT
from tests.digits import write_digits
from tests.test_training import assert_equal, digit_tokenizer, weights  # noqa: F401  (a fixture)
from training import teacher, train
from training.trainer import TranslationTrainer

SCRIPTS = {"train.py": train, "teacher.py": teacher}
TIMES = ("target_tokens_per_second", "loading_share")


@pytest.fixture
def recipe(tmp_path, digit_tokenizer) -> Path:  # noqa: F811
    """The digits recipe, smaller, with dropout, in a folder of its own with its text."""
    write_digits(tmp_path / "data" / "digits", num_train=600, num_valid=20)
    digit_tokenizer.save_pretrained(tmp_path / "runs" / "digits" / "tokenizer")
    recipe = yaml.safe_load((ROOT / "training" / "configs" / "digits.yaml").read_text("utf-8"))
    changes = {"max_steps": 12, "save_every_steps": 3, "log_every_steps": 1, "valid_bleu_sentences": 0}
    for stage, model in (("training", "model"), ("teacher_training", "teacher")):
        recipe[stage] |= {**changes, "warmup_steps": 4, "cooldown_steps": 0, "label_smoothing": 0.1}
        recipe[model] |= {"dropout": 0.2, "hidden_size": 32, "intermediate_size": 48}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


@pytest.fixture
def run(recipe, monkeypatch):
    """Run a training script to its end on one process, here, or on two of their own."""
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", recipe.parent / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(script: str, num_processes: int, *flags: str) -> None:
        if num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)
            SCRIPTS[script].main(["--config", str(recipe), *flags])
            return
        result = subprocess.run(**command(recipe, script, *flags), capture_output=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "processes: 2\n" in result.stdout

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def command(recipe: Path, script: str, *flags: str) -> dict:
    """Arguments of `subprocess.run` for a training script on two CPU processes."""
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launch += ["--num_machines", "1", "--num_processes", "2", "--main_process_port", "0"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(recipe.parent / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = [*launch, str(ROOT / "training" / script), "--config", str(recipe), *flags]
    return {"args": arguments, "cwd": recipe.parent, "env": environment, "text": True}


def log_lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.parametrize("script", ["train.py", "teacher.py"])
def test_two_processes_learn_as_one_with_the_same_batches(run, tmp_path, script):
    run(script, 1, "--gradient_accumulation_steps", "2", "--output_folder", "one")
    run(script, 2, "--output_folder", "two")
    one, two = log_lines(tmp_path / "one"), log_lines(tmp_path / "two")
    assert len(one) == len(two) > 12 and one[-1]["step"] == 12
    for first, second in zip(one, two, strict=True):
        # Loss, gradient norm, every part of the loss and its counts, step by step.
        assert first.pop("kind") == second.pop("kind")
        assert second == pytest.approx(first, rel=2e-4)
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    first, second = weights(tmp_path / "one" / "best"), weights(tmp_path / "two" / "best")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=2e-4, rtol=2e-3)


def test_two_processes_killed_twice_resume_to_the_bit(run, recipe, tmp_path):
    run("train.py", 2, "--output_folder", "unbroken")
    killed = tmp_path / "killed"
    log = killed / "log.jsonl"
    for num_lines in (5, 10):
        process = subprocess.Popen(
            **command(recipe, "train.py", "--output_folder", "killed", "--resume"), start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text("utf-8").splitlines()) < num_lines:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert '"step": 12' not in log.read_text("utf-8")
    run("train.py", 2, "--output_folder", "killed", "--resume")
    assert log_lines(killed) == log_lines(tmp_path / "unbroken")
    assert_equal(weights(killed / "best"), weights(tmp_path / "unbroken" / "best"))


def test_another_number_of_processes_is_refused(run, tmp_path):
    run("train.py", 1, "--output_folder", "run", "--max_steps", "2")
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "num_processes": 2}), "utf-8")
    with pytest.raises(ValueError, match="num_processes: 2 then, 1 now"):
        run("train.py", 1, "--output_folder", "run", "--max_steps", "2", "--resume")


def test_the_teacher_resumes_to_the_bit_and_loads(run, tmp_path, monkeypatch):
    run("teacher.py", 1, "--output_folder", "unbroken")
    step = TranslationTrainer._optimizer_step

    def stop_at_seven(trainer, group):
        if trainer.step == 7:
            raise KeyboardInterrupt
        return step(trainer, group)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TranslationTrainer, "_optimizer_step", stop_at_seven)
        run("teacher.py", 1, "--output_folder", "stopped")
    run("teacher.py", 1, "--output_folder", "stopped", "--resume")
    assert_equal(weights(tmp_path / "stopped" / "best"), weights(tmp_path / "unbroken" / "best"))
    assert log_lines(tmp_path / "stopped") == log_lines(tmp_path / "unbroken")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "unbroken" / "best")
    assert model.config.model_type == "marian" and model.config.encoder_layers == 2 and model.config.decoder_layers == 1
    assert model.config.decoder_start_token_id == model.config.pad_token_id == 0
