"""The bounds from many samples: against the literal reference and a case worked out."""

import json
import math
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import SAMPLE, make_batch, make_model, tiny_config
from reference_lvnar import ReferenceLvnar, gaussian_log_density

from lvnar_hf.ctc_lvnar import ctc_cell_mask
from training import time_elbo
from training.quality import elbo as elbo_module
from training.quality.elbo import ELBO_PARTS, can_be_scored, elbo_of_sequences

LENGTHS = [(7, 9), (3, 4), (12, 5), (1, 1), (7, 7), (3, 6)]


def make_pairs(config, lengths=LENGTHS) -> tuple[list[list[int]], list[list[int]]]:
    batch = make_batch(config, lengths)
    sources = [[i for i in row.tolist() if i != config.pad_token_id] for row in batch["input_ids"]]
    return sources, [[i for i in row.tolist() if i != -100] for row in batch["labels"]]


def test_bounds_are_those_of_the_literal_reference(tiny_model):
    """Each sample through the paper's equations; the bounds from their parts by their definitions."""
    (source,), (target,) = make_pairs(tiny_model.config, [(4, 5)])
    num_samples = 3
    bounds = elbo_of_sequences(tiny_model, [source], [target], num_samples, seed=3)
    like = torch.zeros(1, len(source), tiny_model.config.latent_dim)
    noise = elbo_module._noise([source], num_samples, 3, like).double()[0]
    weights = {name: value.double() for name, value in tiny_model.state_dict().items()}
    samples = [ReferenceLvnar(weights, tiny_model.config).objective(source, target, list(eps)) for eps in noise]
    for name in ELBO_PARTS:
        expected = sum(float(getattr(sample, name)) for sample in samples) / num_samples
        assert float(bounds[name]) == pytest.approx(expected, rel=1e-4)
    log_weights = []
    for sample, eps in zip(samples, noise, strict=True):
        log_weight = -float(sample.token_nll) - float(sample.length_nll)
        for k in range(len(source)):
            mean, std = sample.posterior_means[k], sample.posterior_stds[k]
            z = mean + std * eps[k]
            log_weight += float(gaussian_log_density(z, sample.source.means[k], sample.source.stds[k]))
            log_weight -= float(gaussian_log_density(z, mean, std))
        log_weights.append(log_weight)
    expected = math.log(sum(map(math.exp, log_weights)) / num_samples)
    assert float(bounds["importance_weighted"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("upsampling_ratio", [2.0, 1.5])
def test_bounds_with_ctc_are_those_of_torchs_own_loss(upsampling_ratio):
    """Each sample by itself, its likelihood by `torch.nn.functional.ctc_loss`."""
    model = make_model(tiny_config(alignment="ctc", upsampling_ratio=upsampling_ratio, carries_source_states=True))
    sources, targets = make_pairs(model.config, [(4, 5), (7, 3), (6, 9)])
    targets[1] = [9, 9, 4]
    num_samples = 3
    bounds = elbo_of_sequences(model, sources, targets, num_samples, seed=3)
    assert set(bounds) == {"elbo", "token_nll", "kl", "importance_weighted"}
    for row, (source_ids, target_ids) in enumerate(zip(sources, targets, strict=True)):
        ids, labels = torch.tensor([source_ids]), torch.tensor([target_ids])
        with torch.no_grad():
            source = model.encode(ids, torch.ones_like(ids))
            means, stds = model.infer_posterior(source, labels, torch.ones_like(labels))
        prior, posterior = (
            torch.distributions.Normal(*pair) for pair in ((source.prior_means, source.prior_stds), (means, stds))
        )
        kl = float(torch.distributions.kl_divergence(posterior, prior).sum())
        nlls, log_weights = [], []
        for eps in elbo_module._noise([source_ids], num_samples, 3, means)[0]:
            z = means + stds * eps
            with torch.no_grad():
                logits = model.decode(source, z, ctc_cell_mask(torch.ones_like(ids), model.config.upsampling_ratio))
            num_cells = math.ceil(upsampling_ratio * len(source_ids))
            assert logits.shape[1] == num_cells
            log_probs = logits.double().log_softmax(-1).transpose(0, 1)
            nlls.append(float(F.ctc_loss(log_probs, labels, [num_cells], [len(target_ids)], reduction="sum")))
            log_weights.append(float((prior.log_prob(z) - posterior.log_prob(z)).sum()) - nlls[-1])
        nll = sum(nlls) / num_samples
        importance_weighted = math.log(sum(map(math.exp, log_weights)) / num_samples)
        expected = {"elbo": -nll - kl, "token_nll": nll, "kl": kl, "importance_weighted": importance_weighted}
        assert {name: float(values[row]) for name, values in bounds.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("alignment", ["length", "ctc"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("logits_at_once", [1, 2**23])
def test_neither_batch_nor_order_nor_chunks_change_a_sentence(monkeypatch, alignment, batch_size, logits_at_once):
    tiny_model = make_model(tiny_config(alignment=alignment))
    sources, targets = make_pairs(tiny_model.config)
    whole = elbo_of_sequences(tiny_model, sources, targets, 4, seed=1)
    monkeypatch.setattr(elbo_module, "LOGITS_AT_ONCE", logits_at_once)
    order = [4, 0, 5, 2, 1, 3]
    other = elbo_of_sequences(
        tiny_model, [sources[i] for i in order], [targets[i] for i in order], 4, seed=1, batch_size=batch_size
    )
    for name, values in whole.items():
        torch.testing.assert_close(other[name], values[order], atol=2e-4, rtol=1e-5)
    assert not torch.equal(elbo_of_sequences(tiny_model, sources, targets, 4, seed=2)["elbo"], whole["elbo"])


def test_two_vocabularies():
    model = make_model(tiny_config(target_vocab_size=45, tie_word_embeddings=False))
    sources, targets = make_pairs(model.config)
    bounds = elbo_of_sequences(model, sources, targets, 2, seed=1)
    torch.testing.assert_close(bounds["elbo"], -(bounds["token_nll"] + bounds["kl"] + bounds["length_nll"]))


def test_analytic_case():
    """A decoder and a length predictor that ignore z: the ELBO has no sampling noise, and the importance-weighted bound
    reaches log p(y, l_y | x) as the posterior's gap, the KL, is sampled away."""
    model = make_model(tiny_config())
    with torch.no_grad():
        for module in (model.decoder, model.length_predictor):
            for parameter in module.parameters():
                parameter.zero_()
    sources, targets = make_pairs(model.config)
    bounds = elbo_of_sequences(model, sources, targets, 3, seed=1)
    num_tokens = torch.tensor([len(ids) for ids in targets], dtype=torch.float64)
    torch.testing.assert_close(
        bounds["token_nll"], num_tokens * math.log(model.config.vocab_size), rtol=1e-5, atol=1e-4
    )
    num_lengths = 2 * model.config.max_length_offset + 1
    torch.testing.assert_close(
        bounds["length_nll"], torch.full_like(num_tokens, math.log(num_lengths)), rtol=1e-5, atol=1e-5
    )
    with torch.no_grad():  # the posterior is the prior
        for head in (model.prior.gaussian_head, model.posterior.gaussian_head):
            for parameter in head.parameters():
                parameter.zero_()
    bounds = elbo_of_sequences(model, sources, targets, 3, seed=1)
    log_likelihood = -num_tokens * math.log(model.config.vocab_size) - math.log(num_lengths)
    torch.testing.assert_close(bounds["elbo"], log_likelihood, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(bounds["importance_weighted"], log_likelihood, rtol=1e-5, atol=1e-3)


def test_more_samples_never_loosen_the_importance_weighted_bound_in_the_mean(tiny_model):
    sources, targets = make_pairs(tiny_model.config, [(4, 4)] * 40)
    means = []
    for num_samples in (1, 4, 16, 64):
        bounds = [elbo_of_sequences(tiny_model, sources, targets, num_samples, seed) for seed in range(5)]
        means.append(torch.stack([b["importance_weighted"] for b in bounds]).mean())
    assert means == sorted(means) and means[-1] > means[0] + 0.5
    elbo = torch.stack([elbo_of_sequences(tiny_model, sources, targets, 64, s)["elbo"] for s in range(5)]).mean()
    assert means[-1] > elbo


def test_many_samples_cost_less_than_separate_passes():
    """Sentence by sentence, 4 times at least on a small model; at full size see docs/EXPERIMENTS.md."""
    torch.manual_seed(0)
    model = make_model(tiny_config(hidden_size=64, intermediate_size=256, num_prior_layers=6, vocab_size=500))
    sources, targets = make_pairs(model.config, [(12, 12)] * 2)

    def separate() -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for source, target in zip(sources, targets, strict=True):
                for _ in range(20):
                    model(torch.tensor([source]), labels=torch.tensor([target]), generator=generator)

    def timed(work) -> float:
        work()
        times = []
        for _ in range(2):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    assert timed(separate) > 4 * timed(lambda: elbo_of_sequences(model, sources, targets, 20, seed=1))


def test_what_cannot_be_scored_is_refused(tiny_model):
    config = tiny_model.config
    assert can_be_scored(tiny_model, [5] * 3, [5] * 23) and not can_be_scored(tiny_model, [5] * 3, [5] * 24)
    assert not can_be_scored(tiny_model, [5] * (config.max_position_embeddings + 1), [5] * 30)
    assert not can_be_scored(tiny_model, [5], [])
    with pytest.raises(ValueError, match="2 sources, but 1 targets"):
        elbo_of_sequences(tiny_model, [[5], [6]], [[5]], 1, 1)
    with pytest.raises(ValueError, match="num_samples is 0"):
        elbo_of_sequences(tiny_model, [[5]], [[5]], 0, 1)
    with pytest.raises(ValueError, match="training mode"):
        elbo_of_sequences(tiny_model.train(), [[5]], [[5]], 1, 1)
    with pytest.raises(ValueError, match="differs from its source by 21"):
        elbo_of_sequences(tiny_model.eval(), [[5] * 3], [[5] * 24], 1, 1)


@pytest.mark.parametrize("upsampling_ratio", [1.0, 1.5, 2.0])
def test_with_ctc_what_fits_into_the_cells_can_be_scored(upsampling_ratio):
    model = make_model(tiny_config(alignment="ctc", upsampling_ratio=upsampling_ratio))
    source = [5] * 7
    num_cells = math.ceil(upsampling_ratio * 7)
    fitting = [[5 + i % 2 for i in range(num_cells)], [6] * (num_cells // 2), [6, 6, *range(5, 2 + num_cells)]]
    assert all(can_be_scored(model, source, target) for target in fitting)
    bounds = elbo_of_sequences(model, [source] * 3, fitting, 2, seed=1)
    assert bool((bounds["importance_weighted"] > -1e4).all())
    for target in ([*fitting[0], 7], [6] * (num_cells // 2 + 2), [6, 6, 6, *fitting[2]], []):
        assert not can_be_scored(model, source, target)
    assert not can_be_scored(model, [5] * 41, [5])
    with pytest.raises(ValueError, match=f"needs {num_cells + 1} cells"):
        elbo_of_sequences(model, [source], [[*fitting[0], 7]], 1, 1)


def test_the_gain_is_measured_by_a_command(either_repository, tmp_path):
    file = tmp_path / "out" / "speed.json"
    files = ["--source_file", str(SAMPLE / "test.en"), "--target_file", str(SAMPLE / "test.de")]
    arguments = ["--model", str(either_repository), *files, "--num_sentences", "12", "--output_file", str(file)]
    result = time_elbo.main([*arguments, "--num_samples", "3", "--num_repeats", "2"])
    assert json.loads(file.read_text()) == result and 0 < result["num_sentences"] <= 12
    for row in result["batch_sizes"].values():
        assert row["times_as_fast"] == 3 * row["seconds_one_pass"] / row["seconds_many_samples"]
    with pytest.raises(FileExistsError, match="--output_file"):
        time_elbo.main(arguments)
