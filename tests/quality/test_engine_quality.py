"""What engines and number types cost: counted against PyTorch in float32, sentence by sentence."""

import json

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForSeq2SeqLM

from training import engine_quality
from training.quality import engines as engines_module
from training.quality.engines import REFERENCE, load_engines
from training.reports import tables


@pytest.fixture
def flags(either_repository, sample_texts, tmp_path):
    for name, texts in zip(("test.en", "test.de"), sample_texts, strict=True):
        (tmp_path / name).write_text("".join(text + "\n" for text in texts[:40]), "utf-8")
    named = {"model": either_repository, "source_file": tmp_path / "test.en", "target_file": tmp_path / "test.de"}
    named |= {"source_language": "en", "target_language": "de", "output_file": tmp_path / "engine_quality.json"}
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def test_other_sentences_and_bleu(either_repository, flags, tmp_path, monkeypatch):
    model = AutoModelForSeq2SeqLM.from_pretrained(either_repository, dtype=torch.float32).eval()
    other = make_model(model.config, seed=1)
    engines = [(REFERENCE, model), ("the same", model), ("another", other)]
    monkeypatch.setattr(engines_module, "load_engines", lambda name: iter(engines))
    result = engine_quality.main(flags)
    assert json.loads((tmp_path / "engine_quality.json").read_text()) == result
    rows = {name: engine["results"] for name, engine in result["engines"].items()}
    assert rows["the same"] == rows[REFERENCE]
    assert [row["num_refinement_steps"] for row in rows[REFERENCE]] == [0, 1]
    assert all(row["different_sentences"] == 0 for row in rows[REFERENCE])
    assert all(row["different_sentences"] == 40 for row in rows["another"])
    table = tables.engine_quality_table(tmp_path)
    assert "| engine | BLEU, 0 steps | BLEU, 1 step | other sentences, 0 steps | other sentences, 1 step |" in table
    assert "| 100.0% | 100.0% |" in table and "| 0.0% | 0.0% |" in table
    assert "40 sentences of test.en, en to de" in table
    with pytest.raises(FileExistsError, match="--overwrite"):
        engine_quality.main(flags)


def test_the_engines_are_those_of_the_cpu(tiny_repository, monkeypatch):
    monkeypatch.setattr(engines_module, "export_onnx", lambda model, folder: {"int8": "a file"})
    monkeypatch.setattr(
        engines_module, "LvnarOnnxModel", lambda config, generation_config, file, shortlist=None: shortlist or file
    )
    engines = {name: getattr(model, "dtype", model) for name, model in load_engines(str(tiny_repository))}
    assert engines == {
        REFERENCE: torch.float32,
        "onnx int8": "a file",
        "eager, bfloat16": torch.bfloat16,
        "eager, float16": torch.float16,
    }
