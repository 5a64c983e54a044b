"""What changes in the course of a run, in steps or minutes; and runs of minutes, on a clock of the test."""

import pytest
import torch

from tests.loop.test_training import (  # noqa: F401  (fixtures)
    checkpoints,
    digit_pairs,
    digit_tokenizer,
    fresh_accelerator,
    log_lines,
    make_trainer,
)
from training.loop import trainer as trainer_module
from training.loop.schedules import glancing_ratio_at, learning_rate_factor, settings_at
from training.loop.trainer import TranslationTrainer
from training.sections import OptimizationArguments


def with_fake_clock(
    trainer: TranslationTrainer, now: float = 0.0, seconds_a_validation: float = 0.0
) -> TranslationTrainer:
    """The trainer with a clock that stands still but in steps, of ten seconds each, and in validations."""
    step, validate = trainer.optimizer_step, trainer.validate

    def pass_time(seconds: float, result):
        nonlocal now
        now += seconds
        return result

    trainer.optimizer_step = lambda group: pass_time(10.0, step(group))
    trainer.validate = lambda: pass_time(seconds_a_validation, validate())
    trainer.clock = lambda: now
    return trainer


def test_learning_rate_rises_in_a_line_then_falls_as_the_inverse_square_root():
    factors = [learning_rate_factor(step, warmup_steps=4) for step in (1, 2, 4, 9, 16, 100)]
    assert factors == pytest.approx([1 / 4, 2 / 4, 1, 2 / 3, 2 / 4, 2 / 10])
    assert learning_rate_factor(1, warmup_steps=0) == 1.0


def test_cooldown_falls_to_zero_in_a_line_at_the_end():
    def factor(share: float) -> float:
        return learning_rate_factor(16, 4, share, cooldown_share=0.1)

    assert [factor(share) for share in (0, 0.9, 0.95, 0.99, 1)] == pytest.approx([0.5, 0.5, 0.25, 0.05, 0])


def test_the_cooldown_of_steps_is_that_of_their_share():
    """100 steps, the last 10 at 10/10, 9/10, ... 1/10: the share done before step 91 is 0.9."""
    by_steps = OptimizationArguments(cooldown_steps=10, warmup_steps=4, learning_rate=1.0)
    by_share = OptimizationArguments(cooldown_share=0.1, warmup_steps=4, learning_rate=1.0)
    for step, expected in ((1, 1), (90, 1), (91, 1), (92, 0.9), (96, 0.5), (100, 0.1)):
        share = (step - 1) / 100
        rate = settings_at(by_steps, 100, step, share)["learning_rate"]
        assert rate == pytest.approx(expected * learning_rate_factor(step, 4))
        assert settings_at(by_share, 100, step, share)["learning_rate"] == pytest.approx(rate)


def test_glancing_changes_in_a_line_over_the_run():
    assert [glancing_ratio_at(share, 0.5, 0.3) for share in (0, 0.25, 0.5, 1)] == pytest.approx([0.5, 0.45, 0.4, 0.3])
    assert glancing_ratio_at(0.7, 0.0, 0.0) == 0.0


def test_each_step_uses_the_schedules(make_trainer):  # noqa: F811
    """Eight steps, written out: warm-up in 2, cooldown in 3, the budget from 0.5 to 0.1 from the fifth on."""
    trainer = make_trainer(
        learning_rate=0.01, cooldown_steps=3, initial_kl_budget=0.5, final_kl_budget=0.1, label_smoothing=0.2
    )
    used = []

    def record(model, inputs, arguments):
        if "kl_budget" in arguments:  # not in validation
            assert not arguments.get("glancing_ratio")
            used.append((model.training, arguments["kl_budget"], arguments["smoothing"]))

    trainer.model.register_forward_pre_hook(record, with_kwargs=True)
    trainer.model.eval()  # as a model is that comes from a checkpoint
    trainer.train()
    lines = log_lines(trainer, "train")
    assert [line["step"] for line in lines] == list(range(1, 9))
    factors = [0.5, 1, *((2 / step) ** 0.5 for step in (3, 4, 5, 6))]
    factors += [2 / 3 * (2 / 7) ** 0.5, 1 / 3 * (2 / 8) ** 0.5]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01 * factor for factor in factors])
    assert [line["kl_budget"] for line in lines] == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2])
    assert [line["glancing_ratio"] for line in lines] == [0.0] * 8
    assert used == [(True, line["kl_budget"], 0.2) for line in lines]


def test_the_model_is_told_the_glancing_ratio(make_trainer):  # noqa: F811
    trainer = make_trainer(initial_glancing_ratio=0.4, max_steps=4)
    used, forward = [], trainer.model.forward

    def record(*arguments, glancing_ratio=None, **others):
        if "kl_budget" in others:
            used.append(glancing_ratio)
        return forward(*arguments, **others)

    trainer.model.forward = record
    trainer.train()
    assert used == [line["glancing_ratio"] for line in log_lines(trainer, "train")]
    assert used == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_a_model_without_length_terms_is_trained_and_validated(make_trainer):  # noqa: F811
    trainer = make_trainer(max_steps=2)

    def leave_out_lengths(module, inputs, output):
        return type(output)(**{name: value for name, value in output.items() if not name.startswith("length")})

    trainer.model.register_forward_hook(leave_out_lengths)
    metrics = trainer.train()
    assert set(metrics) == {"token_nll", "kl", "kl_per_source_position", "elbo"}
    assert not [name for line in log_lines(trainer, "train") for name in line if name.startswith("length")]


# a run of minutes


def test_a_run_of_minutes_ends_with_its_schedules_at_their_end(make_trainer):  # noqa: F811
    """Six steps of ten seconds in a minute; the validation after the third takes no time on this clock."""
    trainer = with_fake_clock(
        make_trainer(max_minutes=1.0, max_steps=2, learning_rate=0.01, warmup_steps=1, cooldown_share=0.5)
    )
    trainer.train()
    lines = log_lines(trainer, "train")
    assert trainer.progress.is_finished and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["minutes"] for line in lines] == pytest.approx([step / 6 for step in range(1, 7)])
    assert [line["kl_budget"] for line in lines] == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    cooldown = [1, 1, 1, 1, 2 / 3, 1 / 3]
    expected = [0.01 * factor / step**0.5 for step, factor in enumerate(cooldown, 1)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected)
    assert [line["step"] for line in log_lines(trainer, "valid")] == [3, 6]
    assert checkpoints(trainer) == ["step-0000003", "step-0000006"]
    assert settings_at(trainer.arguments, 2, 7, trainer.share)["learning_rate"] == 0.0
    assert settings_at(trainer.arguments, 2, 7, trainer.share)["kl_budget"] == 0.0


def test_the_last_step_of_a_run_of_minutes_is_the_one_in_which_they_end(make_trainer):  # noqa: F811
    trainer = with_fake_clock(make_trainer(max_minutes=0.25))
    trainer.train()
    assert trainer.step == 2 and trainer.progress.seconds == pytest.approx(20)
    assert [line["kl_budget"] for line in log_lines(trainer, "train")] == pytest.approx([1, 2 / 3])


def test_validation_is_part_of_the_minutes_and_left_out_where_they_would_end_in_it(make_trainer):  # noqa: F811
    """Ten seconds per step, 14 a validation: none after the third step, at 58 of 60, but one at the end."""
    trainer = make_trainer(max_minutes=1.0, validate_every_steps=1)
    with_fake_clock(trainer, seconds_a_validation=14.0).train()
    minutes = [line["minutes"] * 60 for line in log_lines(trainer, "train")]
    assert minutes == pytest.approx([10, 34, 58, 68])
    assert [line["step"] for line in log_lines(trainer, "valid")] == [1, 2, 4]


def test_every_process_takes_the_time_of_the_main_one(make_trainer, monkeypatch):  # noqa: F811
    """The share of the minutes decides when all stop; what this process's own clock says does not count."""
    trainer = with_fake_clock(make_trainer(max_minutes=2.0))
    monkeypatch.setattr(trainer_module, "broadcast", lambda seconds: torch.full_like(seconds, 30.0))
    assert trainer._count_time() == 30.0
    assert (trainer.progress.seconds, trainer.share) == (30.0, 0.25)


def test_validation_comes_every_so_many_minutes(make_trainer):  # noqa: F811
    """Ten seconds per step, five a validation: at 20, and so from 25 on at 45; the end comes at 70."""
    trainer = make_trainer(max_minutes=1.1, validate_every_minutes=1 / 3)
    with_fake_clock(trainer, seconds_a_validation=5.0).train()
    seconds = {line["step"]: line["minutes"] * 60 for line in log_lines(trainer, "valid")}
    assert seconds == {2: pytest.approx(20), 4: pytest.approx(45), 6: pytest.approx(70)}
