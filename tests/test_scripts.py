"""The scripts beside training: evaluation, benchmark, demonstration; and the commands that the documents show."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lvnar_hf.hub import assemble
from tests.conftest import ROOT, make_model, tiny_config
from training import average, report, time_step


def test_a_training_step_is_timed(tmp_path):
    file = tmp_path / "step.json"
    recipe = ["--config", str(ROOT / "training" / "configs" / "digits.yaml")]
    result = time_step.main([*recipe, "--num_repeats", "2", "--num_threads", "1", "--output_file", str(file)])
    assert json.loads(file.read_text()) == result
    assert set(result["seconds"]) == {"forward", "backward", "clipping", "optimizer"}
    tokens = result["num_sentences"] * result["sentence_length"]
    assert result["target_tokens_per_second"] == pytest.approx(tokens / sum(result["seconds"].values()))
    assert 0 < sum(result["operator_shares"].values()) <= 1
    with pytest.raises(FileExistsError, match="--output_file"):
        time_step.main([*recipe, "--output_file", str(file)])


def run_script(*command: str) -> str:
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_demo_translates_with_the_model_that_ships():
    output = run_script("training/demo.py")
    assert output.count("0 steps") == output.count("1 step ") == 7
    bleu = [float(score) for score in re.findall(r"BLEU ([\d.]+) \(nrefs:1\|case:mixed\|eff:no\|tok:13a", output)]
    assert len(bleu) == 2 and bleu[1] > bleu[0]
    assert "Bahnhof" in run_script("training/demo.py", "Where is the station?")


def python_blocks() -> list:
    blocks = []
    for path in (ROOT / "README.md", ROOT / "model_cards" / "lvnar-tatoeba-en-de" / "README.md"):
        for index, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), flags=re.DOTALL)):
            blocks.append(pytest.param(block, id=f"{path.parent.name}-{index}"))
    return blocks


@pytest.mark.parametrize("block", python_blocks())
def test_python_in_the_documents_runs_as_written(block, tmp_path):
    """A repository of the Hub is a folder here, put together as it would be published."""
    if "NAMESPACE/" in block:
        folder = assemble(ROOT / "model_cards" / report.SHIPPED, tmp_path / report.SHIPPED)
        block = block.replace(f"NAMESPACE/{report.SHIPPED}", str(folder))
    assert run_script("-c", block).strip()


def test_commands_in_the_documents_name_what_exists():
    """The scripts, recipes and make targets; training itself runs in test_training.py."""
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "training" / "README.md").read_text("utf-8")
    named = set(re.findall(r"training/[\w/]+\.(?:py|yaml)", text))
    assert len(named) >= 7 and all((ROOT / name).is_file() for name in named)
    targets = set(re.findall(r"make ([a-z-]+)", text))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets >= {"demo", "test"} and all(f"\n{target}:" in makefile for target in targets)


def test_tables_and_cards_are_those_of_the_results():
    for path, text in report.rendered_files().items():
        assert path.read_text("utf-8") == text, f"{path} differs: run python training/report.py"
    with pytest.raises(ValueError, match="no table other"):
        report.render("<!-- other: begin --><!-- other: end -->")
    of_another_model = "<!-- lvnar-tatoeba-en-de/distillation: begin --><!-- lvnar-tatoeba-en-de/distillation: end -->"
    assert "sentences by ctranslate2" in report.render(of_another_model)


def test_averaging_takes_the_mean_and_stores_as_asked(tiny_repository, tmp_path):
    first = AutoModelForSeq2SeqLM.from_pretrained(tiny_repository)
    second = AutoModelForSeq2SeqLM.from_pretrained(tiny_repository)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    second.save_pretrained(tmp_path / "second")
    folders = [str(tiny_repository), str(tmp_path / "second")]
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
    make_model(tiny_config(vocab_size=70)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="differ in the weights"):
        average.average_weights([str(tiny_repository), str(tmp_path / "other")])
