"""Shortlists of the vocabulary: made, stored, and used by ONNX Runtime without losing a token in silence."""

import json

import numpy as np
import pytest
import torch
from conftest import collapsed, make_batch, make_ctc_model, make_model, tiny_config, tokens_of
from safetensors.torch import save_file

from lvnar_hf.engines.graph import FILES
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_export import export_onnx
from lvnar_hf.engines.shortlist import FILE, Shortlist
from training import shortlist
from training.reports import tables
from training.speed.shortlists import (
    DecoderStates,
    aligned_counts,
    calibrate,
    confidences,
    decoder_states,
    make_shortlist,
    measure,
)

ONE_LAYER = {"num_prior_layers": 1, "num_posterior_decoder_layers": 1, "num_decoder_layers": 1}
CONFIG = tiny_config(target_vocab_size=45, tie_word_embeddings=False, carries_source_states=True, **ONE_LAYER)
LENGTHS = [(1 + (7 * row) % 39, 1) for row in range(40)]
WORST = torch.tensor(float("-inf"))


def random_shortlist(min_confidence: float, num_candidates: int = 2, config=CONFIG) -> Shortlist:
    generator = torch.Generator().manual_seed(3)
    size, num_targets = (config.vocab_size, num_candidates), config.decoder_vocab_size
    candidates = torch.randint(3, num_targets, size, generator=generator).int()
    return Shortlist(candidates, torch.tensor([3, 4], dtype=torch.int32), torch.tensor(min_confidence))


# alignment


def literal_model_1(pairs, num_iterations):
    """As Brown et al. write it, one token at a time: expected counts, by (source token, target token)."""
    probabilities, counts = {}, {}
    for _ in range(num_iterations):
        counts, totals = {}, {}
        for source, target in pairs:
            for t in target:
                weights = [probabilities.get((s, t), 1.0) for s in [None, *source]]
                for s, weight in zip([None, *source], weights, strict=True):
                    counts[s, t] = counts.get((s, t), 0.0) + weight / sum(weights)
                    totals[s] = totals.get(s, 0.0) + weight / sum(weights)
        probabilities = {(s, t): count / totals[s] for (s, t), count in counts.items()}
    return counts


def test_counts_are_those_of_ibm_model_1():
    generator = np.random.default_rng(0)
    pairs = [(generator.integers(0, 6, 4).tolist(), generator.integers(0, 5, n).tolist()) for n in (3, 1, 6, 2, 4)]
    for num_iterations in (1, 4):
        counts = aligned_counts(pairs, 6, 5, num_iterations)
        expected = literal_model_1(pairs, num_iterations)
        for source in range(6):
            for target in range(5):
                assert counts[source, target] == pytest.approx(expected.get((source, target), 0.0), abs=1e-6)


def test_a_word_that_stands_beside_everything_is_nobodys_translation():
    pairs = [([3, 9], [13, 19]), ([4, 9], [14, 19]), ([5, 9], [15, 19]), ([3, 4], [14, 13])]
    counts = aligned_counts(pairs, 10, 20, 10)
    assert [counts[token].argmax() for token in (3, 4, 5, 9)] == [13, 14, 15, 19]
    chosen = make_shortlist(counts, torch.tensor([19]), 3, pad_token_id=0)
    assert chosen.candidates[5].tolist()[0] == 15 and 19 not in chosen.candidates
    assert chosen.candidates[7].tolist() == [0, 0, 0], "a token that was never seen has none"


# the file


def test_candidates_are_those_of_the_sentence_once_each():
    tokens = Shortlist(
        torch.tensor([[7, 7], [9, 0], [8, 9], [4, 5]]).int(), torch.tensor([5, 6]).int(), torch.tensor(-1.0)
    )
    config = tiny_config(vocab_size=4, target_vocab_size=11, tie_word_embeddings=False)
    ids, mask = torch.tensor([[1, 2, 1], [3, 0, 0], [3, 2, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    assert tokens.candidates_of(ids, mask, config).tolist() == [[5, 6, 8, 9], [4, 5, 6, 0], [4, 5, 6, 0]]
    ctc = tiny_config(vocab_size=4, target_vocab_size=11, tie_word_embeddings=False, alignment="ctc")
    candidates = tokens.candidates_of(ids, mask, ctc)
    assert candidates.tolist() == [[0, 5, 6, 8, 9], [0, 4, 5, 6, 0], [0, 4, 5, 6, 0]], "blank is one of them"
    assert tokens.is_padding(candidates, ctc).tolist() == [[False] * 5, [False] * 4 + [True], [False] * 4 + [True]]
    nothing = Shortlist(torch.zeros(4, 1).int(), torch.zeros(0).int(), torch.tensor(-1.0))
    assert nothing.candidates_of(ids, mask, config).tolist() == [[0], [0], [0]]


def test_the_file_is_what_was_saved_and_another_models_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    saved = random_shortlist(-0.5)
    assert saved.save(tmp_path) == tmp_path / FILE
    loaded = Shortlist.from_pretrained(tmp_path, CONFIG)
    for name in ("candidates", "frequent", "min_confidence"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name)) and getattr(loaded, name).dtype != torch.int64
    with pytest.raises(ValueError, match="is for 60 source tokens; the model has 61"):
        Shortlist.load(tmp_path / FILE, tiny_config(vocab_size=61, target_vocab_size=45, tie_word_embeddings=False))
    with pytest.raises(ValueError, match="is no shortlist of target ids 0 to 39"):
        Shortlist.load(tmp_path / FILE, tiny_config(target_vocab_size=40, tie_word_embeddings=False))
    tensors = {"candidates": saved.candidates.float(), "frequent": saved.frequent, "min_confidence": WORST}
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"candidates is float32 .* it must be int32 with 2 dimensions"):
        Shortlist.load(tmp_path / FILE, CONFIG)
    save_file({"candidates": saved.candidates}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"shortlist\.safetensors is no shortlist: .*frequent"):
        Shortlist.load(tmp_path / FILE, CONFIG)
    (tmp_path / FILE).write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"shortlist\.safetensors is no shortlist"):
        Shortlist.load(tmp_path / FILE, CONFIG)
    with pytest.raises(FileNotFoundError, match=r"Make it, .*: python training/shortlist\.py --config RECIPE --model"):
        Shortlist.from_pretrained(tmp_path / "empty", CONFIG)


# the confidence


def test_misses_are_counted_by_hand():
    logits = torch.full((3, 45), -50.0)
    logits[0, [3, 10]] = torch.tensor([5.0, 1.0])  # 3 is tried: right
    logits[1, [3, 10]] = torch.tensor([1.0, 5.0])  # 10 is not: missed, though the list is sure of 3
    logits[2, [3, 4, 10]] = torch.tensor([1.0, 1.0, 5.0])  # missed, and the list is not sure
    states = DecoderStates(torch.tensor([[7]]), torch.tensor([[1]]), torch.zeros(3, dtype=torch.int64), logits)
    tried = Shortlist(torch.full((60, 1), 5).int(), torch.tensor([3, 4]).int(), torch.tensor(-0.1))
    values, is_missed, size = confidences(states, tried, CONFIG)
    assert is_missed.tolist() == [False, True, True] and size == 3
    torch.testing.assert_close(values.exp(), torch.tensor([1.0, 1.0, 0.5]), atol=1e-6, rtol=0)
    expected = {"missed_without_check": 2 / 3, "missed": 1 / 3, "whole_share": 1 / 3, "mean_size": 3.0}
    assert measure(tried, [states], CONFIG) == pytest.approx(expected)
    assert calibrate(tried, [states], CONFIG, 0.34).min_confidence == values.sort().values[1]


def test_with_ctc_blank_is_always_tried_once():
    config = tiny_config(target_vocab_size=45, tie_word_embeddings=False, alignment="ctc")
    logits = torch.full((3, 45), -50.0)
    logits[0, [0, 3]] = torch.tensor([5.0, 5.0])  # as likely as blank
    logits[1, [0, 10]] = torch.tensor([5.0, 1.0])  # blank
    logits[2, [0, 10]] = torch.tensor([1.0, 5.0])  # missed
    # The second sentence has one candidate less: what fills its place is not blank once more.
    states = DecoderStates(torch.tensor([[7], [8]]), torch.tensor([[1], [1]]), torch.tensor([1, 1, 0]), logits)
    candidates = torch.zeros(60, 2).int()
    candidates[7] = torch.tensor([5, 6])
    tried = Shortlist(candidates, torch.tensor([3, 4]).int(), torch.tensor(-0.1))
    values, is_missed, size = confidences(states, tried, config)
    torch.testing.assert_close(values.exp(), torch.tensor([0.5, 1.0, 1.0]), atol=1e-6, rtol=0)
    assert is_missed.tolist() == [False, False, True] and size == (4 + 1) + (2 + 1)


@pytest.fixture(scope="module", params=[pytest.param("length", marks=pytest.mark.thorough), "ctc"])
def model(request):
    if request.param == "ctc":
        return make_ctc_model(
            target_vocab_size=45, tie_word_embeddings=False, num_prior_layers=1, num_decoder_layers=1, seed=1
        )
    return make_model(CONFIG)


def spelt(rows, model):
    """What the decoder's positions say, [sentence][position], to tokens without padding."""
    if model.config.alignment == "ctc":
        return list(map(collapsed, rows))
    return [[token for token in row if token != 0] for row in rows]


@pytest.fixture(scope="module")
def graph(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    export_onnx(model, folder)
    return folder / FILES["float32"]


@pytest.mark.parametrize("num_steps", [0, 1, 3])  # with two vocabularies and an output projection of its own
def test_a_list_that_is_never_trusted_changes_nothing(model, graph, num_steps):
    options = {"num_refinement_steps": num_steps, "return_dict_in_generate": True, "remove_repetitions": False}
    inputs = {"input_ids": make_batch(CONFIG, LENGTHS)["input_ids"], **options}
    expected = model.generate(**inputs)
    for tokens in (None, random_shortlist(1.0)):  # no probability is more than 1
        output = LvnarOnnxModel(model.config, model.generation_config, graph, shortlist=tokens).generate(**inputs)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.num_steps_taken, expected.num_steps_taken)
        all_positions, whole = output.num_positions.tolist()
        assert all_positions == whole >= int((expected.sequences_per_step[0] != 0).sum())


def test_a_list_of_every_token_changes_nothing_and_needs_no_whole_vocabulary(model, graph):
    everything = Shortlist(torch.zeros(60, 1).int(), torch.arange(45).int(), WORST)
    inputs = {"input_ids": make_batch(CONFIG, LENGTHS)["input_ids"], "num_refinement_steps": 2}
    engine = LvnarOnnxModel(model.config, model.generation_config, graph, shortlist=everything)
    output = engine.generate(**inputs, return_dict_in_generate=True)
    assert torch.equal(output.sequences, model.generate(**inputs))
    assert output.num_positions[1] == 0 < output.num_positions[0]


def test_a_position_has_the_list_or_the_whole_vocabulary_by_its_confidence(model, graph):
    """One pass, against the same choice made here from all logits."""
    input_ids = make_batch(CONFIG, LENGTHS)["input_ids"]
    mask = (input_ids != 0).long()
    with torch.no_grad():
        source = model.encode(input_ids, mask)
        target_mask, _ = model.target_positions(source, source.prior_means)
        logits = model.decode(source, source.prior_means, target_mask)
    if model.config.alignment == "length":
        logits[..., 0] = float("-inf")
    tokens = random_shortlist(0.0, num_candidates=1)
    is_tried = torch.zeros(40, 45, dtype=torch.bool)
    is_tried.scatter_(1, tokens.candidates_of(input_ids, mask, model.config), True)
    tried = logits.masked_fill(~is_tried[:, None], float("-inf"))
    confidence = tried.amax(-1) - tried.logsumexp(-1)
    tokens = random_shortlist(float(confidence[target_mask.bool()].median()) + 1e-4, num_candidates=1)
    is_sure = confidence >= tokens.min_confidence
    lengths = target_mask.sum(-1).tolist()
    positions = torch.where(is_sure, tried.argmax(-1), logits.argmax(-1))
    expected, whole = (
        spelt([row[:length] for row, length in zip(rows.tolist(), lengths, strict=True)], model)
        for rows in (positions, logits.argmax(-1))
    )
    assert expected != whole
    engine = LvnarOnnxModel(model.config, model.generation_config, graph, shortlist=tokens)
    options = {"num_refinement_steps": 0, "return_dict_in_generate": True, "remove_repetitions": False}
    output = engine.generate(input_ids, **options)
    assert tokens_of(output.sequences) == expected
    num_positions, num_whole = output.num_positions.tolist()
    assert num_positions == target_mask.sum() and num_whole == (~is_sure & target_mask.bool()).sum()
    assert 0.4 < num_whole / num_positions < 0.6
    # In parts of other sizes, and alone, a sentence has the same tokens.
    for row in (0, 7, 39):
        assert tokens_of(engine.generate(input_ids[row : row + 1], **options).sequences) == [expected[row]]


@pytest.mark.parametrize("num_steps", [0, 1])
def test_states_are_those_of_a_refinement_step(model, num_steps):
    input_ids = make_batch(CONFIG, LENGTHS[:9])["input_ids"]
    states = decoder_states(model, input_ids, (input_ids != 0).long(), num_steps)
    output = model.generate(input_ids, num_refinement_steps=num_steps, remove_repetitions=False)
    rows = states.logits.argmax(-1).split(states.sentences.bincount().tolist())
    assert spelt([row.tolist() for row in rows], model) == tokens_of(output)


def test_the_command(either_repository, sample_texts, tmp_path):
    files = {}
    for side, texts in zip(("source", "target"), sample_texts, strict=True):
        for split, lines in (("train", texts[60:]), ("valid", texts[:60])):
            files[f"{split}_{side}_files"] = tmp_path / f"{split}.{side}"
            files[f"{split}_{side}_files"].write_text("".join(line + "\n" for line in lines), "utf-8")
    named = {"source_language": "en", "target_language": "de", **files, "model": either_repository}
    named |= {"results_file": tmp_path / "shortlist.json", "output_folder": tmp_path / "out"}
    named |= {"num_frequent": 20, "num_candidates": 4, "num_sentences": 50, "whole_share": 0.1}
    flags = [part for name, value in named.items() for part in (f"--{name}", str(value))]
    result = shortlist.main(flags)
    assert json.loads((tmp_path / "shortlist.json").read_text()) == result
    assert result["num_sentences"] == 25 and result["num_positions"] > 100 and result["num_pairs"] == 240
    rows = result["candidates"]
    assert list(rows) == ["4", "16", "32", "128"] and 20 < rows["4"]["mean_size"] < rows["32"]["mean_size"] < 500
    for row in rows.values():
        assert 0 < row["missed"] < row["missed_without_check"] < 1 and 0 < row["whole_share"] < 0.3
    model = make_model(tiny_config(vocab_size=500))
    stored = Shortlist.from_pretrained(tmp_path / "out", model.config)
    assert stored.candidates.shape == (500, 4) and len(stored.frequent) == 20 and stored.min_confidence < 0
    table = tables.shortlist_table(tmp_path)
    assert result["alignment"] == ("ctc" if "ctc" in either_repository.name else "length")
    assert f"{result['num_positions']:,} {'cells' if 'ctc' in either_repository.name else 'target positions'}" in table
    assert "| candidates a source token | tokens tried | missed without check | whole vocabulary | missed |" in table
    with pytest.raises(FileExistsError, match="--overwrite"):
        shortlist.main(flags)
    with pytest.raises(ValueError, match=r"whole_share is 1\.0; it must be at least 0 and less than 1"):
        shortlist.main([*flags, "--whole_share", "1.0"])
    del named["output_folder"]
    flags = [part for name, value in {**named, "model": "no/model"}.items() for part in (f"--{name}", str(value))]
    with pytest.raises(ValueError, match="no/model is no folder: give --output_folder"):
        shortlist.main(flags)
