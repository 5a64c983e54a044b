"""Shortlists of the vocabulary: counted by hand, exact at full size, and run whole on a tiny model."""

import json

import pytest
import torch

from training import shortlist, tables
from training.shortlist import DecoderStates, association, low_rank, measure_lexical, measure_screened

SIZE, VOCAB = 12, 30


@pytest.fixture
def batch():
    """Five positions of two sentences."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(rows, SIZE, generator=generator) for rows in (5, VOCAB))
    logits = states @ weight.T
    logits[:, 0] = float("-inf")
    return DecoderStates(torch.tensor([[3, 4], [5, 0]]), torch.tensor([0, 0, 0, 1, 1]), states, logits), weight


def test_association_is_dice():
    pairs = [([3, 4, 3], [5]), ([3], [5, 6]), ([4], [6])]
    coefficients = association(pairs, 6, 7)
    assert coefficients[3, 5] == 1.0  # twice, always together
    assert coefficients[3, 6] == 0.5 and coefficients[4, 5] == 0.5 and coefficients[4, 6] == 0.5
    assert coefficients[5].sum() == 0


def test_lexical_misses_are_counted_by_sentence(batch):
    states, _ = batch
    best = states.logits.argmax(-1)
    candidates = torch.full((VOCAB, 2), 29)
    candidates[3, 0] = best[0]
    allowed_first, allowed_second = {29, 1, int(best[0])}, {29, 1}
    expected = sum(int(token) not in allowed_first for token in best[:3])
    expected += sum(int(token) not in allowed_second for token in best[3:])
    result = measure_lexical([states], candidates, torch.tensor([1]))
    assert result["missed"] == expected / 5 and 0 < expected < 5
    assert result["mean_size"] == (len(allowed_first) + 2) / 2
    assert result["mean_size_of_batches"] == len(allowed_first | allowed_second)
    everything = torch.arange(VOCAB).expand(VOCAB, -1)
    assert measure_lexical([states], everything, torch.tensor([1]))["missed"] == 0


def test_screening_is_exact_at_full_rank_and_certain_is_never_missed(batch):
    states, weight = batch
    calibration = torch.randn(100, SIZE, generator=torch.Generator().manual_seed(1))
    tokens, reduction = low_rank(weight, calibration, SIZE)
    torch.testing.assert_close(tokens @ reduction, weight, atol=1e-4, rtol=1e-4)
    assert measure_screened([states], weight, calibration, SIZE, 2) == {"missed": 0.0, "certain": 1.0}
    narrow = measure_screened([states], weight, calibration, 2, 2)
    assert narrow["missed"] > 0 and narrow["missed"] + narrow["certain"] <= 1


def test_low_rank_is_nearest_on_the_states():
    """Of all products of that rank; so better there than the one that is nearest to the weight itself."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(VOCAB, SIZE, generator=generator)
    states = torch.randn(200, SIZE, generator=generator) * torch.linspace(0.1, 3, SIZE)
    tokens, reduction = low_rank(weight, states, 4)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    plain = (left[:, :4] * values[:4]) @ right[:4]
    error, plain_error = ((states @ (weight - other).T).norm() for other in (tokens @ reduction, plain))
    assert error < plain_error


def test_the_command(tiny_repository, sample_texts, tmp_path):
    files = {}
    for side, texts in zip(("source", "target"), sample_texts, strict=True):
        for split, lines in (("train", texts[40:]), ("valid", texts[:40])):
            files[f"{split}_{side}_files"] = tmp_path / f"{split}.{side}"
            files[f"{split}_{side}_files"].write_text("".join(line + "\n" for line in lines), "utf-8")
    named = {"source_language": "en", "target_language": "de", **files, "model": tiny_repository}
    named |= {"output_file": tmp_path / "shortlist.json", "num_frequent": 20, "num_candidates": 4}
    flags = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    result = shortlist.main(flags)
    assert json.loads((tmp_path / "shortlist.json").read_text()) == json.loads(json.dumps(result))
    assert result["num_sentences"] == 40 and result["num_positions"] > 200
    (lexical,) = result["lexical"].values()
    assert 0 < lexical["missed"] < 1 and 20 < lexical["mean_size"] < lexical["mean_size_of_batches"] < 500
    assert set(result["screened"]) == {4, 8, 16}
    assert result["screened"][16]["missed"] <= result["screened"][4]["missed"]
    assert "| screened: rank | missed | certain not to be missed |" in tables.shortlist_table(tmp_path)
    with pytest.raises(FileExistsError, match="--overwrite"):
        shortlist.main(flags)
