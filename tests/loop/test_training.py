"""The training loop: what a step, an epoch and a run do; and the real commands, which teach a small model digits."""

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from conftest import ROOT, tiny_config
from datasets import Dataset
from digits import make_digit_pairs, write_digits
from forks import run_forked
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lvnar_hf import LvnarForConditionalGeneration, LvnarTokenizer, train_tokenizer
from training import score, train
from training import tokenizer as tokenizer_command
from training.data.encoding import tokenize_pairs
from training.loop import trainer as trainer_module
from training.loop.averaging import write_average
from training.loop.checkpoints import prepare_output_folder
from training.loop.log import LogWindow
from training.loop.objectives import LvnarObjective
from training.loop.trainer import NonFiniteError, TranslationTrainer
from training.sections import OptimizationArguments

NUM_TRAIN, NUM_VALID = 96, 24


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """`Accelerator` keeps its precision for the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def digit_tokenizer() -> LvnarTokenizer:
    return train_tokenizer(*zip(*make_digit_pairs(2000, seed=1), strict=True), vocab_size=289, max_length=40)


@pytest.fixture(scope="module")
def digit_pairs(digit_tokenizer) -> tuple[Dataset, Dataset, tuple[list[str], list[str]]]:
    """Training pairs, validation pairs and validation texts, as `TranslationTrainer` takes them."""
    texts = make_digit_pairs(NUM_TRAIN + NUM_VALID, seed=2)
    datasets = []
    for part in (texts[:NUM_TRAIN], texts[NUM_TRAIN:]):
        source, target = map(list, zip(*part, strict=True))
        rows = {"row_id": list(range(len(part))), "source": source, "target": target}
        datasets.append(tokenize_pairs(Dataset.from_dict(rows), digit_tokenizer, 40, 20)[0])
    return *datasets, (source, target)


def trainer_factory(parent: Path, digit_tokenizer, digit_pairs) -> Callable[..., TranslationTrainer]:
    """Makes trainers of a tiny model; by default, 3 batches an epoch and 8 steps, without dropout."""

    def make_trainer(folder: str = "run", dropout: float = 0.0, **changes) -> TranslationTrainer:
        defaults = {"max_steps": 8, "max_tokens_per_batch": 500, "warmup_steps": 2, "valid_bleu_sentences": 0}
        defaults |= {"output_folder": str(parent / folder), "log_every_steps": 1}
        arguments = OptimizationArguments(**{**defaults, **changes})
        accelerator = Accelerator(cpu=True, mixed_precision=arguments.mixed_precision)
        set_seed(arguments.seed)
        model = LvnarForConditionalGeneration(tiny_config(vocab_size=len(digit_tokenizer), dropout=dropout))
        return TranslationTrainer(accelerator, model, digit_tokenizer, *digit_pairs, arguments)

    return make_trainer


@pytest.fixture
def make_trainer(tmp_path, digit_tokenizer, digit_pairs) -> Callable[..., TranslationTrainer]:
    return trainer_factory(tmp_path, digit_tokenizer, digit_pairs)


def weights(model: torch.nn.Module | Path) -> dict[str, torch.Tensor]:
    if isinstance(model, Path):
        model = AutoModelForSeq2SeqLM.from_pretrained(model)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def log_lines(trainer: TranslationTrainer, kind: str) -> list[dict]:
    lines = (trainer.output_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def checkpoints(trainer: TranslationTrainer) -> list[str]:
    return sorted(folder.name for folder in (trainer.output_folder / "checkpoints").iterdir())


# one step


def test_a_batch_in_pieces_makes_the_same_step(make_trainer, monkeypatch):
    # An epsilon this large makes Adam's step proportional to the gradient, not to its sign.
    changes = {"adam_epsilon": 1.0, "learning_rate": 10.0, "label_smoothing": 0.1, "max_grad_norm": 0.1}
    whole, pieces = make_trainer("whole", **changes), make_trainer("pieces", **changes)
    before = weights(whole.model)
    assert_equal(before, weights(pieces.model))
    # The noise of a batch depends on its shape.
    monkeypatch.setattr(torch.Tensor, "normal_", lambda tensor, *_, **__: tensor.zero_())
    rows = [whole.train_pairs[index] for index in range(12)]
    parts = [rows[:2], rows[2:3], rows[3:]]
    first, _ = whole.optimizer_step([whole.collator(rows)])
    second, _ = pieces.optimizer_step([pieces.collator(part) for part in parts])
    assert second == pytest.approx(first, rel=1e-5)
    after = weights(whole.model)
    # Half the learning rate, in the first of two warm-up steps, times the norm that the gradient is clipped to.
    step_length = torch.stack([(after[name] - before[name]).norm() for name in after]).norm()
    assert first["grad_norm"] > 1 and float(step_length) == pytest.approx(5.0 * 0.1, rel=0.05)
    for name, tensor in weights(pieces.model).items():
        torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=1e-5)
    assert all(parameter.grad is None for parameter in pieces.model.parameters())  # the next step begins anew


def test_without_a_limit_the_gradient_is_measured_and_left(make_trainer):
    free, wide = (
        make_trainer("free", max_grad_norm=0.0, max_steps=2),
        make_trainer("wide", max_grad_norm=1e9, max_steps=2),
    )
    free.train(), wide.train()
    assert [line["grad_norm"] > 1 for line in log_lines(free, "train")] == [True, True]
    assert_equal(weights(free.model), weights(wide.model))


def test_accumulation_takes_whole_groups_of_batches(make_trainer):
    assert len(make_trainer().sampler) == 3
    trainer = make_trainer(gradient_accumulation_steps=2, max_steps=4)
    assert len(trainer.sampler) == 2  # a third batch would be a group of one
    sizes, step = [], trainer.optimizer_step
    trainer.optimizer_step = lambda group: sizes.append(len(group)) or step(group)
    trainer.train()
    assert sizes == [2, 2, 2, 2] and trainer.progress.epoch == 3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_checkpointing_changes_no_gradient(make_trainer, dropout):
    gradients, calls = [], []
    for enabled in (False, True):
        trainer = make_trainer(f"run-{enabled}", dropout=dropout, gradient_checkpointing=enabled)
        trainer.model.train()
        trainer.operators = nullcontext()  # which gradient checkpointing does without: another dropout
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        trainer.model.decoder.stack.layers[0].register_forward_pre_hook(count)
        trainer.optimizer.step = lambda: None
        trainer.optimizer.zero_grad = lambda: None
        set_seed(7)
        trainer.optimizer_step([trainer.collator([trainer.train_pairs[index] for index in range(8)])])
        gradients.append({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
    assert calls == [1, 2]  # recomputed in the backward pass
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_bf16_keeps_the_weights_in_float32_and_the_loss(make_trainer):
    exact = make_trainer("float32", max_steps=4)
    exact.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = make_trainer("bf16", mixed_precision="bf16", max_steps=4, valid_bleu_sentences=4)
    seen = []
    trainer.model.prior.encoder.layers[0].self_attention.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    metrics = trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert all(math.isfinite(value) for value in metrics.values())
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    losses = [[line["loss"] for line in log_lines(run, "train")] for run in (trainer, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("launched_with", "asked_for", "message"),
    [
        ("bf16", "no", "launched with mixed_precision bf16, and the recipe says no"),
        ("no", "fp16", "must be no or bf16"),
    ],
)
def test_a_precision_that_would_not_be_used_is_refused(monkeypatch, launched_with, asked_for, message):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched_with)
    with pytest.raises(ValueError, match=message):
        train.main(["--output_folder", "x", "--tokenizer_folder", "x", "--mixed_precision", asked_for])


def test_a_compiled_model_takes_the_same_steps(make_trainer, monkeypatch):
    compiled_layers = []

    def compile_without_a_compiler(module, dynamic):  # inductor needs one for C++; the graphs are the same
        compiled_layers.append(type(module).__name__)
        module._compiled_call_impl = torch.compile(module._call_impl, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_a_compiler)
    eager, compiled = make_trainer("eager", max_steps=2), make_trainer("compiled", max_steps=2, torch_compile=True)
    assert len(compiled_layers) == 7  # 2 + 1 + 2 + 2 layers, see tests/conftest.py
    assert compiled.train() == pytest.approx(eager.train(), rel=1e-4)
    for first, second in zip(log_lines(eager, "train"), log_lines(compiled, "train"), strict=True):
        assert (second["loss"], second["grad_norm"]) == pytest.approx((first["loss"], first["grad_norm"]), rel=1e-4)
    first, second = weights(eager.output_folder / "best"), weights(compiled.output_folder / "best")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3)


def test_tensorboard_gets_the_log(make_trainer):
    trainer = make_trainer(tensorboard=True, max_steps=4)
    trainer.train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trainer.output_folder / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/elbo")]
    assert logged == [(line["step"], pytest.approx(line["elbo"])) for line in log_lines(trainer, "train")]
    assert len(events.Scalars("valid/kl")) == len(log_lines(trainer, "valid"))


def test_tensorboard_that_is_not_installed_is_named(make_trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        make_trainer(tensorboard=True)


def test_epochs_decide_the_number_of_steps(make_trainer):
    trainer = make_trainer(max_epochs=2, max_steps=99)
    assert trainer.max_steps == 2 * len(trainer.sampler)
    trainer.train()
    assert trainer.step == 6 and trainer.progress.epoch == 1


# a non-finite loss


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(make_trainer, poison):
    trainer = make_trainer(max_steps=50)
    num_batches = len(trainer.sampler)
    fatal = num_batches + 1  # the second step of the second epoch
    seen = {}

    def snapshot(module, arguments, inputs):
        if trainer.step == fatal and module.training:
            seen["weights"] = weights(module)

    def poison_loss(module, inputs, output):
        if poison == "loss" and trainer.step == fatal and module.training:
            output.loss = output.loss * float("nan")
        return output

    def poison_gradient(gradient):
        return gradient * float("inf") if poison == "gradient" and trainer.step == fatal else gradient

    trainer.model.register_forward_pre_hook(snapshot, with_kwargs=True)
    trainer.model.register_forward_hook(poison_loss)
    trainer.model.decoder.latent_proj.weight.register_hook(poison_gradient)
    with pytest.raises(NonFiniteError) as stopped:
        trainer.train()
    trainer.sampler.set_epoch(1)
    rows = [trainer.train_pairs[index]["row_id"] for index in trainer.sampler.batches[1]]
    assert str(stopped.value).startswith(f"Step {fatal + 1}: loss ") and f"{rows}" in str(stopped.value)
    assert ("loss nan" in str(stopped.value)) == (poison == "loss")
    assert_equal(weights(trainer.model), seen["weights"])
    assert checkpoints(trainer) == [f"step-{num_batches:07d}"]
    assert all(tensor.isfinite().all() for tensor in weights(trainer.output_folder / "best").values())


def overflow(trainer: TranslationTrainer, value: float) -> None:
    """Make the last step's weights what a learning rate that overflows makes of them."""
    step = trainer.optimizer_step

    def take(group):
        result = step(group)
        if trainer.step == trainer.max_steps:
            with torch.no_grad():
                trainer.model.decoder.latent_proj.weight.fill_(value)
        return result

    trainer.optimizer_step = take


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            math.nan,
            "Step 6: weights that are not finite, of 1 names: decoder.latent_proj.weight. This model was not kept",
        ),
        (math.inf, "Step 6: weights that are not finite"),
        (3e38, "Step 6: elbo of the validation set is nan"),
    ],
)
@pytest.mark.parametrize("save_every_steps", [0, 2])
def test_weights_that_are_not_finite_are_not_kept(make_trainer, value, message, save_every_steps):
    trainer = make_trainer(max_steps=6, save_every_steps=save_every_steps)
    overflow(trainer, value)
    with pytest.raises(NonFiniteError, match=message):
        trainer.train()
    assert checkpoints(trainer) == ["step-0000003"]
    assert trainer.states.whole()[-1].name == f"step-000000{4 if save_every_steps else 3}"
    assert all(tensor.isfinite().all() for tensor in weights(trainer.output_folder / "best").values())
    resumed = make_trainer(max_steps=6)
    assert resumed.resume() < 6 and math.isfinite(resumed.train()["elbo"])


def test_a_command_whose_last_step_overflows_fails(tmp_path, digit_tokenizer):
    write_digits(tmp_path / "data" / "digits", num_train=100, num_valid=20)
    digit_tokenizer.save_pretrained(tmp_path / "runs" / "digits" / "tokenizer")
    command = [ROOT / "training" / "train.py", "--train_on", "raw", "--max_steps", "1"]
    command += ["--config", str(ROOT / "training" / "configs" / "digits.yaml"), "--warmup_steps", "0"]
    command += ["--cooldown_steps", "0", "--learning_rate", "1e39"]
    result = run_forked(command, cwd=tmp_path, env={"ACCELERATE_USE_CPU": "true"})
    assert result.returncode == 1 and "NonFiniteError: Step 1: " in result.stderr, result.stderr[-2000:]
    assert not (tmp_path / "runs/digits/model/best").exists()


def test_a_mean_that_overflows_in_16_bits_is_refused(tmp_path, digit_tokenizer):
    model = LvnarForConditionalGeneration(tiny_config(vocab_size=len(digit_tokenizer)))
    with torch.no_grad():
        model.decoder.latent_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "model")
    digit_tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"In float16, weights are not finite numbers: \['decoder.latent_proj.weight'"):
        write_average([str(tmp_path / "model")], tmp_path / "mean", "float16")
    write_average([str(tmp_path / "model")], tmp_path / "mean", "float32")


# validation and checkpoints


def test_validation_is_the_same_each_time(make_trainer):
    first = make_trainer("first")
    metrics = first.validate()
    assert first.model.training
    assert set(metrics) == {"token_nll", "kl", "kl_per_source_position", "length_nll", "elbo", "length_accuracy"}
    assert metrics["elbo"] == pytest.approx(-metrics["token_nll"] - metrics["kl"] - metrics["length_nll"])
    torch.manual_seed(99)
    assert first.validate() == metrics
    second = make_trainer("second")
    second.model.load_state_dict(first.model.state_dict())
    assert second.validate() == metrics


def test_validation_draws_one_latent_a_sentence(make_trainer):
    trainer = make_trainer(max_tokens_per_batch=5000, seed=3)
    model = trainer.model.eval()
    batch = trainer.collator([trainer.valid_pairs[index] for index in next(iter(trainer.valid_sampler))])
    batch.pop("row_ids")
    with torch.no_grad():
        output = model(**batch, generator=torch.Generator().manual_seed(3))
        without_noise = model(**batch)
    metrics = trainer.validate()
    for name in ("token_nll", "kl", "length_nll", "elbo"):
        assert metrics[name] == pytest.approx(float(output[name].sum() / output.num_target_tokens), rel=1e-5)
    assert metrics["length_accuracy"] == pytest.approx(float(output.length_accuracy.mean()))
    positions = batch["attention_mask"].sum()
    assert metrics["kl_per_source_position"] == pytest.approx(float(output.kl.sum() / positions), rel=1e-5)
    assert not torch.allclose(output.token_nll, without_noise.token_nll, rtol=1e-4)


def test_validation_is_a_mean_over_target_tokens(make_trainer):
    trainer = make_trainer()
    one_batch = trainer.validate()
    trainer.valid_sampler.max_tokens = 64
    trainer.valid_sampler.set_epoch(0)
    assert len(trainer.valid_sampler) > 3
    in_pieces = trainer.validate()
    # The likelihoods vary with the noise, which depends on the batches; the KL does not.
    assert in_pieces["kl"] == pytest.approx(one_batch["kl"], rel=1e-5)
    assert in_pieces["token_nll"] == pytest.approx(one_batch["token_nll"], rel=0.05)


def test_validation_bleu_is_that_of_sentences_evenly_spaced(make_trainer, monkeypatch):
    trainer = make_trainer(valid_bleu_sentences=10)
    sources, targets = trainer.valid_texts
    assert len(sources) == NUM_VALID
    chosen = [sources[number * NUM_VALID // 10] for number in range(10)]
    answers = dict(zip(sources, targets, strict=True))
    asked = []

    def translate(model, tokenizer, texts, num_refinement_steps):
        asked.append((list(texts), num_refinement_steps))
        return [answers[text] if num_refinement_steps else "nothing" for text in texts]

    monkeypatch.setattr(trainer_module, "translate_texts", translate)
    metrics = trainer.validate()
    assert asked == [(chosen, 0), (chosen, 1)]
    assert metrics["bleu_1_steps"] == pytest.approx(100) and metrics["bleu_0_steps"] < 50


def test_without_translations_the_highest_elbo_chooses(make_trainer):
    trainer = make_trainer(max_steps=100, keep_last_checkpoints=9)
    trainer.max_steps = 4 * len(trainer.sampler)
    elbos = iter([-3.0, -1.0, -2.0, -1.0])
    trainer.validate = lambda: {"elbo": next(elbos)}
    assert trainer.train() == {"elbo": -1.0}
    names = checkpoints(trainer)
    assert names == [f"step-{epoch * len(trainer.sampler):07d}" for epoch in (1, 2, 3, 4)]
    best = weights(trainer.output_folder / "best")
    assert_equal(best, weights(trainer.output_folder / "checkpoints" / names[1]))
    last = weights(trainer.output_folder / "checkpoints" / names[3])
    assert_equal(last, weights(trainer.model))
    assert any(not torch.equal(best[name], last[name]) for name in best)


def test_where_sentences_are_translated_bleu_chooses(make_trainer):
    # The ELBO of the references falls with the KL budget while the translations gain.
    trainer = make_trainer(max_steps=3, validate_every_steps=1, keep_last_checkpoints=0, keep_best_checkpoints=2)
    figures = iter([(-1.0, 10.0), (-2.0, 30.0), (-3.0, 20.0)])
    trainer.validate = lambda: dict(zip(("elbo", "bleu_1_steps"), next(figures), strict=True))
    assert trainer.train() == {"elbo": -2.0, "bleu_1_steps": 30.0}
    assert checkpoints(trainer) == ["step-0000002", "step-0000003"]


@pytest.mark.parametrize(("keep", "expected"), [(2, [2, 3]), (0, []), (9, [1, 2, 3])])
def test_the_last_checkpoints_are_kept(make_trainer, keep, expected):
    trainer = make_trainer(keep_last_checkpoints=keep)
    num_batches = len(trainer.sampler)
    trainer.max_steps = 3 * num_batches
    trainer.train()
    assert checkpoints(trainer) == [f"step-{epoch * num_batches:07d}" for epoch in expected]
    assert {path.name for path in trainer.output_folder.iterdir()} == {"log.jsonl", "checkpoints", "best", "states"}


@pytest.mark.parametrize(("last", "best", "expected"), [(0, 2, [1, 3]), (1, 2, [1, 3, 5]), (2, 1, [3, 4, 5])])
def test_the_best_checkpoints_are_kept(make_trainer, last, best, expected):
    trainer = make_trainer(keep_last_checkpoints=last, keep_best_checkpoints=best, validate_every_steps=1, max_steps=5)
    elbos = iter([-2.0, -5.0, -1.0, -4.0, -3.0])
    trainer.validate = lambda: {"elbo": next(elbos)}
    assert trainer.train() == {"elbo": -1.0}
    assert checkpoints(trainer) == [f"step-{step:07d}" for step in expected]


def test_batches_put_together_ahead_make_the_same_steps(make_trainer):
    runs = [make_trainer(f"run-{number}", dropout=0.1, loading_workers=number, max_steps=4) for number in (0, 2)]
    assert runs[0].train() == runs[1].train()
    assert_equal(weights(runs[0].model), weights(runs[1].model))


def test_validation_comes_every_so_many_steps(make_trainer):
    trainer = make_trainer(validate_every_steps=2, max_steps=7)  # 3 batches an epoch
    trainer.train()
    lines = log_lines(trainer, "valid")
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 2), (1, 4), (1, 6), (2, 7)]


def test_the_best_model_loads_and_translates(make_trainer):
    trainer = make_trainer()
    trainer.train()
    best = trainer.output_folder / "best"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(best), AutoTokenizer.from_pretrained(best)
    encoded = tokenizer(trainer.valid_texts[0], padding=True, return_tensors="pt")
    expected = trainer.model.eval().generate(**encoded)
    assert model.generate(**encoded).equal(expected)
    assert len(tokenizer.batch_decode(expected, skip_special_tokens=True)) == NUM_VALID


# runs


def test_the_log_has_every_part_of_the_loss(make_trainer):
    trainer = make_trainer(valid_bleu_sentences=3, log_every_steps=2)
    metrics = trainer.train()
    train_lines, valid_lines = log_lines(trainer, "train"), log_lines(trainer, "valid")
    assert [line["step"] for line in train_lines] == [2, 4, 6, 8]
    for line in train_lines:
        assert {*LvnarObjective.token_means, "loss", "kl_per_source_position", "length_accuracy", "grad_norm"} <= set(
            line
        )
        settings = {"learning_rate", "kl_budget", "glancing_ratio"}
        assert {*settings, "target_tokens_per_second", "loading_share", "epoch", "minutes"} <= set(line)
        assert line["elbo"] == pytest.approx(-line["token_nll"] - line["kl"] - line["length_nll"])
        assert line["budgeted_kl"] >= line["kl"] and 0 <= line["loading_share"] < 1
        assert all(math.isfinite(value) for name, value in line.items() if name != "kind")
    assert valid_lines[-1]["step"] == 8
    expected = {"token_nll", "kl", "kl_per_source_position", "length_nll", "elbo", "length_accuracy"}
    expected |= {"bleu_0_steps", "bleu_1_steps"}
    assert all(set(line) == {"kind", "epoch", "step", "minutes", *expected} for line in valid_lines)
    minutes = [line["minutes"] for line in train_lines]
    assert minutes == sorted(minutes) and 0 < minutes[0] < 1
    assert metrics in [{name: line[name] for name in expected} for line in valid_lines]


def test_the_logged_loss_adds_up_without_smoothing(make_trainer):
    trainer = make_trainer(label_smoothing=0.0)
    trainer.train()
    for line in log_lines(trainer, "train"):
        assert line["loss"] == pytest.approx(line["token_nll"] + line["budgeted_kl"] + line["length_nll"], rel=1e-5)


def test_the_same_seed_gives_the_same_weights(make_trainer):
    runs = []
    for folder, seed in (("first", 1), ("second", 1), ("third", 2)):
        trainer = make_trainer(folder, dropout=0.1, seed=seed)
        trainer.train()
        runs.append((trainer, weights(trainer.model)))
    assert_equal(runs[0][1], runs[1][1])
    assert any(not torch.equal(runs[0][1][name], runs[2][1][name]) for name in runs[0][1])
    timed = {"target_tokens_per_second", "loading_share", "minutes"}
    logs = [[{k: line[k] for k in set(line) - timed} for line in log_lines(t, "train")] for t, _ in runs]
    assert logs[0] == logs[1] != logs[2]


def test_training_lowers_the_loss(make_trainer):
    trainer = make_trainer(max_steps=60, learning_rate=0.01, warmup_steps=10)
    trainer.train()
    losses = [line["token_nll"] for line in log_lines(trainer, "train")]
    assert losses[-1] < 0.6 * losses[0]


def test_speeds_leave_out_pauses(monkeypatch):
    clock = iter([100.0, 101.0, 160.0, 161.0, 162.0, 164.0])
    monkeypatch.setattr("training.loop.log.time.perf_counter", lambda: next(clock))
    names = (*LvnarObjective.token_means, "length_accuracy", "source_tokens", "sentences", "loss", "grad_norm")
    sums = {**dict.fromkeys(names, 1.0), "target_tokens": 10}
    window = LogWindow()  # 100
    window.add(sums, {"kl_budget": 1.0}, seconds_loading=0.25)  # 101
    window.leave_out_pause()  # 160: validation took 59 seconds
    window.add(sums, {"kl_budget": 0.5}, seconds_loading=0.25)  # 161
    line = window.summary(LvnarObjective())
    assert (line["target_tokens_per_second"], line["loading_share"], line["loss"]) == (10.0, 0.25, 1.0)
    assert (line["kl"], line["kl_per_source_position"], line["kl_budget"]) == (0.1, 1.0, 0.5)
    window.add(sums, {}, seconds_loading=0.0)  # 162
    window.add(sums, {}, seconds_loading=0.0)  # 164
    assert window.summary(LvnarObjective())["target_tokens_per_second"] == pytest.approx(20 / 3)


def test_data_that_cannot_be_trained_on_is_refused_at_the_start(make_trainer, digit_pairs):
    with pytest.raises(ValueError, match="tokens on a side; max_tokens_per_batch is 10"):
        make_trainer(max_tokens_per_batch=10)
    trainer = make_trainer()
    parts = [trainer.accelerator, trainer.model, trainer.tokenizer]
    with pytest.raises(ValueError, match="0 training and 24 validation pairs"):
        TranslationTrainer(*parts, digit_pairs[0].select([]), *digit_pairs[1:], trainer.arguments)


# the command


def test_an_output_folder_with_something_in_it_is_refused(tmp_path):
    folder = tmp_path / "run"
    prepare_output_folder(folder, overwrite=False)
    (folder / "checkpoints" / "step-0000800").mkdir(parents=True)
    (folder / "best").mkdir()
    for name in ("log.jsonl", "notes.txt"):
        (folder / name).touch()
    with pytest.raises(
        FileExistsError, match=r"run exists and is not empty: name another --output_folder \(or --resume\), or give"
    ):
        prepare_output_folder(folder, overwrite=False)
    assert len(list(folder.iterdir())) == 4
    prepare_output_folder(folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]  # what training did not write stays


def test_the_command_runs_twice_only_if_told(tmp_path, monkeypatch, digit_tokenizer, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    write_digits(tmp_path / "data" / "digits", num_train=100, num_valid=20)
    digit_tokenizer.save_pretrained(tmp_path / "runs" / "digits" / "tokenizer")
    command = ["--config", str(ROOT / "training" / "configs" / "digits.yaml"), "--log_every_steps", "1"]
    command += ["--train_on", "raw"]
    metrics = train.main([*command, "--max_steps", "3"])
    assert {"elbo", "bleu_0_steps", "bleu_1_steps"} <= set(metrics)
    output = capsys.readouterr()
    assert (
        "training pairs: {'kept': 100, 'malformed': 0, 'empty': 0" in output.out
        and "best model: runs/digits/model/best" in output.out
    )
    assert "Writing model shards" not in output.err
    log = tmp_path / "runs" / "digits" / "model" / "log.jsonl"
    first = log.read_text()
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        train.main([*command, "--max_steps", "3"])
    assert log.read_text() == first
    AcceleratorState._reset_state(reset_partial_state=True)
    train.main([*command, "--max_steps", "2", "--overwrite"])
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 2]
    assert [path.name for path in (log.parent / "checkpoints").iterdir()] == ["step-0000002"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_folder", "x"], "Give --output_folder and --tokenizer_folder"),
        (["--tokenizer_folder", "x"], "Give --output_folder and --tokenizer_folder"),
    ],
)
def test_the_command_needs_both_folders(flags, message):
    with pytest.raises(ValueError, match=message):
        train.main(flags)


def test_without_the_tokenizer_nothing_is_written(tmp_path):
    arguments = ["--output_folder", str(tmp_path / "run"), "--tokenizer_folder", str(tmp_path / "none")]
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        train.main(arguments)
    assert not (tmp_path / "run").exists()


# Of at most four digits, not eight: learnt in fewer steps than the recipe's.
SHORTER = ["--max_steps", "300", "--warmup_steps", "50", "--cooldown_steps", "120"]
SHORTER_TEACHER = ["--max_steps", "1000", "--warmup_steps", "250", "--cooldown_steps", "300"]


def test_the_digits_are_learnt_with_ctc_alignment(tmp_path, monkeypatch):
    """The same task without a length predictor, from text to scores, in this process: 30 s of one core."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    write_digits(Path("data/digits"), max_digits=4)
    recipe = ["--config", str(ROOT / "training" / "configs" / "digits.yaml")]
    tokenizer_command.main(recipe)
    best = train.main([*recipe, *SHORTER, "--train_on", "raw", "--alignment", "ctc", "--valid_bleu_sentences", "0"])
    assert "length_nll" not in best and best["elbo"] == pytest.approx(-best["token_nll"] - best["kl"])
    files = {f"{side}_file": f"data/digits/valid.{side}" for side in ("source", "target")}
    options = {"model": "runs/digits/model/best", "output_folder": "student", **files, "num_bootstrap": 0}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    metrics = score.main([*flags, "--num_refinement_steps", "0", "1", "--num_elbo_samples", "1"])
    targets = Path(files["target_file"]).read_text("utf-8").splitlines()
    for result in metrics["results"]:
        hypotheses = (tmp_path / "student" / result["hypotheses"]).read_text("utf-8").splitlines()
        exact = sum(map(str.__eq__, hypotheses, targets)) / len(targets)
        print(f"exact translations: {exact}")
        assert exact >= 0.95
    assert metrics["elbo_of_references"]["num_sentences"] == 500
    assert metrics["elbo_of_references"]["elbo"] == pytest.approx(best["elbo"], abs=0.02)


def test_the_digits_are_learnt_from_a_teacher(tmp_path):
    """The commands of training/README.md, from text to the scores of a student that has read its teacher alone."""
    write_digits(tmp_path / "data" / "digits", max_digits=4)
    runs = tmp_path / "runs" / "digits"
    recipe = ["--config", str(ROOT / "training" / "configs" / "digits.yaml")]

    def run(script: str, *arguments: object, launch: bool = False) -> None:
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
        command = [*(launcher if launch else []), ROOT / "training" / script, *arguments]
        result = run_forked(command, cwd=tmp_path, env={"ACCELERATE_USE_CPU": "true"}, timeout=600)
        assert result.returncode == 0, result.stderr[-3000:]
        assert not launch or ("processes: 1" in result.stdout and "Writing model shards" not in result.stderr)

    run("tokenizer.py", *recipe)
    run("teacher.py", *recipe, *SHORTER_TEACHER, launch=True)
    run("distil.py", *recipe)
    # Nobody reads the text's own targets from here on.
    (tmp_path / "data" / "digits" / "train.target").write_text("0\n" * 20_000)
    run("train.py", *recipe, *SHORTER, launch=True)
    checkpoints = [runs / "model" / "best", *(runs / "model" / "checkpoints").iterdir()]
    run("average.py", "--output_folder", runs / "averaged", "--checkpoints", *checkpoints)
    files = {side: tmp_path / "data" / "digits" / f"valid.{side}" for side in ("source", "target")}
    texts = ["--source_file", files["source"], "--target_file", files["target"], "--num_bootstrap", 0]
    run("score.py", *texts, "--model", runs / "teacher" / "best", "--output_folder", "teacher", "--num_beams", 1)
    steps = ["--num_refinement_steps", 0, 1, "--num_elbo_samples", 1]
    run("score.py", *texts, "--model", runs / "averaged", "--output_folder", "student", *steps)
    exact = {}
    for file in sorted(tmp_path.glob("*/hypotheses.*.txt")):
        pairs = zip(file.read_text("utf-8").splitlines(), files["target"].read_text("utf-8").splitlines(), strict=True)
        exact[file.name] = sum(hypothesis == target for hypothesis, target in pairs) / 500
    print(f"exact translations: {exact}")
    assert exact["hypotheses.beam-1.txt"] >= 0.95
    assert exact["hypotheses.0-steps.txt"] >= 0.95 and exact["hypotheses.1-steps.txt"] >= 0.95
