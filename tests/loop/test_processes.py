"""Two processes train as one that takes the batches of both, in shards too; and all resume to the bit."""

import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from conftest import ROOT
from digits import write_digits
from launches import fork, kill, launch, wait_for
from transformers import AutoModelForSeq2SeqLM

from tests.loop.test_training import assert_equal, digit_tokenizer, weights  # noqa: F401  (a fixture)
from training import teacher, train
from training.distillation.backends import CTranslate2Engine, SearchSettings, TransformersEngine
from training.distillation.teacher import load_teacher
from training.loop.run import check_launch
from training.loop.trainer import TranslationTrainer

SCRIPTS = {"train.py": train, "teacher.py": teacher}
TIMES = ("target_tokens_per_second", "loading_share", "minutes")


def write_recipe(folder: Path, tokenizer) -> Path:
    """The digits recipe, smaller, with dropout, in a folder of its own with its text."""
    write_digits(folder / "data" / "digits", num_train=600, num_valid=20)
    tokenizer.save_pretrained(folder / "runs" / "digits" / "tokenizer")
    recipe = yaml.safe_load((ROOT / "training" / "configs" / "digits.yaml").read_text("utf-8"))
    changes = {"max_steps": 12, "save_every_steps": 3, "log_every_steps": 1, "valid_bleu_sentences": 0}
    for stage, model in (("training", "model"), ("teacher_training", "teacher")):
        recipe[stage] |= {**changes, "train_on": "raw", "warmup_steps": 4, "cooldown_steps": 0, "label_smoothing": 0.1}
        recipe[model] |= {"dropout": 0.2, "hidden_size": 32, "intermediate_size": 48}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


@pytest.fixture
def recipe(tmp_path, digit_tokenizer) -> Path:  # noqa: F811
    return write_recipe(tmp_path, digit_tokenizer)


def command(recipe: Path, script: str, is_sharded: bool) -> list[str]:
    """A training script with its recipe; sharded on the CPU by a script of the tests."""
    if is_sharded:
        return [str(ROOT / "tests" / "support" / "fsdp_on_cpu.py"), script, "--config", str(recipe)]
    return [str(ROOT / "training" / script), "--config", str(recipe)]


def run_two(recipe: Path, script: str, *flags: str, is_sharded: bool) -> None:
    """Run a training script to its end on two processes."""
    processes = fork(*command(recipe, script, is_sharded), *flags, folder=recipe.parent, is_sharded=is_sharded)
    codes, output = wait_for(processes, recipe.parent)
    assert codes == [0, 0], output[-3000:]
    assert "processes: 2\n" in output


@pytest.fixture
def run(recipe, monkeypatch):
    """Run a training script to its end on one process, here, or on two forked ones."""
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", recipe.parent / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(script: str, num_processes: int, *flags: str, is_sharded: bool = False) -> None:
        if num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)
            SCRIPTS[script].main(["--config", str(recipe), *flags])
        else:
            run_two(recipe, script, *flags, is_sharded=is_sharded)

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory, digit_tokenizer) -> Callable[..., Path]:  # noqa: F811
    """The output of a training script that ran to its end on two processes; train.py was launched as users do."""
    recipe = write_recipe(tmp_path_factory.mktemp("two"), digit_tokenizer)

    @functools.cache
    def run(script: str, is_sharded: bool) -> Path:
        output = recipe.parent / f"{script}-{is_sharded}"
        if (script, is_sharded) == ("train.py", False):
            printed = launch(*command(recipe, script, False), "--output_folder", str(output), folder=recipe.parent)
            assert "processes: 2\n" in printed
        else:
            run_two(recipe, script, "--output_folder", str(output), is_sharded=is_sharded)
        return output

    return run


def log_lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.mark.parametrize("script", ["train.py", pytest.param("teacher.py", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_two_processes_learn_as_one_with_the_same_batches(run, two, tmp_path, script, is_sharded):
    run(script, 1, "--gradient_accumulation_steps", "2", "--output_folder", "one")
    folders = tmp_path / "one", two(script, is_sharded)
    one, other = map(log_lines, folders)
    assert len(one) == len(other) > 12 and one[-1]["step"] == 12
    for first, second in zip(one, other, strict=True):
        # Loss, gradient norm, every part of the loss and its counts, step by step.
        assert first.pop("kind") == second.pop("kind")
        assert second == pytest.approx(first, rel=2e-4)
    assert other[0] == pytest.approx(one[0], rel=1e-5)
    first, second = (weights(folder / "best") for folder in folders)
    for name, tensor in first.items():
        # Where there is no gradient, as for the bias of keys, Adam makes a step of the noise.
        torch.testing.assert_close(second[name], tensor, atol=5e-4, rtol=2e-3)
    files = [sorted(path.name for path in (folder / "best").iterdir()) for folder in folders]
    configs = [(folder / "best" / "config.json").read_text("utf-8") for folder in folders]
    assert files[0] == files[1] and configs[0] == configs[1]


def test_gradients_in_shards_are_clipped_to_the_norm_of_all(run, tmp_path):
    # An epsilon this large makes Adam's step proportional to the clipped gradient, not to its sign.
    flags = ["--adam_epsilon", "1.0", "--learning_rate", "1.0", "--max_grad_norm", "0.1", "--max_steps", "2"]
    run("train.py", 1, *flags, "--gradient_accumulation_steps", "2", "--output_folder", "one")
    run("train.py", 2, *flags, "--output_folder", "two", is_sharded=True)
    one, two = log_lines(tmp_path / "one"), log_lines(tmp_path / "two")
    assert one[0]["grad_norm"] > 1 and two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5)
    first, second = weights(tmp_path / "one" / "best"), weights(tmp_path / "two" / "best")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("is_sharded", "kills"), [(False, (5, 10)), (True, (7,))])
def test_two_processes_killed_resume_to_the_bit(run, two, recipe, tmp_path, is_sharded, kills):
    unbroken, killed = two("train.py", is_sharded), tmp_path / "killed"
    log = killed / "log.jsonl"
    flags = ("--output_folder", "killed", "--resume")
    for num_lines in kills:
        given = [*command(recipe, "train.py", is_sharded), *flags[: 2 if num_lines == kills[0] else 3]]
        processes = fork(*given, folder=tmp_path, is_sharded=is_sharded)
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text("utf-8").splitlines()) < num_lines:
            assert all(process.is_alive() for process in processes) and time.monotonic() < deadline
            time.sleep(0.01)
        kill(processes)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
        assert '"step": 12' not in log.read_text("utf-8")
    run("train.py", 2, *flags, is_sharded=is_sharded)
    assert log_lines(killed) == log_lines(unbroken)
    assert_equal(weights(killed / "best"), weights(unbroken / "best"))


def test_another_split_over_processes_is_refused(run, tmp_path):
    run("train.py", 1, "--output_folder", "run", "--max_steps", "2")
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "num_processes": 2, "is_sharded": True}))
    with pytest.raises(ValueError, match="is_sharded: True then, None now; num_processes: 2 then, 1 now"):
        run("train.py", 1, "--output_folder", "run", "--max_steps", "2", "--resume")


def test_shards_that_accelerate_would_not_make_are_refused(run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"accelerate leaves out with 1 process\(es\) on cpu"):
        run("train.py", 1)


@pytest.mark.parametrize(
    "change",
    [{"fsdp_version": 1}, {"auto_wrap_policy": "transformer_based_wrap"}, {"cpu_ram_efficient_loading": True}],
)
def test_shards_are_refused_in_other_settings_than_were_tested(monkeypatch, change):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin sets it
    plugins = [FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **changes}) for changes in ({}, change)]
    good, bad = (
        SimpleNamespace(
            device=torch.device("cpu"), distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin)
        )
        for plugin in plugins
    )
    check_launch(good, "no")
    with pytest.raises(ValueError, match="--fsdp_version 2 --fsdp_auto_wrap_policy NO_WRAP"):
        check_launch(bad, "no")


def test_the_teacher_resumes_to_the_bit_and_loads(run, tmp_path, monkeypatch):
    run("teacher.py", 1, "--output_folder", "unbroken")
    step = TranslationTrainer.optimizer_step

    def stop_at_seven(trainer, group):
        if trainer.step == 7:
            raise KeyboardInterrupt
        return step(trainer, group)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TranslationTrainer, "optimizer_step", stop_at_seven)
        run("teacher.py", 1, "--output_folder", "stopped")
    run("teacher.py", 1, "--output_folder", "stopped", "--resume")
    assert_equal(weights(tmp_path / "stopped" / "best"), weights(tmp_path / "unbroken" / "best"))
    assert log_lines(tmp_path / "stopped") == log_lines(tmp_path / "unbroken")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "unbroken" / "best")
    assert model.config.model_type == "marian" and model.config.encoder_layers == model.config.decoder_layers == 2
    assert model.config.decoder_start_token_id == model.config.pad_token_id == 0


def test_a_deep_shallow_teacher_is_trained_and_translated_by_both_engines(run, tmp_path):
    layers = ["--num_encoder_layers", "12", "--num_decoder_layers", "1"]
    run("teacher.py", 1, *layers, "--max_steps", "2", "--output_folder", "run")
    losses = [line["loss"] for line in log_lines(tmp_path / "run") if line["kind"] == "train"]
    assert len(losses) == 2 and losses[1] < losses[0]
    trained = load_teacher(str(tmp_path / "run" / "best"), None)
    assert (trained.model.config.encoder_layers, trained.model.config.decoder_layers) == (12, 1)
    sources = trained.tokenizer(["copy 3 1 4", "reverse 2 7 1 8"])["input_ids"]
    search = SearchSettings(num_beams=2, length_penalty=1.0, max_target_length=12, max_batch_tokens=100)
    outputs = [engine(trained, search).translate(sources) for engine in (TransformersEngine, CTranslate2Engine)]
    assert outputs[0] == outputs[1] and all(output.ids for output in outputs[0])


def test_fine_tuning_goes_on_from_a_model_at_zero_budget(run, recipe, tmp_path):
    run("train.py", 1, "--output_folder", "first")
    section = {"initial_model": "first/best", "output_folder": "second", "max_epochs": 1, "initial_kl_budget": 0.0}
    sections = yaml.safe_load(recipe.read_text("utf-8"))
    recipe.write_text(yaml.safe_dump({**sections, "finetuning": {**sections["training"], **section}}), "utf-8")
    run("train.py", 1, "--stage", "finetuning", "--learning_rate", "1e-9")
    first, second = (log_lines(tmp_path / name) for name in ("first", "second"))
    assert {line["kl_budget"] for line in second if line["kind"] == "train"} == {0.0} and second[-1]["epoch"] == 0
    assert second[-1]["elbo"] == pytest.approx(max(line["elbo"] for line in first if line["kind"] == "valid"), rel=1e-4)
