"""Calibration: the curve, which words are right, what is measured, and the command on a tiny model and a teacher."""

import json

import numpy as np
import pytest
import torch
from conftest import SAMPLE
from transformers import MarianConfig, MarianMTModel

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.confidence_lvnar import FILE, Calibration, Curve
from lvnar_hf.files.fingerprints import folder_weights_fingerprint
from training import calibrate
from training.quality.confidence import (
    ScoredWords,
    calibration_error,
    fit_calibration,
    fit_isotonic,
    measure_calibration,
)


def test_isotonic_regression():
    curve = fit_isotonic([1, 2, 3, 4, 5, 5], [0, 1, 0, 1, 1, 0])
    assert curve == Curve((1.0, 2.5, 4 + 2 / 3), (0.0, 0.5, 2 / 3))
    assert fit_isotonic([0.3, 0.1], [0, 1]) == Curve((0.2,), (0.5,))
    with pytest.raises(ValueError, match="no word to calibrate"):
        fit_isotonic([], [])
    # Against the definition (min-max formula) on noise.
    generator = np.random.default_rng(0)
    scores = np.sort(generator.random(60))
    values = (generator.random(60) < scores).astype(float)
    best = [max(min(values[j : k + 1].mean() for k in range(i, 60)) for j in range(i + 1)) for i in range(60)]
    curve = fit_isotonic(scores, values)
    assert sorted(set(np.round(best, 9))) == sorted(np.round(curve.confidences, 9))


def test_right_words_and_what_is_measured():
    scored = ScoredWords()
    scored.add([("Tom", 0.9), ("Tom", 0.2), ("Haus.", 0.8), ("—", 0.1), ("haus", 0.3)], ["Haus,", "Tom"], 0.5)
    scored.add([("!", 0.1)], ["a"], 0.9)
    assert scored.are_right == [True, False, True, False] and scored.probabilities == [0.9, 0.2, 0.8, 0.3]
    assert scored.right_shares == [0.5] and scored.sentence_probabilities == [0.5]
    many = ScoredWords(
        [i / 100 for i in range(100)], [i % 4 != 0 and i >= 10 for i in range(100)], [0.5, 0.7], [0.2, 1.0]
    )
    wrong = many.are_right.count(False)
    measured = measure_calibration(many, fit_calibration(many, None))
    assert measured["lowest_tenth"] == {
        "share_of_wrong_words": 10 / wrong,
        "largest_possible": 10 / wrong,
        "wrong_share": 1.0,
    }
    assert measured["num_words"] == 100 == sum(one["number"] for one in measured["bins"])
    assert measured["error"] < 0.05 < measured["error_uncalibrated"]
    assert measured["sentences"]["rank_correlation"] == pytest.approx(1.0)
    assert 0 < measured["uncertain"]["share"] <= 0.15
    # |0.1 - 1| of one word in the first bin; |0.95 - 0.5| of two in the last.
    assert calibration_error(np.array([0.1, 0.92, 0.98]), np.array([1, 1, 0])) == pytest.approx((0.9 + 2 * 0.45) / 3)


@pytest.fixture
def files(tmp_path):
    for side in ("en", "de"):
        lines = (SAMPLE / f"test.{side}").read_text("utf-8").split("\n")
        for name, some in (("valid", lines[:12]), ("test", lines[12:20])):
            (tmp_path / f"{name}.{side}").write_text("".join(line + "\n" for line in some), "utf-8")
    names = {"valid_source_file": "valid.en", "valid_target_file": "valid.de"}
    names |= {"source_file": "test.en", "target_file": "test.de"}
    return [part for name, file in names.items() for part in (f"--{name}", str(tmp_path / file))]


def test_the_command(either_repository, sample_tokenizer, files, tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 40}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    config = MarianConfig(vocab_size=len(sample_tokenizer), **sizes, **heads, **ids)
    teacher = tmp_path / "teacher"
    MarianMTModel(config).save_pretrained(teacher)
    sample_tokenizer.save_pretrained(teacher)
    out = tmp_path / "out"
    paths = {"output_folder": out, "results_file": out / "results.json", "figure_file": out / "figure.png"}
    options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    arguments = ["--model", str(either_repository), *files, *options, "--teacher", str(teacher), "--batch_size", "5"]
    result = calibrate.main(arguments)
    assert json.loads((out / "results.json").read_text()) == result and (out / "figure.png").stat().st_size > 1000
    calibration = Calibration.load(out / FILE)
    assert calibration.weights_fingerprint == folder_weights_fingerprint(either_repository)
    assert calibration.threshold == result["uncertain"]["threshold"]
    for measured in (result, result["teacher"]):
        assert measured["num_words"] > 0 and 0 <= measured["wrong_share"] <= 1 and 0 <= measured["error"] <= 1
    with pytest.raises(FileExistsError, match="--overwrite"):
        calibrate.main(arguments)
    with pytest.raises(ValueError, match="batch_size is 0"):
        calibrate.main([*arguments[:-1], "0"])
    assert LvnarForConditionalGeneration.from_pretrained(either_repository).calibration is None
