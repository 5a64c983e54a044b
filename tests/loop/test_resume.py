"""A run that was killed and resumed ends as one that was never stopped, to the bit (CPU, one process)."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from digits import write_digits

from tests.loop.test_schedules import with_fake_clock
from tests.loop.test_training import (  # noqa: F401  (fixtures)
    assert_equal,
    checkpoints,
    digit_pairs,
    digit_tokenizer,
    fresh_accelerator,
    log_lines,
    make_trainer,
    trainer_factory,
    weights,
)
from training import train
from training.loop.checkpoints import check_same_run

TIMES = ("target_tokens_per_second", "loading_share", "minutes")  # what differs from run to run


class Killed(BaseException):
    pass


def kill(*arguments, **options) -> None:
    raise Killed


def without_times(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def run_to_the_end(make_trainer, folder: str, **changes):  # noqa: F811
    trainer = make_trainer(folder, dropout=0.2, max_steps=8, save_every_steps=2, **changes)
    return trainer, trainer.train()


@pytest.fixture(scope="module")
def run_unbroken(tmp_path_factory, digit_tokenizer, digit_pairs) -> Callable[..., tuple]:  # noqa: F811
    """A run that was never stopped, and what it returned; made once for each number of batches a step."""
    factory = trainer_factory(tmp_path_factory.mktemp("unbroken"), digit_tokenizer, digit_pairs)

    @functools.cache
    def run(accumulation: int) -> tuple:
        return run_to_the_end(factory, str(accumulation), gradient_accumulation_steps=accumulation)

    return run


# 3 batches an epoch: 3 is the last of an epoch and is not a step that saves, 6 is the last of an epoch and saves.
@pytest.mark.parametrize("killed_after", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_ends_as_one_that_was_never_stopped(
    make_trainer,  # noqa: F811
    run_unbroken,
    killed_after,
    accumulation,
):
    unbroken, expected = run_unbroken(accumulation)
    changes = {"dropout": 0.2, "max_steps": 8, "save_every_steps": 2, "gradient_accumulation_steps": accumulation}
    broken = make_trainer("broken", **changes)
    step = broken._optimizer_step
    broken._optimizer_step = lambda group: step(group) if broken.step < killed_after else kill()
    with pytest.raises(Killed):
        broken.train()
    resumed = make_trainer("broken", **changes)
    assert resumed.has_state() and 0 < resumed.resume() <= killed_after
    assert resumed.train() == expected
    assert_equal(weights(resumed.model), weights(unbroken.model))
    assert_equal(weights(resumed.output_folder / "best"), weights(unbroken.output_folder / "best"))
    for kind in ("train", "valid"):
        assert without_times(log_lines(resumed, kind)) == without_times(log_lines(unbroken, kind))


# Validated at 2, 4, 6 and at the end, 7; in the middle of epochs and, at 6, at the end of one.
@pytest.mark.parametrize("killed_after", [2, 3, 5, 6])
def test_a_run_that_validates_within_epochs_resumes_too(make_trainer, tmp_path, killed_after):  # noqa: F811
    changes = {"dropout": 0.2, "max_steps": 7, "validate_every_steps": 2, "save_every_steps": 3}
    changes |= {"keep_last_checkpoints": 0, "keep_best_checkpoints": 2}
    unbroken = make_trainer("unbroken", **changes)
    expected = unbroken.train()
    assert [line["step"] for line in log_lines(unbroken, "valid")] == [2, 4, 6, 7]
    broken = make_trainer("broken", **changes)
    step = broken._optimizer_step
    broken._optimizer_step = lambda group: step(group) if broken.step < killed_after else kill()
    with pytest.raises(Killed):
        broken.train()
    later = broken.output_folder / "checkpoints" / "step-0000007"  # as if killed between checkpoint and state
    later.mkdir()
    resumed = make_trainer("broken", **changes)
    assert resumed.resume() == killed_after - killed_after % 2 + (killed_after == 3)
    assert not later.exists()
    assert resumed.train() == expected
    assert_equal(weights(resumed.model), weights(unbroken.model))
    assert_equal(weights(resumed.output_folder / "best"), weights(unbroken.output_folder / "best"))
    assert checkpoints(resumed) == checkpoints(unbroken) and len(checkpoints(unbroken)) == 2
    for kind in ("train", "valid"):
        assert without_times(log_lines(resumed, kind)) == without_times(log_lines(unbroken, kind))


def test_a_run_of_minutes_goes_on_where_its_time_was(make_trainer):  # noqa: F811
    """Ten seconds per step, killed in the fourth, after the state of the second; the pause does not count."""
    changes = {"max_minutes": 1.0, "save_every_steps": 2, "cooldown_share": 0.5, "validate_every_steps": 99}
    unbroken = with_fake_clock(make_trainer("unbroken", **changes))
    unbroken.train()
    broken = with_fake_clock(make_trainer("broken", **changes))
    step = broken._optimizer_step
    broken._optimizer_step = lambda group: step(group) if broken.step < 3 else kill()
    with pytest.raises(Killed):
        broken.train()
    resumed = with_fake_clock(make_trainer("broken", **changes), now=1e6)
    assert resumed.resume() == 2 and resumed.share == pytest.approx(20 / 60)
    resumed.train()
    assert resumed.step == unbroken.step == 6 and resumed.progress.seconds == pytest.approx(60)
    assert_equal(weights(resumed.model), weights(unbroken.model))
    timed = TIMES[:2]
    logs = [[{k: line[k] for k in line.keys() - timed} for line in log_lines(t, "train")] for t in (resumed, unbroken)]
    assert logs[0] == logs[1]


def test_a_run_of_minutes_goes_on_if_it_is_given_more(make_trainer):  # noqa: F811
    """Six steps in the first minute; in two, their share is a half, and the budget is where it begins to fall."""
    with_fake_clock(make_trainer(max_minutes=1.0)).train()
    finished = make_trainer(max_minutes=1.0)
    assert finished.resume() == 6 and finished.progress.is_finished
    longer = with_fake_clock(make_trainer(max_minutes=2.0))
    assert longer.resume() == 6 and longer.share == pytest.approx(0.5)
    longer.train()
    budgets = {line["step"]: line["kl_budget"] for line in log_lines(longer, "train")}
    assert [budgets[step] for step in (6, 7, 10, 12)] == pytest.approx([1 / 3, 1, 0.5, 1 / 6]) and longer.step == 12


@pytest.mark.parametrize("where", ["validate", "_save", "_save_state"])
def test_a_run_killed_between_epochs_resumes_too(make_trainer, run_unbroken, where):  # noqa: F811
    unbroken, expected = run_unbroken(1)
    broken = make_trainer("broken", dropout=0.2, max_steps=8, save_every_steps=2)
    original = getattr(broken, where)
    setattr(broken, where, lambda *arguments: original(*arguments) if broken.step < 6 else kill())
    with pytest.raises(Killed):
        broken.train()
    half_written = broken.output_folder / "states" / "step-0000009.unfinished"  # as if killed while it was written
    half_written.mkdir()
    resumed = make_trainer("broken", dropout=0.2, max_steps=8, save_every_steps=2)
    assert resumed.resume() < 8
    assert resumed.train() == expected
    assert_equal(weights(resumed.model), weights(unbroken.model))
    assert [folder.name for folder in (resumed.output_folder / "states").iterdir()] == ["step-0000008"]


@pytest.mark.parametrize("what", ["model", "state", "name"])
def test_a_disk_that_takes_no_more_leaves_what_was_there(make_trainer, run_unbroken, monkeypatch, what):  # noqa: F811
    unbroken, expected = run_unbroken(1)
    broken = make_trainer("broken", dropout=0.2, max_steps=8, save_every_steps=2)

    def fill_the_disk(original):
        def save(*arguments, **options):
            original(*arguments, **options)
            if broken.step >= 6:  # something is written already when the disk is full
                raise OSError(errno.ENOSPC, "No space left on device")

        return save

    def rename(*names):
        if broken.step >= 6:
            raise OSError(errno.EROFS, "Read-only file system")
        os.replace(*names)

    if what == "model":
        monkeypatch.setattr(type(broken.model), "save_pretrained", fill_the_disk(type(broken.model).save_pretrained))
    elif what == "state":
        monkeypatch.setattr(torch, "save", fill_the_disk(torch.save))
    else:
        monkeypatch.setattr("lvnar_hf.files.atomic.os.rename", rename)
    with pytest.raises(OSError, match="Read-only file system" if what == "name" else "No space left on device"):
        broken.train()
    monkeypatch.undo()
    assert checkpoints(broken)[0] == "step-0000003"
    assert all(tensor.isfinite().all() for tensor in weights(broken.output_folder / "best").values())
    resumed = make_trainer("broken", dropout=0.2, max_steps=8, save_every_steps=2)
    assert 0 < resumed.resume() < 8
    assert resumed.train() == expected
    assert_equal(weights(resumed.output_folder / "best"), weights(unbroken.output_folder / "best"))
    assert checkpoints(resumed) == checkpoints(unbroken)
    assert [folder.name for folder in (resumed.output_folder / "states").iterdir()] == ["step-0000008"]


def test_a_replacement_that_was_cut_off_is_undone(make_trainer):  # noqa: F811
    trainer = make_trainer(max_steps=3)
    trainer.train()
    best = trainer.output_folder / "best"
    expected = weights(best)
    best.rename(best.with_name("best.replaced"))  # killed between the two renames
    make_trainer(max_steps=3).resume()
    assert_equal(weights(best), expected)


def test_a_finished_run_has_nothing_left_to_do(make_trainer):  # noqa: F811
    finished, expected = run_to_the_end(make_trainer, "run")
    again = make_trainer("run", dropout=0.2, max_steps=8, save_every_steps=2)
    assert again.resume() == 8 and again.train() == expected
    assert_equal(weights(again.model), weights(finished.model))


def test_a_run_without_a_state_says_so(make_trainer):  # noqa: F811
    trainer = make_trainer()
    assert not trainer.has_state()
    with pytest.raises(FileNotFoundError, match="no state to resume from"):
        trainer.resume()


def test_other_settings_are_refused_with_the_difference(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"learning_rate": 0.001, "seed": 1, "dropout": 0.0}))
    check_same_run(tmp_path, {"learning_rate": 0.001, "seed": 1, "dropout": 0.0})
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 then, 0\.002 now; seed: 1 then, 2 now$"):
        check_same_run(tmp_path, {"learning_rate": 0.002, "seed": 2, "dropout": 0.0})


def test_the_command_survives_sigkill(tmp_path, monkeypatch, digit_tokenizer):  # noqa: F811
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, value in {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", num_train=2000, num_valid=20)
    digit_tokenizer.save_pretrained(tmp_path / "runs" / "digits" / "tokenizer")
    command = ["--config", str(ROOT / "training" / "configs" / "digits.yaml"), "--log_every_steps", "1"]
    command += ["--train_on", "raw", "--max_steps", "40", "--save_every_steps", "4", "--dropout", "0.1"]
    command += ["--output_folder"]

    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, str(ROOT / "training" / "train.py"), *command, str(killed)])
    log = killed / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 9:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 9 <= len(log.read_text().splitlines()) < 40
    with pytest.raises(ValueError, match="seed: 1 then, 2 now"):
        train.main([*command, str(killed), "--resume", "--seed", "2"])
    metrics = []
    for folder, *resume in ((killed, "--resume"), (tmp_path / "unbroken",)):
        AcceleratorState._reset_state(reset_partial_state=True)
        metrics.append(train.main([*command, str(folder), *resume]))
    assert metrics[0] == metrics[1]
    assert_equal(weights(killed / "best"), weights(tmp_path / "unbroken" / "best"))
