"""One command for a machine that can be had for minutes, here for seconds: what it leaves, and what it refuses."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from digits import make_digit_pairs
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.loop.test_training import fresh_accelerator  # noqa: F401  (a fixture)
from training import sprint, train

CONFIG = ["--config", str(ROOT / "training" / "configs" / "digits.yaml")]


@pytest.fixture
def text_folder(tmp_path, monkeypatch) -> Path:
    """Train, valid and test text of digits, one file of it compressed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "text"
    folder.mkdir()
    pairs = make_digit_pairs(2040, seed=1)
    for name, part in (("train", pairs[:2000]), ("valid", pairs[2000:2020]), ("test", pairs[2020:])):
        for language, texts in zip(("xx", "yy"), zip(*part, strict=True), strict=True):
            (folder / f"{name}.{language}").write_text("".join(text + "\n" for text in texts), "utf-8")
    with gzip.open(folder / "train.yy.gz", "wt", encoding="utf-8") as file:
        file.write((folder / "train.yy").read_text("utf-8"))
    (folder / "train.yy").unlink()
    return folder


def run(text_folder: Path, *flags: str) -> dict:
    languages = ["--source_language", "xx", "--target_language", "yy"]
    return sprint.main([*CONFIG, "--text_folder", str(text_folder), *languages, "--output_folder", "out", *flags])


def test_a_sprint_leaves_a_scored_model_and_the_same_in_pieces(text_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sprint, "PIECE_BYTES", 1_000_000)
    flags = ["--stage", "student", "--minutes", "0.08", "--num_averaged", "2", "--pieces_folder", "pieces"]
    summary = run(text_folder, *flags, "--max_state_megabytes", "50", "--hidden_size", "128", "--log_every_steps", "1")
    result = tmp_path / "out" / "result"
    assert json.loads((result / "sprint.json").read_text()) == summary
    assert summary["steps"] > 2 and len(summary["checkpoints"]) == 2 and len(summary["bleu"]) == 3
    lines = [json.loads(line) for line in (result / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    assert training[-1]["minutes"] >= 0.08 > training[-2]["minutes"] and training[-1]["kl_budget"] < 1
    metrics = json.loads((result / "evaluation" / "metrics.json").read_text())
    assert [one["num_refinement_steps"] for one in metrics["results"]] == [0, 1, 3]
    assert [one["bleu"]["score"] for one in metrics["results"]] == summary["bleu"]

    shards = sorted((result / "model").glob("*.safetensors"))
    assert len(shards) > 1 and max(file.stat().st_size for file in shards) <= 1_000_000
    assert {tensor.dtype for file in shards for tensor in load_file(file).values()} == {torch.float16}
    pieces = sorted((tmp_path / "pieces").iterdir())
    assert [piece.name for piece in pieces] == [f"result.tar.{number:02d}" for number in range(len(pieces))]
    assert len(pieces) > 1 and max(piece.stat().st_size for piece in pieces) <= 1_000_000
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as tar:
        tar.extractall(tmp_path / "carried")
    files, carried = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (result, tmp_path / "carried" / "result")
    )
    assert files == carried and any("states" in file.parts for file in files)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "carried" / "result" / "model")
    assert model.config.hidden_size == 128 and model.dtype == torch.float32

    settings = json.loads((result / "run.json").read_text())
    settings = {name: value for name, value in settings.items() if value not in (None, [])}
    settings = {n: value for n, value in settings.items() if n != "num_processes" and not n.endswith("_sha256")}
    more = [str(part) for key, value in settings.items() for part in (f"--{key}", *np.atleast_1d(value))]
    more += ["--max_minutes", "0.12", "--log_every_steps", "1", "--resume", "--output_folder", "carried/result"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train.main(more)["elbo"] < 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "carried/result/log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] > summary["steps"]


def test_what_scoring_lacks_is_said_before_the_minutes_are_spent(text_folder, monkeypatch):
    for file in text_folder.iterdir():
        file.rename(str(file).replace(".xx", ".ja").replace(".yy", ".en"))
    monkeypatch.setattr("training.translation_quality.bleu.importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sprint.STAGES, "student", lambda flags: pytest.fail("it was trained"))
    languages = ["--source_language", "ja", "--target_language", "en", "--output_folder", "out"]
    with pytest.raises(ImportError, match="pip install sacremoses"):
        sprint.main([*CONFIG, "--text_folder", str(text_folder), *languages, "--stage", "student", "--minutes", "0.1"])


def test_a_teacher_is_trained_with_the_tokenizer_of_the_folder(text_folder, tmp_path):
    first = run(text_folder, "--stage", "teacher", "--minutes", "0.02")
    assert first["checkpoints"] == ["best"] and len(first["bleu"]) == 2  # beams of 1 and 3
    made = tmp_path / "out" / "tokenizer"
    assert not (tmp_path / "out" / "result" / "states").exists() and first["state_megabytes"] > 0
    with pytest.raises(FileExistsError, match="--output_folder"):
        run(text_folder, "--stage", "teacher", "--minutes", "0.02")
    AutoTokenizer.from_pretrained(made).save_pretrained(text_folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    run(text_folder, "--stage", "teacher", "--minutes", "0.02", "--overwrite")
    assert "tokenizer" not in json.loads((tmp_path / "out" / "result" / "sprint.json").read_text())["seconds"]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--stage", "training"], ValueError, "stage is 'training'; it must be teacher or student"),
        (["--stage", "student", "--num_averaged", "0"], ValueError, "num_averaged is 0; it must be at least 1"),
        (["--stage", "student", "--source_language", "zz"], FileNotFoundError, r"one of \['train.zz', 'train.zz.gz'\]"),
        (["--stage", "student", "--cooldown_steps", "5"], ValueError, "cooldown_steps is 5; it must be 0"),
    ],
)
def test_a_sprint_that_cannot_be_run_is_refused(text_folder, flags, error, message):
    with pytest.raises(error, match=message):
        run(text_folder, "--minutes", "0.02", *flags)
