"""docs/SCALE.md: what is counted of models, and the arithmetic that follows, worked out by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_ctc_model, make_model, tiny_config
from torch.nn import functional
from transformers import MarianMTModel

from lvnar_hf import LvnarForConditionalGeneration
from training import report, scale
from training.loop.cpu_operators import FastCpuTraining
from training.loop.objectives import objective_for
from training.loop.schedules import settings_at
from training.recipe import SECTIONS, parse_recipe
from training.reports import scale as tables
from training.sections import OptimizationArguments, TeacherArguments
from training.speed import operations
from training.speed.scale import (
    Card,
    Range,
    computing,
    exchange,
    memory,
    of_a_batch,
    plan_of,
    search_plan,
    search_seconds,
    training_step,
    translation,
)
from training.speed.training_step import usable_lengths

CARD = Card("card", teraflops=10, memory=8, bandwidth=100, price=2.0, link=4, network=1, source="")
PLAN = {
    "sentences": 4.0,
    "source_length": 10.0,
    "target_length": 10.0,
    "source_places": 30.0,
    "target_places": 50.0,
    "target_tokens": 45.0,
}
COUNTED = {
    "operations": 9e9,
    "calls": 100,
    "bytes_per_sentence": 1e9,
    "bytes_of_any_batch": 5e8,
    "parameters": 1e9,
}
ARGUMENTS = OptimizationArguments(mixed_precision="no", initial_glancing_ratio=0.5, final_glancing_ratio=0.5)
SETTINGS = settings_at(ARGUMENTS, 100, 1, 0.0)


def test_what_is_alive_and_what_is_called():
    ones = torch.ones(1000)
    with operations.Watch() as watch:
        doubled = ones * 2
        doubled.view(10, 100).add_(1)  # a view is no call, and neither has memory of its own
        assert (watch.num_calls, watch.alive) == (2, 4000)
        del doubled
        assert watch.alive == 0
        (ones + 1).sum()
    assert (watch.num_calls, watch.peak) == (4, 4004)


def test_attention_of_cpus_is_counted_as_two_products_and_five():
    query, key, value = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    with operations.operation_counter() as counter:
        output = functional.scaled_dot_product_attention(query, key, value)
        assert counter.get_total_flops() == 2 * (2 * 2 * 3 * 5 * 7 * 8)
        output.sum().backward()
    assert counter.get_total_flops() == 7 * (2 * 2 * 3 * 5 * 7 * 8)


def teacher(**sizes) -> MarianMTModel:
    return MarianMTModel(TeacherArguments(hidden_size=32, intermediate_size=48, **sizes).to_config(60, None))


@pytest.mark.parametrize("make", [lambda: make_model(tiny_config()), make_ctc_model, teacher])
def test_a_sentence_counts_as_its_share_of_a_batch(make):
    model = make().train()
    counted = operations.count_step(model, ARGUMENTS, SETTINGS, 6, 7)
    assert all(parameter.grad is None for parameter in model.parameters())
    batch = operations.make_batch(model, 5, 6, 7)
    # Plain attention's backward pass has four products and not five.
    with operations.operation_counter() as counter, FastCpuTraining():
        loss, _ = objective_for(model).training_loss(model, batch, 35, 0.1, SETTINGS)
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(5 * counted["operations"], rel=0.03)
    assert 2 * counted["forward_operations"] < counted["operations"] < 3.2 * counted["forward_operations"] + 1
    assert counted["calls"] > 200
    of_memory = operations.count_memory(model, ARGUMENTS, SETTINGS, 6, 7)
    with operations.Watch() as watch, operations._as_on_a_gpu():
        torch.autograd.grad(operations._loss(model, batch, ARGUMENTS, SETTINGS), list(model.parameters())[-1])
    in_all = 5 * of_memory["bytes_per_sentence"] + of_memory["bytes_of_any_batch"]
    assert watch.peak == pytest.approx(in_all, rel=0.02)
    # At least the logits in float32, and their gradient.
    assert of_memory["bytes_per_sentence"] > 2 * 4 * 60 * 7


def test_parts_of_a_translation_and_of_a_search():
    model = make_model(tiny_config())
    zero, one = (operations.count_translation(model, 6, length) for length in (7, 14))
    assert zero["step"] > zero["first"] / 3 and zero["step_calls"] > 50
    assert one["first"] > zero["first"] and one["first_calls"] == zero["first_calls"]
    cells = operations.count_translation(make_ctc_model(), 6, 7)
    assert cells["first"] == operations.count_translation(make_ctc_model(), 6, 20)["first"]  # cells are the source's
    search = operations.count_search(teacher().eval(), 2, 6, 7)
    deeper = operations.count_search(teacher(num_decoder_layers=12).eval(), 2, 6, 7)
    assert deeper["encoder"] == search["encoder"] and deeper["hypothesis"] > 1.5 * search["hypothesis"]
    assert deeper["calls_per_token"] > 1.5 * search["calls_per_token"] > 50


def test_a_step_by_hand():
    # 80 places are 4 sentences of 20: 36 billion operations, at 4.5 and 3 trillion a second.
    assert of_a_batch(COUNTED, PLAN) == {"operations": 36e9, "calls": 100, "bytes": 4.5e9}
    assert computing(CARD, 36e9, 100, 1e-4) == Range(pytest.approx(0.008), pytest.approx(0.012))
    assert computing(CARD, 36e9, 1000, 1e-4) == Range(pytest.approx(0.01), pytest.approx(0.1))
    # 4 GB, 7/4 times, at 4 GB/s; 63/32 times at 1 GB/s; alone there is nothing to exchange.
    assert [exchange(CARD, gpus, 1e9) for gpus in (1, 8, 64)] == pytest.approx([0.0, 1.75, 7.875])
    small = {**COUNTED, "parameters": 1e6}
    for gpus, growth, fast, slow in (
        (1, 1, 0.064, 0.096),
        (8, 1, 0.008, 0.012 + 0.00175),
        (64, 1, 0.007875, 0.01 + 0.007875),  # an eighth of the operations, all the calls
        (64, 8, 0.008, 0.012 + 0.007875),
    ):
        step = training_step(CARD, gpus, small, PLAN, 1e-4, growth)
        assert (step.fast, step.slow) == (pytest.approx(fast), pytest.approx(slow)), (gpus, growth)


def test_memory_translation_and_search_by_hand():
    fixed = {(1, False): 16, (8, False): 20, (8, True): 14, (64, True): 12.25}
    assert {way: memory(COUNTED, PLAN, *way) - 4.5 for way in fixed} == pytest.approx(fixed)
    counted = {"first": 1e9, "step": 2e9, "first_calls": 10, "step_calls": 20}
    assert translation(CARD, counted, 0, 9, 1e-4) == Range(pytest.approx(0.002), pytest.approx(0.003))
    assert translation(CARD, counted, 1, 9, 1e-3) == Range(pytest.approx(0.006), pytest.approx(0.03))
    search = {"encoder": 1e9, "hypothesis": 2e9, "target_length": 20, "calls_per_token": 10, "layers": 5}
    search |= {"hidden_size": 100, "decoder_parameters": 1e6}
    plan = {"sentences": 9.0, "source_length": 10.0, "mean_target": 20.0, "longest_target": 30.0}
    # 9 sources and 18 hypotheses: 45 billion operations. A token reads 2 MB and three times 18 times 40,000 bytes.
    assert search_seconds(CARD, search, 2, plan, 1e-3) == Range(pytest.approx(0.01), pytest.approx(0.3))
    reading = 30 * (2e6 + 3 * 18 * 40_000) / 1e6
    slow = Card("slow", 10, 8, 1e-3, 2.0, 4, 1, "")
    assert search_seconds(slow, search, 2, plan, 1e-3).slow == pytest.approx(reading)
    lengths = np.array([[2, 3], [2, 2], [4, 9], [4, 4]])
    assert plan_of(lengths, 9) == {
        "sentences": 4 / 3,
        "source_length": 10 / 3,
        "target_length": 16 / 3,
        "source_places": 4.0,
        "target_places": 19 / 3,
        "target_tokens": 6.0,
    }
    assert search_plan(lengths, 8) == {
        "sentences": 2.0,
        "source_length": 3.0,
        "mean_target": 4.5,
        "longest_target": 6.0,
    }


@pytest.mark.parametrize("recipe", tables.RECIPES)
def test_what_was_counted_is_of_the_recipes_as_they_are(recipe):
    stored = json.loads(tables.RESULT.read_text("utf-8"))["recipes"][recipe]
    names = ("data", "model", "training")
    given = ["--config", str(tables.RECIPES[recipe])]
    data, sizes, training = parse_recipe({name: SECTIONS[name] for name in names}, given)
    tokenizer, of_teacher = parse_recipe({name: SECTIONS[name] for name in ("tokenizer", "teacher")}, given)
    vocabularies = (tokenizer.vocab_size, None if tokenizer.joint else tokenizer.vocab_size)
    config = sizes.to_config(*vocabularies)
    with torch.device("meta"):
        expected = {
            "teacher": MarianMTModel(of_teacher.to_config(*vocabularies)),
            "length": LvnarForConditionalGeneration(config),
        }
    for name, model in expected.items():
        assert stored["models"][name]["parameters"] == model.num_parameters()
    counted = stored["models"]["length"]
    assert counted["max_steps"] == training.max_steps
    lengths = usable_lengths(config, data.max_sentence_length)
    assert counted["plan"] == pytest.approx(plan_of(operations.pool_of(lengths), training.max_tokens_per_batch))
    # A multiplication and an addition for each weight but the embeddings' and once more each of the vocabulary.
    weights = sum(p.numel() for name, p in expected["length"].named_parameters() if "embedding" not in name)
    length = (counted["plan"]["source_length"] + counted["plan"]["target_length"]) / 2
    vocabulary = 6 * length * config.hidden_size * config.decoder_vocab_size
    assert counted["operations"] == pytest.approx(6 * length * weights + vocabulary, rel=0.1)
    assert 2.9 < counted["operations"] / counted["forward_operations"] < 3.1


def test_the_command_makes_the_document(tmp_path, monkeypatch):
    counted, document = tables.RESULT, report.DOCS / "SCALE.md"
    for file in (counted, document):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(tables, "RESULT", tmp_path / counted.name)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    result = scale.main(["--count", "false"])
    assert (tmp_path / "SCALE.md").read_text("utf-8") == document.read_text("utf-8")
    assert (tmp_path / counted.name).read_text("utf-8") == counted.read_text("utf-8")
    times = tmp_path / "times.json"
    times.write_text(json.dumps({**result["input"]["aspec_ja_en"], "text": "none"}))
    changed = scale.main(["--count", "false", "--input_times", f"aspec_ja_en={times}=a=b"])
    assert changed["input"]["aspec_ja_en"]["text"] == "a=b"
    with pytest.raises(ValueError, match="--input_times has 'digits=x=y'; it must be RECIPE=FILE=TEXT, of wmt14"):
        scale.main(["--count", "false", "--input_times", "digits=x=y"])


def test_figures_have_two_digits_and_ranges_two_ends():
    assert [tables._figure(value) for value in (1234, 99.6, 12.34, 9.96, 1.26, 0.456, 0.0123)] == [
        *("1,200", "100", "12", "10", "1.3", "0.46", "0.012"),
    ]
    assert tables._show(Range(1.21, 1.24)) == "1.2" and tables._show(Range(1, 250)) == "1.0 to 250"
    assert Range(2, 4).per(8) == Range(4, 2) and Range(6, 4).over(Range(3, 1)) == Range(2, 4)
    assert set(tables.alignments()) == {"length", "ctc"} and tables.alignments()["ctc"]["alignment"] == "ctc"
