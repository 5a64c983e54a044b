"""Dry runs: the recipes of the paper's sizes take steps without text, and leave nothing behind."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, tiny_config

from lvnar_hf.ctc_lvnar import num_cells_needed
from training import teacher, train
from training.data.tokenized_pairs import pair_lengths
from training.loop.arguments import DryRunArguments, vocabulary_sizes
from training.sections import OptimizationArguments
from training.speed import dry_run
from training.speed.training_step import usable_lengths

CONFIGS = ROOT / "training" / "configs"
SMALL = ["--max_tokens_per_batch", "64", "--max_sentence_length", "16"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, as in a process of its own."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield tmp_path
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("script", "recipe", "flags", "num_parameters"),
    [
        (train, "wmt14_en_de", [], 70_057_390),
        (train, "aspec_ja_en", ["--alignment", "ctc", "--initial_glancing_ratio", "0.5"], 94_580_769),
        (teacher, "wmt14_en_de", [], 61_046_784),
    ],
)
def test_a_recipe_of_the_papers_sizes_takes_three_steps(script, recipe, flags, num_parameters, elsewhere, capsys):
    result = script.main(["--config", str(CONFIGS / f"{recipe}.yaml"), "--dry_run", "3", *SMALL, *flags])
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :]) == result
    assert list(elsewhere.iterdir()) == []
    assert result["parameters"] == num_parameters and result["max_tokens_per_batch"] == 64
    num_sentences, length = result["shapes"]["labels"]
    assert result["shapes"]["input_ids"][0] == num_sentences and num_sentences * length <= 64
    # Of every weight but the embeddings at least an addition and a multiplication a token, forward and twice backward.
    places = num_sentences * min(length, result["shapes"]["input_ids"][1])
    assert 6 * 0.4 * num_parameters * places < result["operations_per_step_and_process"] < 30 * num_parameters * places
    assert result["lowest_and_highest"][0] <= result["seconds_per_step"] <= result["lowest_and_highest"][1]
    assert 0 < result["target_tokens_per_step"] <= 64
    assert result["the_run"]["hours"] == pytest.approx(
        result["the_run"]["max_steps"] * result["seconds_per_step"] / 3600
    )
    assert result["peak_memory_mb"] > 16 * num_parameters / 1e6


def test_a_batch_that_does_not_fit_is_made_smaller_and_said(monkeypatch):
    recipe = ["--config", str(CONFIGS / "digits.yaml"), "--dry_run", "1"]
    free = {"cpu": 8_000_000}
    monkeypatch.setattr(dry_run, "get_max_memory", lambda: free)
    result = train.main(recipe)
    assert 32 <= result["max_tokens_per_batch"] < result["max_tokens_per_batch_asked_for"] == 512
    assert np.prod(result["shapes"]["labels"]) <= result["max_tokens_per_batch"]
    assert result["counted_memory_mb"] == pytest.approx(0.8 * 8, rel=0.02)
    hours = 750 * result["seconds_per_step"] * 512 / result["max_tokens_per_batch"] / 3600
    assert result["the_run"] == {"max_steps": 750, "hours": pytest.approx(hours)}
    free["cpu"] = 2_000_000
    with pytest.raises(ValueError, match=r"0.0 GB are free, and a batch of one sentence of 32 tokens takes .* GB"):
        train.main(recipe)


def test_pairs_that_are_made_up_are_those_of_a_run():
    config = tiny_config(alignment="ctc", upsampling_ratio=1.0, max_position_embeddings=30)
    lengths = usable_lengths(config, 25)
    assert lengths.max() == 25 and (lengths[:, 1] <= lengths[:, 0]).all()
    assert (abs(np.diff(usable_lengths(tiny_config(max_length_offset=2), 60))) <= 2).all()
    pairs = dry_run.made_up_pairs(lengths, 40, (9, 60), seed=1)
    assert [row["row_id"] for row in pairs.__getitems__([3, 0])] == [3, 0]
    source_lengths, target_lengths = pair_lengths(pairs)
    for row in pairs.__getitems__(list(range(40))):
        assert len(row["input_ids"]) == source_lengths[row["row_id"]]
        assert len(row["labels"]) == target_lengths[row["row_id"]]
        assert row["input_ids"].min() >= 3 and row["input_ids"].max() < 9
        labels = torch.from_numpy(row["labels"])[None]
        assert int(num_cells_needed(labels)) == labels.shape[1] and labels.min() >= 3 and labels.max() < 60


def test_what_a_dry_run_takes_from_flags_and_recipe():
    assert vocabulary_sizes(["--config", str(CONFIGS / "aspec_ja_en.yaml")]) == (40_000, 40_000)
    assert vocabulary_sizes(["--config", str(CONFIGS / "wmt14_en_de.yaml"), "--dry_run"]) == (32_000, None)
    assert vocabulary_sizes([]) == (8000, None)
    with pytest.raises(ValueError, match="dry_run is 0; it must be at least 1"):
        DryRunArguments(0)
    minutes = OptimizationArguments(max_minutes=2.0)
    assert dry_run._extrapolate(minutes, 0.5) == {"max_minutes": 2.0, "steps": 240}
    assert dry_run._extrapolate(OptimizationArguments(max_epochs=1), 0.5)["hours"] is None
