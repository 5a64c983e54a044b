"""Training in float16 with a scaled loss, on the CPU, where accelerate leaves it out: else all is as on a GPU."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import tests.loop.test_training
from tests.loop.test_resume import Killed, kill, without_times
from tests.loop.test_training import (  # noqa: F401  (fixtures)
    assert_equal,
    digit_pairs,
    digit_tokenizer,
    fresh_accelerator,
    log_lines,
    make_trainer,
    weights,
)

FIRST_SCALE = 2.0**10


class CpuFp16Accelerator(Accelerator):
    """accelerate's own, with what it makes for "fp16" on a GPU."""

    first_scale = FIRST_SCALE

    def __init__(self, **arguments):
        super().__init__(**arguments)
        if self.state.mixed_precision == "fp16":
            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu", init_scale=self.first_scale, growth_interval=3)


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    monkeypatch.setattr(tests.loop.test_training, "Accelerator", CpuFp16Accelerator)


def test_it_keeps_the_weights_in_float32_and_the_loss(fp16_on_cpu, make_trainer):  # noqa: F811
    exact = make_trainer("float32", max_steps=4)
    exact.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = make_trainer("fp16", mixed_precision="fp16", max_steps=4, valid_bleu_sentences=4)
    seen = set()
    trainer.model.prior.encoder.layers[0].self_attention.register_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype)
    )
    metrics = trainer.train()
    assert seen == {torch.float16}
    assert all(math.isfinite(value) for value in metrics.values())
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    lines, exact_lines = log_lines(trainer, "train"), log_lines(exact, "train")
    for name in ("loss", "grad_norm"):  # which is that of the gradients, not of the scaled ones
        given, wanted = ([line[name] for line in part] for part in (lines, exact_lines))
        assert given == pytest.approx(wanted, rel=0.02) and given != wanted
    assert trainer.accelerator.scaler.get_scale() == 2 * FIRST_SCALE, "3 of 4 steps make it grow once"


def test_a_step_whose_gradients_overflow_changes_no_weight(fp16_on_cpu, make_trainer, monkeypatch):  # noqa: F811
    monkeypatch.setattr(CpuFp16Accelerator, "first_scale", 2.0**40)
    trainer = make_trainer(mixed_precision="fp16", max_steps=40)
    before = {name: value.clone() for name, value in weights(trainer.model).items()}
    step, norms, changed = trainer.optimizer_step, [], []

    def watched_step(group):
        result = step(group)
        norms.append(result[0]["grad_norm"])
        changed.append(any(not torch.equal(value, before[name]) for name, value in weights(trainer.model).items()))
        return result

    monkeypatch.setattr(trainer, "optimizer_step", watched_step)
    metrics = trainer.train()
    num_skipped = changed.index(True)
    assert num_skipped >= 10 and all(changed[num_skipped:])
    assert not any(map(math.isfinite, norms[:num_skipped])) and math.isfinite(norms[num_skipped])
    assert trainer.accelerator.scaler.get_scale() < 2.0**40
    assert trainer.step == 40 and all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("killed_after", [3, 5])
def test_a_killed_run_ends_as_one_that_was_never_stopped(fp16_on_cpu, make_trainer, killed_after):  # noqa: F811
    """To the bit, the scale of the loss included, which grows on the way."""
    options = {"dropout": 0.2, "max_steps": 8, "save_every_steps": 2, "mixed_precision": "fp16"}
    unbroken = make_trainer("unbroken", **options)
    expected = unbroken.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    broken = make_trainer("broken", **options)
    step = broken.optimizer_step
    broken.optimizer_step = lambda group: step(group) if broken.step < killed_after else kill()
    with pytest.raises(Killed):
        broken.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = make_trainer("broken", **options)
    assert 0 < resumed.resume() <= killed_after
    assert resumed.train() == expected
    assert_equal(weights(resumed.model), weights(unbroken.model))
    assert resumed.accelerator.scaler.state_dict() == unbroken.accelerator.scaler.state_dict()
    assert resumed.accelerator.scaler.get_scale() > FIRST_SCALE
    assert without_times(log_lines(resumed, "train")) == without_times(log_lines(unbroken, "train"))
