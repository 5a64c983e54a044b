"""A run that was killed and resumed ends as one that was never stopped, to the bit (CPU, one process)."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from digits import make_digit_pairs, write_digits

from lvnar_hf import train_tokenizer
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
from training.loop import states as states_module
from training.loop.checkpoints import check_same_run, only_training_in

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
@pytest.mark.parametrize(
    ("accumulation", "killed_after"),
    [(1, 2), (1, 3), (1, 5), (1, 6), (1, 7), (2, 5)]
    + [pytest.param(2, step, marks=pytest.mark.thorough) for step in (2, 3, 6, 7)],
)
def test_a_killed_run_ends_as_one_that_was_never_stopped(
    make_trainer,  # noqa: F811
    run_unbroken,
    killed_after,
    accumulation,
):
    unbroken, expected = run_unbroken(accumulation)
    changes = {"dropout": 0.2, "max_steps": 8, "save_every_steps": 2, "gradient_accumulation_steps": accumulation}
    broken = make_trainer("broken", **changes)
    step = broken.optimizer_step
    broken.optimizer_step = lambda group: step(group) if broken.step < killed_after else kill()
    with pytest.raises(Killed):
        broken.train()
    resumed = make_trainer("broken", **changes)
    assert 0 < resumed.resume() <= killed_after
    assert resumed.train() == expected
    assert_equal(weights(resumed.model), weights(unbroken.model))
    assert_equal(weights(resumed.output_folder / "best"), weights(unbroken.output_folder / "best"))
    for kind in ("train", "valid"):
        assert without_times(log_lines(resumed, kind)) == without_times(log_lines(unbroken, kind))


# Validated at 2, 4, 6 and at the end, 7; in the middle of epochs and, at 6, at the end of one.
@pytest.mark.parametrize("killed_after", [2, 3, *(pytest.param(step, marks=pytest.mark.thorough) for step in (5, 6))])
def test_a_run_that_validates_within_epochs_resumes_too(make_trainer, tmp_path, killed_after):  # noqa: F811
    changes = {"dropout": 0.2, "max_steps": 7, "validate_every_steps": 2, "save_every_steps": 3}
    changes |= {"keep_last_checkpoints": 0, "keep_best_checkpoints": 2}
    unbroken = make_trainer("unbroken", **changes)
    expected = unbroken.train()
    assert [line["step"] for line in log_lines(unbroken, "valid")] == [2, 4, 6, 7]
    broken = make_trainer("broken", **changes)
    step = broken.optimizer_step
    broken.optimizer_step = lambda group: step(group) if broken.step < killed_after else kill()
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
    step = broken.optimizer_step
    broken.optimizer_step = lambda group: step(group) if broken.step < 3 else kill()
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


@pytest.mark.parametrize("where", ["validate", "_save", "_refuse_non_finite_weights"])
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
    assert [folder.name for folder in resumed.states.whole()] == ["step-0000006", "step-0000008"]
    assert len(list(resumed.states.folder.iterdir())) == 2


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
    assert [folder.name for folder in resumed.states.whole()] == ["step-0000006", "step-0000008"]
    assert len(list(resumed.states.folder.iterdir())) == 2


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


def test_a_run_without_a_state_begins_anew_or_says_that_it_is_gone(make_trainer, run_unbroken):  # noqa: F811
    unbroken, expected = run_unbroken(1)
    changes = {"dropout": 0.2, "max_steps": 8, "save_every_steps": 2}
    broken = make_trainer("broken", **(changes | {"save_every_steps": 0}))
    broken.states.save = kill  # in the first epoch's validation
    with pytest.raises(Killed):
        broken.train()
    assert len(log_lines(broken, "train")) == 3
    resumed = make_trainer("broken", **changes)
    assert resumed.resume() == 0 and resumed.train() == expected
    assert without_times(log_lines(resumed, "train")) == without_times(log_lines(unbroken, "train"))
    shutil.rmtree(resumed.states.folder)
    with pytest.raises(FileNotFoundError, match=r"no state to resume from in .*states, and there must have been one"):
        make_trainer("broken", **changes).resume()
    assert (resumed.output_folder / "best").exists()


def damage(state: Path, how: str) -> None:
    """As a disk, or a copy that was cut off, may leave a state."""
    file = state / ("model.safetensors" if "bit" in how else "optimizer.bin")
    content = bytearray(file.read_bytes())
    if "without hashes" in how:
        (state / "sha256.json").unlink()
    if how == "missing":
        file.unlink()
    elif "bit" in how:
        content[-5] ^= 1  # torch and safetensors load it without a word
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a bit", "not as written, by their hash: model.safetensors"),
        ("half", "not as written, by their hash: optimizer.bin"),
        ("missing", "missing: optimizer.bin"),
        ("half, without hashes", "RuntimeError: PytorchStreamReader"),
    ],
)
def test_a_damaged_state_falls_back_to_the_one_before(make_trainer, run_unbroken, how, message):  # noqa: F811
    unbroken, expected = run_unbroken(1)
    changes = {"dropout": 0.2, "max_steps": 8, "save_every_steps": 2}
    broken = make_trainer("broken", **changes)
    step = broken.optimizer_step
    broken.optimizer_step = lambda group: step(group) if broken.step < 7 else kill()
    with pytest.raises(Killed):
        broken.train()
    assert [state.name for state in broken.states.whole()] == ["step-0000004", "step-0000006"]
    damage(broken.states.whole()[1], how)
    resumed = make_trainer("broken", **changes)
    with pytest.warns(UserWarning, match=f"trying the one before. .*step-0000006: {message}"):
        assert resumed.resume() == 4
    assert [state.name for state in resumed.states.whole()] == ["step-0000004"]
    assert resumed.train() == expected
    assert_equal(weights(resumed.model), weights(unbroken.model))
    assert_equal(weights(resumed.output_folder / "best"), weights(unbroken.output_folder / "best"))
    for kind in ("train", "valid"):
        assert without_times(log_lines(resumed, kind)) == without_times(log_lines(unbroken, kind))
    for state in resumed.states.whole():
        damage(state, how)
    refused = make_trainer("broken", **changes)
    with (
        pytest.warns(UserWarning, match="step-0000008"),
        pytest.raises(RuntimeError, match=r"No state can be loaded; give --overwrite .*step-0000008: .*step-0000006: "),
    ):
        refused.resume()
    assert len(refused.states.whole()) == 2


def test_an_older_state_goes_only_when_the_newer_is_whole(make_trainer, monkeypatch):  # noqa: F811
    trainer = make_trainer(max_steps=8, save_every_steps=2)
    seen = []
    write_hashes = states_module.write_json

    def look(file, value):
        seen.append([state.name[-1] for state in trainer.states.whole()])
        write_hashes(file, value)

    monkeypatch.setattr(states_module, "write_json", look)
    trainer.train()
    assert seen == [[], ["2"], ["2", "3"], ["3", "4"], ["4", "6"]]


@pytest.mark.parametrize("killed_after", [4, 5, 7])
def test_the_first_line_after_a_resume_averages_as_many_steps(make_trainer, killed_after):  # noqa: F811
    """A line each four steps, a state each two and after each epoch of three."""
    changes = {"max_steps": 8, "save_every_steps": 2, "log_every_steps": 4}
    unbroken = make_trainer("unbroken", **changes)
    unbroken.train()
    broken = make_trainer("broken", **changes)
    step = broken.optimizer_step
    broken.optimizer_step = lambda group: step(group) if broken.step < killed_after else kill()
    with pytest.raises(Killed):
        broken.train()
    resumed = make_trainer("broken", **changes)
    resumed.resume()
    resumed.train()
    assert without_times(log_lines(resumed, "train")) == without_times(log_lines(unbroken, "train"))
    for line in log_lines(resumed, "train"):
        assert 0 <= line["loading_share"] < 1 and line["target_tokens_per_second"] > 1000


def test_a_full_disk_is_named_whoever_meets_it(make_trainer, monkeypatch):  # noqa: F811
    """torch says "inline_container.cc … unexpected pos" of it; /dev/full is a disk that is."""
    trainer, save = make_trainer(max_steps=4, save_every_steps=2), torch.save

    def save_on_full_disk(value, file, *arguments, **options):
        save(value, "/dev/full" if trainer.step >= 4 else file, *arguments, **options)

    monkeypatch.setattr(torch, "save", save_on_full_disk)
    message = r"No space left on device: [\d,]+ bytes were free .* stays.*states/step-0000004"
    with pytest.raises(OSError, match=message) as e:
        trainer.train()
    assert e.value.errno == errno.ENOSPC and re.search("inline_container|iostream", str(e.value.__cause__))
    assert sorted(path.name for path in trainer.states.folder.iterdir()) == ["step-0000002", "step-0000003"]


def test_other_settings_are_refused_with_the_difference(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"learning_rate": 0.001, "seed": 1, "dropout": 0.0}))
    check_same_run(tmp_path, {"learning_rate": 0.001, "seed": 1, "dropout": 0.0}, {})
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 then, 0\.002 now; seed: 1 then, 2 now$"):
        check_same_run(tmp_path, {"learning_rate": 0.002, "seed": 2, "dropout": 0.0}, {})


def test_a_run_from_before_inputs_were_written_down_is_taken_with_a_warning(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 1}))
    with pytest.warns(UserWarning, match="does not know train_text_sha256: taken as found now"):
        check_same_run(tmp_path, {"seed": 1}, {"train_text_sha256": "ab"})
    (tmp_path / "run.json").write_text(json.dumps({"seed": 1, "train_text_sha256": "ab"}))
    check_same_run(tmp_path, {"seed": 1}, {"train_text_sha256": "ab"})
    with pytest.raises(ValueError, match="train_text_sha256: 'ab' then, 'cd' now"):
        check_same_run(tmp_path, {"seed": 1}, {"train_text_sha256": "cd"})


def lay_out_digits(folder, monkeypatch, tokenizer, num_train: int) -> None:
    """Text and tokenizer of the recipe `digits`, and caches, in a folder that becomes the current one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    for name, value in {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(folder / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    write_digits(folder / "data" / "digits", num_train=num_train, num_valid=20)
    tokenizer.save_pretrained(folder / "runs" / "digits" / "tokenizer")


@pytest.fixture
def digits_command(tmp_path, monkeypatch, digit_tokenizer) -> list[str]:  # noqa: F811
    """The real command on a little text in the current folder, for 4 steps, with states each 2."""
    lay_out_digits(tmp_path, monkeypatch, digit_tokenizer, num_train=100)
    command = ["--config", str(ROOT / "training" / "configs" / "digits.yaml"), "--train_on", "raw"]
    return [*command, "--max_steps", "4", "--save_every_steps", "2", "--valid_bleu_sentences", "0"]


def other_tokenizer(folder: Path) -> None:
    pairs = make_digit_pairs(500, seed=9)
    train_tokenizer(*zip(*pairs, strict=True), vocab_size=288, max_length=40).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shuffled", "train_text_sha256: '[0-9a-f]{64}' then, '[0-9a-f]{64}' now$"),
        ("half", "train_text_sha256: "),
        ("validation", "valid_text_sha256: "),
        ("vocabulary", "vocabularies_sha256: "),
    ],
)
def test_a_run_is_not_resumed_with_another_text(digits_command, tmp_path, change, message):
    train.main(digits_command)
    run, text = tmp_path / "runs/digits/model", tmp_path / "data/digits"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    for file in text.glob("valid.*" if change == "validation" else "train.*"):
        stamp, lines = file.stat(), file.read_text("utf-8").splitlines(keepends=True)
        if change != "vocabulary":
            file.write_text("".join(lines[:50] if change == "half" else [*lines[1:], lines[0]]), "utf-8")
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    if change == "vocabulary":
        other_tokenizer(tmp_path / "runs/digits/tokenizer")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=message):
        train.main([*digits_command, "--resume"])
    assert {path: path.read_bytes() for path in before} == before


def test_a_touched_text_is_the_same(digits_command, tmp_path):
    metrics = train.main(digits_command)
    for file in (tmp_path / "data" / "digits").iterdir():
        os.utime(file, ns=(1, 1))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train.main([*digits_command, "--resume"]) == metrics


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_two_trainings_in_one_folder_are_refused(digits_command, tmp_path, flag):
    """The other one is a process of its own, which forks a child and is killed: the child has no part in the lock."""
    train.main(digits_command)
    run = tmp_path / "runs/digits/model"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    code = (
        "import os, time; from pathlib import Path; from training.loop.checkpoints import only_training_in\n"
        f"with only_training_in(Path({str(run)!r})):\n"
        "    if not os.fork(): print(os.getpid(), flush=True)\n"  # the child has run, then
        "    time.sleep(100)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(other.stdout.readline())
    try:
        for _ in range(2):
            AcceleratorState._reset_state(reset_partial_state=True)
            message = f"Another training is at work in .*model: process {other.pid} on .*, since .* name another"
            with pytest.raises(RuntimeError, match=message):
                train.main([*digits_command, flag])
        assert {path: path.read_bytes() for path in before} == before
        other.kill()
        other.wait()
        AcceleratorState._reset_state(reset_partial_state=True)
        train.main([*digits_command, flag])
    finally:
        other.kill()
        os.kill(child, signal.SIGKILL)
        other.stdout.close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lvnar_hf.files.atomic.fcntl.flock", no_locks)
    with pytest.warns(UserWarning, match="file system without locks"), only_training_in(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").exists()


def test_the_command_survives_sigkill(tmp_path, monkeypatch, digit_tokenizer):  # noqa: F811
    lay_out_digits(tmp_path, monkeypatch, digit_tokenizer, num_train=2000)
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
