"""Candidates, the beam search of CTC, and the choice among them, against brute force and one by one."""

import copy
import itertools
import math
import sys
from collections import defaultdict

import pytest
import sacrebleu
import torch
from conftest import ROOT, make_batch, make_ctc_model, make_model, tiny_config, tokens_of
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from lvnar_hf.ctc_beam_lvnar import BeamOptions
from lvnar_hf.ctc_lvnar import IMPOSSIBLE, ctc_cell_mask
from lvnar_hf.generation_lvnar import LvnarGenerateOutput, LvnarGenerationMixin
from lvnar_hf.language_models import KenlmModel
from lvnar_hf.loading import load_model, load_tokenizer
from lvnar_hf.refinement_lvnar import translate_in_parts
from lvnar_hf.search_lvnar import beam_search, consensus, lower_bounds, rescorer_log_probs, search
from lvnar_hf.search_options_lvnar import SearchOptions

LENGTHS = [(7, 5), (3, 4), (9, 6), (1, 2)]
RETURNED = {"num_return_candidates": 30, "return_dict_in_generate": True}


class _Bigrams:
    """A language model of which every number is made up; its state is the last token."""

    def start(self):
        return 0

    def extend(self, state, token_id):
        return token_id, -1.0 - ((3 * state + token_id) % 5) / 2


def _spelt(logits: torch.Tensor, options: BeamOptions) -> dict[tuple[int, ...], float]:
    """What each translation is worth that the cells (T, vocab_size) can spell, over all alignments; blank is 0."""
    log_probs = logits.log_softmax(-1).tolist()
    alignments = defaultdict(list)
    for cells in itertools.product(range(logits.shape[1]), repeat=len(log_probs)):
        tokens = tuple(token for token, _ in itertools.groupby(cells) if token)
        alignments[tokens].append(sum(row[cell] for row, cell in zip(log_probs, cells, strict=True)))
    worth = {tokens: torch.tensor(of).logsumexp(0).item() for tokens, of in alignments.items()}
    for tokens in worth:
        worth[tokens] += options.token_bonus * len(tokens)
        if options.language_model is not None:
            for before, token in zip((0, *tokens), tokens, strict=False):
                worth[tokens] += options.language_model_weight * options.language_model.extend(before, token)[1]
    return worth


@pytest.mark.parametrize(
    "options",
    [
        BeamOptions(400, min_probability=0.0),
        BeamOptions(400, 0.7, min_probability=0.0),
        BeamOptions(400, 0.2, _Bigrams(), 0.6, min_probability=0.0),
    ],
    ids=["plain", "bonus", "language model"],
)
def test_a_beam_that_holds_all_gives_what_all_alignments_give(options):
    torch.manual_seed(3)
    for num_cells in ([4, 1, 3], [2, 5, 5]):
        mask = (torch.arange(max(num_cells)) < torch.tensor(num_cells)[:, None]).long()
        logits = 2 * torch.randn(3, max(num_cells), 4)
        sequences, scores = beam_search(logits, mask, 0, options)
        for row, cells in enumerate(num_cells):
            expected = _spelt(logits[row, :cells], options)
            found = {
                tuple(filter(None, ids)): score
                for ids, score in zip(sequences[row].tolist(), scores[row].tolist(), strict=True)
                if score > IMPOSSIBLE / 2
            }
            assert found == pytest.approx(expected, abs=1e-4)
            assert list(found) == sorted(found, key=found.__getitem__, reverse=True)


def test_an_n_gram_model_of_kenlm(tmp_path, sample_tokenizer):
    kenlm = pytest.importorskip("kenlm", reason="it is built from source: pip install kenlm")
    subwords = [sample_tokenizer.target_backend_tokenizer.id_to_token(token) for token in (7, 8)]
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n-2\t<unk>\n-9\t<s>\t-0.5\n-1\t</s>\n"
        f"-0.6\t{subwords[0]}\t-0.25\n-0.7\t{subwords[1]}\t-0.1\n\n"
        f"\\2-grams:\n-0.2\t{subwords[0]} {subwords[1]}\n\n\\end\\\n"
    )
    model = KenlmModel(tmp_path / "lm.arpa", sample_tokenizer)
    state, first = model.extend(model.start(), 7)
    after, second = model.extend(state, 8)
    _, end = model.extend(after, 1)
    assert [first, second, end] == pytest.approx([x * math.log(10) for x in (-0.5 - 0.6, -0.2, -0.1 - 1)], rel=1e-5)
    assert model.extend(state, 9)[1] == pytest.approx((-0.25 - 2) * math.log(10), rel=1e-5)
    (tmp_path / "broken.arpa").write_text("none")
    with pytest.raises(ValueError, match=r"broken\.arpa is not a language model of kenlm's"):
        KenlmModel(tmp_path / "broken.arpa", sample_tokenizer)
    assert kenlm.Model(str(tmp_path / "lm.arpa")).order == 2


def test_a_language_model_that_is_not_there(tmp_path, sample_tokenizer, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no language model .*lm\.arpa"):
        KenlmModel(tmp_path / "lm.arpa", sample_tokenizer)
    (tmp_path / "lm.arpa").touch()
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ImportError, match=r"lvnar-hf\[lm\]"):
        KenlmModel(tmp_path / "lm.arpa", sample_tokenizer)


def test_a_beam_without_a_token_that_may_follow_still_repeats_and_merges():
    # One token a cell may begin a prefix; the last token's repetition is another one.
    logits = torch.tensor([[[0.0, 5.0, 0.0], [0.0, 4.0, 5.0], [5.0, 0.0, 0.0]]])
    sequences, scores = beam_search(logits, torch.ones(1, 3).long(), 0, BeamOptions(9, tokens_per_cell=1))
    found = {
        tuple(filter(None, ids)): score
        for ids, score in zip(sequences[0].tolist(), scores[0].tolist(), strict=True)
        if score > IMPOSSIBLE / 2
    }
    expected = _spelt(logits[0], BeamOptions())
    assert found[(1, 2)] == pytest.approx(expected[(1, 2)], abs=0.02)
    assert found[(1,)] == pytest.approx(expected[(1,)], abs=0.02)


def test_a_beam_that_finds_nothing_but_blanks_gives_ids():
    sequences, _ = beam_search(torch.tensor([[[90.0, 0.0, 0.0]]]), torch.ones(1, 1).long(), 0, BeamOptions(1))
    assert sequences.shape == (1, 1, 0) and sequences.dtype == torch.long  # a rescorer looks them up


def test_a_beam_does_not_depend_on_the_batch():
    torch.manual_seed(1)
    logits, mask = torch.randn(3, 12, 30), (torch.arange(12) < torch.tensor([[12], [5], [8]])).long()
    sequences, scores = beam_search(logits, mask, 0, BeamOptions(6))
    for row, cells in enumerate([12, 5, 8]):
        alone, its_scores = beam_search(logits[row : row + 1, :cells], mask[row : row + 1, :cells], 0, BeamOptions(6))
        assert tokens_of(sequences[row]) == tokens_of(alone[0])
        torch.testing.assert_close(scores[row], its_scores[0])


@pytest.fixture(scope="module", params=["length", "ctc"])
def model(request):
    if request.param == "ctc":
        return make_ctc_model(), {"num_latent_candidates": 5, "latent_noise_scale": 1.5, "beam_size": 3}
    return make_model(tiny_config()), {
        "num_latent_candidates": 4,
        "latent_noise_scale": 1.5,
        "num_length_candidates": 2,
    }


def _inputs(model):
    batch = make_batch(model.config, LENGTHS)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("score", ["bound", "elbo"])
def test_a_sentence_has_the_same_candidates_in_any_batch(model, num_steps, score):
    model, options = model
    options = {**options, "candidate_score": score, "num_refinement_steps": num_steps, "num_return_candidates": 3}
    inputs = _inputs(model)
    together = model.generate(**inputs, **options, return_dict_in_generate=True)
    torch.testing.assert_close(together.candidates[:, 0, : together.sequences.shape[1]], together.sequences)
    assert (together.candidate_scores.diff(dim=1).nan_to_num(0.0) <= 0).all()
    for row, (length, _) in enumerate(LENGTHS):
        alone = model.generate(inputs["input_ids"][row : row + 1, :length], **options, return_dict_in_generate=True)
        assert tokens_of(together.candidates[row]) == tokens_of(alone.candidates[0])
        torch.testing.assert_close(together.candidate_scores[row], alone.candidate_scores[0], atol=1e-3, rtol=1e-4)
        assert len({tuple(ids) for ids in tokens_of(alone.candidates[0]) if ids}) == sum(
            bool(ids) for ids in tokens_of(alone.candidates[0])
        )
    in_parts = translate_in_parts(
        search,
        model,
        **inputs,
        options=model._decoding_options(None, {**options, "return_dict_in_generate": True}),
        max_positions=12,
    )
    assert [tokens_of(of) for of in in_parts.candidates] == [tokens_of(of) for of in together.candidates]


def test_candidates_without_noise_are_the_one_translation(model):
    model, _ = model
    inputs = _inputs(model)
    for num_steps in (0, 2):
        plain = model.generate(**inputs, num_refinement_steps=num_steps)
        found = model.generate(
            **inputs,
            num_refinement_steps=num_steps,
            num_latent_candidates=3,
            latent_noise_scale=0.0,
            num_return_candidates=3,
            return_dict_in_generate=True,
        )
        assert tokens_of(found.sequences) == tokens_of(plain)
        assert found.candidate_scores[:, 1:].eq(-math.inf).all() and found.candidates[:, 1:].eq(0).all()


def test_more_candidates_hold_the_fewer_and_score_no_worse(model):
    model, options = model
    options.pop("beam_size", None)
    few, many = (
        model.generate(
            **_inputs(model),
            **{**options, "latent_noise_scale": 4.0, "num_latent_candidates": number, "num_return_candidates": 9},
            return_dict_in_generate=True,
        )
        for number in (3, 9)
    )
    assert (many.candidate_scores[:, 0] >= few.candidate_scores[:, 0]).all()
    assert (many.candidate_scores[:, 0] > few.candidate_scores[:, 0]).any()
    other_seed = model.generate(
        **_inputs(model),
        **{**options, "latent_noise_scale": 4.0, "num_latent_candidates": 3, "num_return_candidates": 9},
        search_seed=7,
        return_dict_in_generate=True,
    )
    assert [tokens_of(of) for of in other_seed.candidates] != [tokens_of(of) for of in few.candidates]


def test_the_bonus_of_a_token_is_added_to_the_bound(model):
    model, options = model
    scores = [
        model.generate(**_inputs(model), **{**options, "token_bonus": bonus, "candidate_score": "bound"}, **RETURNED)
        for bonus in (0.0, 3.0)
    ]
    plain, longer = (
        {
            (row, tuple(ids)): score
            for row in range(4)
            for ids, score in zip(found.candidates[row].tolist(), found.candidate_scores[row].tolist(), strict=True)
            if any(ids)
        }
        for found in scores
    )
    shared = {(row, tuple(filter(None, ids))): score for (row, ids), score in plain.items()}
    compared = 0
    for (row, ids), score in longer.items():
        tokens = tuple(filter(None, ids))
        if (row, tokens) in shared:
            assert score == pytest.approx(shared[row, tokens] + 3.0 * len(tokens), abs=1e-2)
            compared += 1
    assert compared > 4


def test_length_candidates_are_the_likeliest_lengths():
    model = make_model(tiny_config())
    inputs = _inputs(model)
    source = model.encode(**inputs)
    limits = inputs["attention_mask"].sum(-1, keepdim=True) + torch.arange(41) - 20
    logits = model.predict_length(source, source.prior_means).masked_fill((limits < 1) | (limits > 40), -math.inf)
    expected = limits.gather(1, logits.topk(4).indices)
    found = model.generate(
        **inputs, num_refinement_steps=2, num_length_candidates=4, num_return_candidates=4, return_dict_in_generate=True
    )
    for row, candidates in enumerate(found.candidates):
        assert {len(ids) for ids in tokens_of(candidates)} == set(expected[row].tolist())


def test_lower_bounds_are_those_of_the_literal_terms(model):
    model, _ = model
    is_ctc = model.config.alignment == "ctc"
    batch = make_batch(model.config, LENGTHS if not is_ctc else [(7, 5), (3, 4), (9, 6), (2, 2)])
    labels, target_mask = batch["labels"], (batch["labels"] != -100).long()
    source = model.encode(batch["input_ids"], batch["attention_mask"])
    targets = labels.masked_fill(labels == -100, 0)
    of_mean = lower_bounds(model, source, targets, target_mask)
    sampled = lower_bounds(model, source, targets, target_mask, num_samples=3, seed=5)
    noise = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(5))
    for row in range(len(labels)):
        length, target_length = int(batch["attention_mask"][row].sum()), int(target_mask[row].sum())
        ids, y = batch["input_ids"][row : row + 1, :length], targets[row : row + 1, :target_length]
        alone = model.encode(ids, torch.ones_like(ids))
        q_mean, q_std = model.infer_posterior(alone, y, torch.ones_like(y))
        prior = torch.distributions.Normal(alone.prior_means, alone.prior_stds)
        posterior = torch.distributions.Normal(q_mean, q_std)

        def log_likelihood(z, alone=alone, y=y, ids=ids):
            if is_ctc:
                cells = ctc_cell_mask(torch.ones_like(ids), model.config.upsampling_ratio)
                log_probs = model.decode(alone, z, cells).log_softmax(-1).transpose(0, 1)
                sizes = torch.tensor([len(log_probs)]), torch.tensor([y.shape[1]])
                return -torch.nn.functional.ctc_loss(log_probs, y, *sizes, blank=0, reduction="sum")
            log_probs = model.decode(alone, z, torch.ones_like(y)).log_softmax(-1).gather(-1, y[..., None]).sum()
            of_length = model.predict_length(alone, z).log_softmax(-1)[0, y.shape[1] - ids.shape[1] + 20]
            return log_probs + of_length

        torch.testing.assert_close(
            of_mean[row], log_likelihood(q_mean) + prior.log_prob(q_mean).sum(), atol=2e-3, rtol=1e-4
        )
        kl = torch.distributions.kl_divergence(posterior, prior).sum()
        likelihoods = [log_likelihood(q_mean + e[None, :length] * q_std) for e in noise]
        torch.testing.assert_close(sampled[row], torch.stack(likelihoods).mean() - kl, atol=2e-3, rtol=1e-4)


@pytest.fixture(scope="module")
def rescorer():
    torch.manual_seed(4)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "init_std": 0.5}
    return MarianMTModel(
        MarianConfig(vocab_size=61, pad_token_id=0, eos_token_id=1, decoder_start_token_id=60, **sizes)
    ).eval()


def test_the_rescorers_score_is_its_own_loss_and_decides(rescorer):
    model = make_ctc_model()
    inputs = _inputs(model)
    found = model.generate(
        **inputs, beam_size=4, rescorer=rescorer, num_return_candidates=4, return_dict_in_generate=True
    )
    for row, candidates in enumerate(tokens_of(of) for of in found.candidates):
        ids = inputs["input_ids"][row : row + 1, : LENGTHS[row][0]]
        losses = [-rescorer(input_ids=ids, labels=torch.tensor([y])).loss.item() for y in candidates if y]
        assert losses == pytest.approx(found.candidate_scores[row].tolist()[: len(losses)], abs=1e-4)
    states = rescorer.get_encoder()(**inputs)[0]
    targets = torch.tensor([[5, 6, 1, 0]] * 4)
    log_probs = rescorer_log_probs(rescorer, states, inputs["attention_mask"], targets, (targets != 0).long())
    expected = [
        -3 * rescorer(input_ids=inputs["input_ids"][row : row + 1, :length], labels=targets[:1, :3]).loss
        for row, (length, _) in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(log_probs, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_consensus_is_the_mean_chrf_to_the_others():
    texts = ["ein Haus", "das Haus", "ein Baum", "ja"]
    scores = consensus(torch.tensor([0, 0, 0, 1]), texts)
    chrf = sacrebleu.CHRF().sentence_score
    assert scores[1].item() == pytest.approx((chrf(texts[1], [texts[0]]).score + chrf(texts[1], [texts[2]]).score) / 2)
    assert scores[3] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_latent_candidates": 0}, "num_latent_candidates is 0; it must be a whole number of at least 1"),
        ({"num_latent_candidates": 2.5}, "num_latent_candidates is 2.5"),
        ({"num_latent_candidates": 2, "latent_noise_scale": -1}, "latent_noise_scale is -1; it must be a number"),
        ({"num_latent_candidates": 2, "candidate_score": "best"}, "must be one of beam, bound, elbo"),
        ({"num_latent_candidates": 2, "candidate_score": "rescorer"}, "needs rescorer="),
        ({"num_latent_candidates": 2, "candidate_score": "beam"}, "needs beam_size"),
        ({"num_latent_candidates": 2, "candidate_score": "consensus"}, "needs tokenizer="),
        ({"num_latent_candidates": 2, "language_model": _Bigrams()}, "language_model is for the beam search"),
        ({"num_latent_candidates": 2, "num_return_candidates": 2}, "needs return_dict_in_generate"),
        ({"num_latent_candidates": 2, "rescorer": torch.nn.Linear(1, 1)}, "rescorer is a Linear"),
        ({"num_return_candidates": 2}, "num_return_candidates needs candidates"),
        ({"search_seed": 2}, "search_seed without candidates"),
        ({"num_length_candidates": 2}, "num_length_candidates is for alignment 'length'"),
        (
            {"beam_size": 2, "output_scores": True, "return_dict_in_generate": True},
            "output_scores and output_confidences are of one translation",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(options, message):
    model = make_ctc_model()
    with pytest.raises(ValueError, match=message):
        model.generate(**_inputs(model), **options)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_numbers_that_are_not_finite_are_refused(model, num_steps):
    model, options = model
    model = copy.deepcopy(model)
    decode, calls = model.decode, []

    def broken(source, latents, mask):
        calls.append(mask)
        return decode(source, latents, mask) * (float("nan") if len(calls) > num_steps else 1.0)

    model.decode = broken
    with pytest.raises(ValueError, match="values that are not finite"):
        model.generate(**_inputs(model), **options, num_refinement_steps=num_steps)
    del model.decode
    model.infer_posterior = lambda source, ids, mask: (source.prior_means * float("nan"), source.prior_stds)
    with pytest.raises(ValueError, match="values that are not finite"):
        model.generate(**_inputs(model), **options, num_refinement_steps=num_steps, candidate_score="bound")


def test_a_rescorer_of_a_smaller_vocabulary_is_refused(rescorer):
    model = make_ctc_model(vocab_size=62)
    with pytest.raises(ValueError, match="The rescorer knows 61 target ids, and this model says 62"):
        model.generate(**_inputs(model), beam_size=2, rescorer=rescorer)


def test_a_beam_is_for_cells_and_a_search_for_the_model(tiny_model):
    with pytest.raises(ValueError, match="beam_size is for alignment 'ctc'"):
        tiny_model.generate(**_inputs(tiny_model), beam_size=2)
    tiny_model.can_search = False  # as an engine's
    with pytest.raises(ValueError, match="gives one translation: candidates need the PyTorch model"):
        tiny_model.generate(**_inputs(tiny_model), num_latent_candidates=2)
    assert not SearchOptions().is_asked and SearchOptions(beam_size=2).score == "beam"


def test_a_stranger_cannot_store_a_search(tiny_model):
    tiny_model.generation_config.num_latent_candidates = 10**9
    with pytest.raises(ValueError, match="generate does not know num_latent_candidates=1000000000"):
        tiny_model.generate(**_inputs(tiny_model))


def test_the_shipped_models_candidates_are_texts():
    folder = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    inputs = tokenizer(["Where is the nearest bus stop?", "Hello."], padding=True, return_tensors="pt")
    found = model.generate(
        **inputs, tokenizer=tokenizer, beam_size=8, num_return_candidates=3, return_dict_in_generate=True
    )
    texts = [tokenizer.batch_decode(of, skip_special_tokens=True) for of in found.candidates]
    assert any("Bushaltestelle" in text for text in texts[0]) and texts[1][0] == "Hallo!"


class _Timed(LvnarGenerationMixin):
    """By its own clock 10 ms for a pass, for each step, and for each candidate beside the first."""

    can_search = True
    device = torch.device("cpu")

    def __init__(self, clock):
        self.config, self.clock = tiny_config(alignment="ctc"), clock
        self.generation_config = GenerationConfig()

    def _refine(self, input_ids, attention_mask, options):
        self.clock[0] += 0.01 * (1 + options.num_refinement_steps + options.search.num_candidates - 1)
        return LvnarGenerateOutput(sequences=input_ids)


@pytest.mark.parametrize(
    ("max_ms", "steps", "beam", "latents", "taken"),
    [
        (1, 0, 1, 1, 10),
        (25, 1, 1, 1, 20),
        (55, 2, 1, 1, 30),
        (61, 2, 2, 2, 60),
        (181, 2, 4, 2, 100),
        (10**6, 2, 8, 4, 340),
    ],
)
def test_as_much_as_the_time_allows(monkeypatch, max_ms, steps, beam, latents, taken):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    engine = _Timed(clock)
    asked = {"num_refinement_steps": 2, "beam_size": 8, "num_latent_candidates": 4}
    plan = engine.generate(torch.tensor([[5, 6, 1]]), **asked, max_ms=max_ms, return_dict_in_generate=True).time_plan
    assert plan == {
        **{"num_refinement_steps": steps, "beam_size": beam, "num_latent_candidates": latents},
        **{"num_length_candidates": 1, "expected_ms": pytest.approx(taken), "taken_ms": pytest.approx(taken)},
    }
    engine.measure_costs([3, 4], **asked)
    before = clock[0]  # from here on nothing is measured
    engine.generate(torch.tensor([[5, 6, 1, 1]]), **asked, max_ms=max_ms)
    assert clock[0] - before == pytest.approx(0.001 * taken)
    with pytest.raises(ValueError, match="max_ms is 0; it must be a number above 0"):
        engine.generate(torch.tensor([[5, 6, 1]]), max_ms=0)


def test_a_budget_changes_how_much_is_done_and_nothing_else():
    model = make_ctc_model()
    options = {"num_refinement_steps": 2, "beam_size": 4, "num_latent_candidates": 3, "return_dict_in_generate": True}
    inputs = _inputs(model)
    whole, budgeted = (model.generate(**inputs, **options, **extra) for extra in ({}, {"max_ms": 1e9}))
    assert tokens_of(whole.sequences) == tokens_of(budgeted.sequences)
    assert budgeted.time_plan["beam_size"] == 4 and budgeted.time_plan["num_latent_candidates"] == 3
    least = model.generate(**inputs, **options, max_ms=1e-6)
    assert tokens_of(least.sequences) == tokens_of(model.generate(**inputs, num_refinement_steps=0))
    assert least.time_plan["num_refinement_steps"] == 0 < least.time_plan["taken_ms"]


def test_real_calls_correct_the_costs(monkeypatch):
    """Nearly all calls keep to the time, whatever was measured; and what was too dear once is tried again."""
    generator, clock, speed = torch.Generator().manual_seed(0), [0.0], [1.0]

    class Uneven(_Timed):
        def _refine(self, input_ids, attention_mask, options):
            before = clock[0]
            output = super()._refine(input_ids, attention_mask, options)
            noise = float(torch.rand(1, generator=generator))
            clock[0] = before + (clock[0] - before) * (1 + noise**4) * speed[0]
            return output

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    engine = Uneven(clock)

    def call() -> dict:
        ids = torch.tensor([[5, 6, 1]])
        return engine.generate(ids, num_refinement_steps=3, max_ms=60, return_dict_in_generate=True).time_plan

    engine.measure_costs([3], num_refinement_steps=3)
    speed[0] = 1.3  # than when it was measured
    taken = [call()["taken_ms"] for _ in range(1000)]
    assert sum(ms > 60 for ms in taken[200:]) < 0.06 * 800
    assert sum(taken) / 1000 > 25  # of the rung that keeps to it, not of a lower one
    speed[0] = 0.5
    assert max(call()["num_refinement_steps"] for _ in range(2000)) == 3
