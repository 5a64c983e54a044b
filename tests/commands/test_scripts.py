"""The scripts beside training: evaluation, benchmark, demonstration; and the commands that the documents show."""

import json
import re
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT, make_model, tiny_config
from forks import run_forked
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lvnar_hf.commands.app import app
from lvnar_hf.ctc_lvnar import num_cells_needed
from lvnar_hf.hub import assemble
from training import average, report, time_step
from training.loop.averaging import average_weights
from training.loop.cpu_operators import FastCpuTraining
from training.reports import tables
from training.speed import training_step


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("", "alignment length, 10 sentences of 10 tokens per step, float32"),
        (
            "--alignment ctc --upsampling_ratio 1 --mixed_precision bf16 --dropout 0.1 --attention_dropout 0.1 "
            "--initial_glancing_ratio 0.5",
            "alignment ctc, 10 sentences of 10 tokens per step, bfloat16 autocast",
        ),
    ],
)
def test_a_training_step_is_timed(flags, named, tmp_path):
    file = tmp_path / "training_step.json"
    recipe = [
        "--config",
        str(ROOT / "training" / "configs" / "digits.yaml"),
        *flags.split(),
        "--max_tokens_per_batch",
        "100",
    ]
    result = time_step.main([*recipe, "--num_repeats", "2", "--num_threads", "1", "--output_file", str(file)])
    assert json.loads(file.read_text()) == result
    assert set(result["seconds"]) == {"forward", "backward", "clipping", "optimizer"}
    assert result["settings"]["glancing_ratio"] == (0.5 if flags else 0.0)
    tokens = result["num_sentences"] * result["sentence_length"]
    assert result["target_tokens_per_second"] == pytest.approx(tokens / sum(result["seconds"].values()))
    assert 0 < sum(result["operator_shares"].values()) <= 1
    assert list(result["operators"]) == ["fast", "torch"]
    for seconds in result["operators"].values():
        assert list(seconds) == ["step", "without_attention", "without_dropout"] and min(seconds.values()) > 0
    table = tables.training_step_table(tmp_path)
    assert named in table and "| attention and dropout | seconds per step | attention | dropout |" in table
    assert table.count("| torch's | ") == table.count("| of training on the CPU (") == 1
    with pytest.raises(FileExistsError, match="--output_file"):
        time_step.main([*recipe, "--output_file", str(file)])
    with pytest.raises(ValueError, match="mixed_precision is 'fp16'; on a CPU it must be"):
        time_step.main([*recipe, "--mixed_precision", "fp16"])


def test_what_is_left_out_of_a_step_is_left_out_alone():
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, length, 4, requires_grad=True) for length in (5, 6, 6)]
    states = torch.ones(4, 1000)
    for operators in (nullcontext, FastCpuTraining):
        with operators(), training_step.WithoutOperators("attention"):
            output = functional.scaled_dot_product_attention(*tensors)
            assert bool((functional.dropout(states, 0.5) == 0).any())
        assert output.shape == tensors[0].shape
        gradients = torch.autograd.grad(output.sum(), tensors)
        assert all(bool((gradient != 0).all()) for gradient in gradients)
        with operators(), training_step.WithoutOperators("dropout"):
            assert functional.dropout(states, 0.5) is states
            output = functional.scaled_dot_product_attention(*tensors, dropout_p=0.5)
        torch.testing.assert_close(output, functional.scaled_dot_product_attention(*tensors))


def test_a_drawn_batch_fits_into_as_many_cells_as_tokens():
    batch = training_step.draw_batch(500, 9, 8)
    assert bool((num_cells_needed(batch["labels"]) == 9).all()) and batch["labels"].unique().tolist() == [3, 4, 5, 6, 7]
    assert batch["input_ids"].unique().tolist() == [3, 4, 5, 6, 7]


def run_script(*command: str) -> str:
    result = run_forked(command, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_demo_translates_with_the_model_that_ships():
    output = run_script("model_cards/demo.py")
    assert output.count("0 steps") == output.count("1 step ") == 7
    bleu = [float(score) for score in re.findall(r"BLEU ([\d.]+) \(nrefs:1\|case:mixed\|eff:no\|tok:13a", output)]
    assert len(bleu) == 2 and min(bleu) > 40
    assert "Bahnhof" in output


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "training" / "README.md"]


def python_blocks() -> list:
    blocks = []
    for path in (*DOCUMENTS, ROOT / "model_cards" / "lvnar-tatoeba-en-de" / "README.md"):
        found = re.findall(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", path.read_text("utf-8"), flags=re.DOTALL)
        name = "-".join(path.relative_to(ROOT).with_suffix("").parts)
        blocks += [pytest.param(block, output, id=f"{name}-{i}") for i, (block, output) in enumerate(found)]
    return blocks


@pytest.mark.parametrize(("block", "output"), python_blocks())
def test_python_in_the_documents_runs_as_written(block, output, tmp_path):
    """What it prints is what stands below it, if anything does. A repository of the Hub is a folder here."""
    if "NAMESPACE/" in block:
        folder = assemble(ROOT / "model_cards" / report.SHIPPED, tmp_path / report.SHIPPED)
        block = block.replace(f"NAMESPACE/{report.SHIPPED}", str(folder))
    printed = run_script("-c", block)
    assert printed.strip() and printed == (output or printed)


def test_commands_in_the_documents_name_what_exists():
    """The scripts, recipes and make targets; training itself runs in test_training.py."""
    text = "".join(path.read_text("utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"(?:training|tests)/[\w/-]+\.(?:py|yaml|txt|md|en)\b", text))
    assert len(named) >= 20 and not [name for name in named if not (ROOT / name).is_file()]
    commands = set(re.findall(r"^(?:.*[|] )?lvnar ([a-z]+) ", text, re.M))
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {"translate", "export", "info", "publish"} <= commands <= known
    targets = {
        target
        for line in re.findall(r"^make (.*)|`make (.*?)`", text, re.M)
        for target in re.findall(r"^[a-z-]+", "".join(line))
    }
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets >= {"demo", "test", "quick", "lint"} and all(f"\n{target}:" in makefile for target in targets)


def test_tables_and_cards_are_those_of_the_results():
    for path, text in report.rendered_files().items():
        assert path.read_text("utf-8") == text, f"{path} differs: run python training/report.py"
    with pytest.raises(ValueError, match="no table other"):
        report.render("<!-- other: begin --><!-- other: end -->")
    marks = [f"<!-- lvnar-tatoeba-ja-en-length/distillation: {mark} -->" for mark in ("begin", "end")]
    of_another_model = "".join(marks)
    assert "sentences by ctranslate2" in report.render(of_another_model)


def test_averaging_takes_the_mean_and_stores_as_asked(either_repository, tmp_path):
    first = AutoModelForSeq2SeqLM.from_pretrained(either_repository)
    second = AutoModelForSeq2SeqLM.from_pretrained(either_repository)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    second.save_pretrained(tmp_path / "second")
    folders = [str(either_repository), str(tmp_path / "second")]
    average.main(["--checkpoints", *folders, "--output_folder", str(tmp_path / "mean"), "--storage_dtype", "float16"])
    with safe_open(tmp_path / "mean" / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    mean = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "mean", dtype="auto")
    for name, parameter in mean.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, first.get_parameter(name) + 0.5, atol=2e-3, rtol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "mean")("Tom")["input_ids"]
    with pytest.raises(FileExistsError, match="not empty"):
        average.main(["--checkpoints", *folders, "--output_folder", str(tmp_path / "mean")])
    with pytest.raises(ValueError, match="float8"):
        average.main(["--checkpoints", *folders, "--output_folder", str(tmp_path / "x"), "--storage_dtype", "float8"])
    penalty = ["--checkpoints", folders[0], "--output_folder", str(tmp_path / "penalty"), "--blank_penalty"]
    average.main([*penalty, "0.5"])
    assert json.loads((tmp_path / "penalty" / "config.json").read_text())["blank_penalty"] == 0.5
    with pytest.raises(ValueError, match="blank_penalty is -1"):
        average.main([*penalty, "-1", "--overwrite"])
    make_model(tiny_config(vocab_size=70)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="differ in the weights"):
        average_weights([str(either_repository), str(tmp_path / "other")])
