"""The terms of the objective and the length transform, against other implementations and by hand."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from lvnar_hf.length_lvnar import LvnarLengthTransform
from lvnar_hf.losses_lvnar import (
    budgeted_kl,
    gaussian_kl,
    gaussian_log_density,
    kl_budget_at,
    length_nll,
    token_nll,
)

HALF_TYPES = [torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussians(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Means, and standard deviations from about 0.1 to about 10."""
    return randn(*shape, seed=seed), randn(*shape, seed=seed + 1).exp()


def mask_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[int(k < length) for k in range(max(lengths))] for length in lengths])


# Token NLL.


@pytest.fixture
def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Three sentences of 5, 2 and 3 tokens over 7 words."""
    labels = torch.tensor([[3, 0, 6, 6, 1], [4, 1, -100, -100, -100], [2, 5, 1, -100, -100]])
    return 3 * randn(3, 5, 7), labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_token_nll_is_cross_entropy(logits_and_labels, label_smoothing):
    """Both results, sentence by sentence; -100 costs nothing, smoothed or not."""
    logits, labels = logits_and_labels
    nll, smoothed = token_nll(logits, labels, label_smoothing)
    by_token = [
        F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=weight)
        for weight in (0.0, label_smoothing)
    ]
    torch.testing.assert_close(nll, by_token[0].sum(-1))
    torch.testing.assert_close(smoothed, by_token[1].sum(-1))


def test_token_nll_without_smoothing_by_default(logits_and_labels):
    nll, smoothed = token_nll(*logits_and_labels)
    assert torch.equal(nll, smoothed)


def test_token_nll_does_not_look_at_ignored_positions(logits_and_labels):
    """Neither value nor gradient."""
    logits, labels = logits_and_labels
    other = torch.where((labels == -100)[..., None], 100 * randn(3, 5, 7, seed=1), logits).requires_grad_()
    result = token_nll(other, labels, 0.1)
    for actual, expected in zip(result, token_nll(logits, labels, 0.1), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    sum(result).sum().backward()
    assert not other.grad[labels == -100].any()
    assert other.grad[labels != -100].any(-1).all()


def test_token_nll_of_uniform_logits():
    """log V a token, smoothed or not."""
    nll, smoothed = token_nll(torch.zeros(1, 4, 8), torch.tensor([[1, 2, 3, -100]]), 0.3)
    torch.testing.assert_close(nll, torch.tensor([3 * math.log(8)]))
    torch.testing.assert_close(smoothed, nll)


# KL and its budget.


def test_gaussian_kl_is_that_of_torch():
    q_means, q_stds = gaussians(3, 5, 4)
    p_means, p_stds = gaussians(3, 5, 4, seed=7)
    expected = kl_divergence(Normal(q_means, q_stds), Normal(p_means, p_stds)).sum(-1)
    mask = mask_of([5, 2, 3])
    kl = gaussian_kl(q_means, q_stds, p_means, p_stds, mask)
    assert kl.shape == (3, 5)
    torch.testing.assert_close(kl, expected * mask)


def test_gaussian_kl_is_of_the_posterior_from_the_prior():
    """By hand, both with mean 0: KL[N(0, 1) || N(0, 2²)] = ln 2 + 1/8 - 1/2; the other way round it is 3/2 - ln 2."""
    zero, one, two, mask = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), 2 * torch.ones(1, 1, 1), torch.ones(1, 1)
    torch.testing.assert_close(gaussian_kl(zero, one, zero, two, mask), torch.tensor([[math.log(2) + 1 / 8 - 1 / 2]]))
    torch.testing.assert_close(gaussian_kl(zero, two, zero, one, mask), torch.tensor([[3 / 2 - math.log(2)]]))


def test_gaussian_kl_ignores_padding():
    """Neither value nor gradient, whatever padding holds."""
    mask = mask_of([3, 1])
    q_means, q_stds = gaussians(2, 3, 2)
    p_means, p_stds = gaussians(2, 3, 2, seed=7)
    inputs = [q_means, q_stds, p_means, p_stds]
    expected = gaussian_kl(*inputs, mask)
    other = [torch.where(mask[..., None] == 0, 100.0, value).requires_grad_() for value in inputs]
    kl = gaussian_kl(*other, mask)
    assert torch.equal(kl, expected)
    assert not kl[mask == 0].any()
    kl.sum().backward()
    for value in other:
        assert not value.grad[mask == 0].any()
        assert value.grad[mask == 1].all()


def test_gaussian_kl_of_equal_gaussians_is_zero():
    means, stds = gaussians(2, 3, 4)
    torch.testing.assert_close(gaussian_kl(means, stds, means, stds, torch.ones(2, 3)), torch.zeros(2, 3))


def test_budgeted_kl_is_a_maximum_at_each_position():
    """Not over the sentence: 3.4 nats there do not make up for 0.4 at its first position."""
    kl = torch.tensor([[0.4, 2.0, 1.0], [0.1, 0.0, 0.0]])
    mask = mask_of([3, 1])
    torch.testing.assert_close(budgeted_kl(kl, 1.0, mask), torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(budgeted_kl(kl, 0.0, mask), kl)


def test_budgeted_kl_has_no_gradient_below_the_budget():
    kl = torch.tensor([[0.4, 2.0, 0.9, 5.0]], requires_grad=True)
    budgeted_kl(kl, 1.0, torch.tensor([[1, 1, 1, 0]])).sum().backward()
    assert kl.grad.tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("num_training_steps", [4, 100, 100_000])
def test_kl_budget_at_the_corners_of_its_schedule(num_training_steps):
    """b = 1 up to M/2, a line to 0 at M."""
    M = num_training_steps
    assert kl_budget_at(0, M) == 1.0
    assert kl_budget_at(M // 2 - 1, M) == 1.0
    assert kl_budget_at(M // 2, M) == 1.0
    assert kl_budget_at(M // 2 + 1, M) == pytest.approx(1 - 2 / M)
    assert kl_budget_at(3 * M // 4, M) == 0.5
    assert kl_budget_at(M, M) == 0.0


def test_kl_budget_at_an_odd_number_of_steps():
    """M = 5: M/2 = 2.5, so that b = (5 - 3) / 2.5 at s = 3."""
    assert [kl_budget_at(s, 5) for s in range(6)] == pytest.approx([1, 1, 1, 0.8, 0.4, 0])


def test_kl_budget_scales_with_its_start():
    assert kl_budget_at(10, 100, initial_budget=2.0) == 2.0
    assert kl_budget_at(75, 100, initial_budget=2.0) == 1.0
    assert kl_budget_at(75, 100, initial_budget=0.0) == 0.0


def test_kl_budget_falls_to_a_floor_that_stays():
    """From 1 to 0.2 in the second half, so by 0.2 each eighth of the run."""
    expected = [1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert [kl_budget_at(s, 8, final_budget=0.2) for s in range(9)] == pytest.approx(expected)
    assert [kl_budget_at(s / 8, 1.0, final_budget=0.2) for s in range(9)] == pytest.approx(expected)  # shares
    assert [kl_budget_at(s, 8, 0.25, 0.25) for s in range(9)] == [0.25] * 9


@pytest.mark.parametrize("step", [-1, 101])
def test_kl_budget_refuses_a_step_outside_training(step):
    with pytest.raises(ValueError, match=rf"step is {step}; it must be in \[0, 100\]"):
        kl_budget_at(step, 100)


# Length and log-density.


def test_length_nll_by_hand():
    """Offsets -2 to 2; the true ones are -2, 0, 2: the first, the middle and the last class."""
    probabilities = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.2, 0.1], [0.5, 0.1, 0.1, 0.1, 0.2]])
    result = length_nll(probabilities.log() + 3.0, torch.tensor([-2, 0, 2]))
    torch.testing.assert_close(result, -torch.tensor([0.1, 0.4, 0.2]).log())


def test_length_nll_is_cross_entropy():
    logits, offsets = randn(4, 101), torch.tensor([-50, 50, 0, 7])
    torch.testing.assert_close(length_nll(logits, offsets), F.cross_entropy(logits, offsets + 50, reduction="none"))


def test_gaussian_log_density_is_that_of_torch():
    means, stds = gaussians(3, 5, 4)
    values = 2 * randn(3, 5, 4, seed=9)
    torch.testing.assert_close(gaussian_log_density(values, means, stds), Normal(means, stds).log_prob(values))


# Half precision: the terms are computed in float32, from the very numbers that were given.


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_precision_gives_float32(dtype):
    labels = torch.tensor([[3, 1, -100], [2, 0, 1]])
    logits = randn(2, 3, 5).to(dtype)
    (q_means, q_stds), (p_means, p_stds) = ([t.to(dtype) for t in gaussians(2, 3, 4, seed=s)] for s in (0, 7))
    offsets, mask = torch.tensor([1, -2]), mask_of([3, 2])

    def terms(*tensors: torch.Tensor) -> list[torch.Tensor]:
        logits, q_means, q_stds, p_means, p_stds = tensors
        kl = gaussian_kl(q_means, q_stds, p_means, p_stds, mask)
        return [
            *token_nll(logits, labels, 0.1),
            kl,
            budgeted_kl(kl, 1.0, mask),
            length_nll(logits[:, 0], offsets),
            gaussian_log_density(q_means, p_means, p_stds),
        ]

    given = [logits, q_means, q_stds, p_means, p_stds]
    for actual, expected in zip(terms(*given), terms(*(t.float() for t in given)), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)


# Length transform (Eq. 6-8).


def length_transform(log_sigma: float) -> LvnarLengthTransform:
    module = LvnarLengthTransform()
    torch.nn.init.constant_(module.log_sigma, log_sigma)
    return module


def attention_weights(
    module: LvnarLengthTransform, source_lengths: list[int], target_lengths: list[int]
) -> torch.Tensor:
    """w_jk, (batch, longest target, longest source): what carries the unit vectors."""
    mask = mask_of(source_lengths)
    unit_vectors = torch.eye(mask.shape[1]).expand(len(mask), -1, -1)
    return module(unit_vectors, mask, torch.tensor(target_lengths), max(target_lengths))


@pytest.mark.parametrize("log_sigma", [-1.0, 0.0, 0.7])
def test_length_transform_is_a_double_loop(log_sigma):
    """Shorter, equal and longer targets, in one padded batch; what padding holds does not matter."""
    source_lengths, target_lengths = [6, 3, 4, 1], [4, 3, 9, 5]
    mask = mask_of(source_lengths)
    z = torch.where(mask[..., None] == 1, randn(4, 6, 2), 1e6)
    aligned = length_transform(log_sigma)(z, mask, torch.tensor(target_lengths), max(target_lengths))
    assert aligned.shape == (4, 9, 2)
    sigma = math.exp(log_sigma)
    for sentence, (x_length, y_length) in enumerate(zip(source_lengths, target_lengths, strict=True)):
        for j in range(1, y_length + 1):
            scores = [math.exp(-((k - x_length / y_length * j) ** 2) / (2 * sigma**2)) for k in range(1, x_length + 1)]
            expected = sum(score * z[sentence, k] for k, score in enumerate(scores)) / sum(scores)
            torch.testing.assert_close(aligned[sentence, j - 1], expected, rtol=1e-5, atol=1e-6)


def test_length_transform_by_hand():
    """|x| = l_y = 2 and σ = 1: j looks at k = j, and the other position is at distance 1, so it has e^(-1/2) of it."""
    near, far = 1 / (1 + math.exp(-1 / 2)), math.exp(-1 / 2) / (1 + math.exp(-1 / 2))
    weights = attention_weights(length_transform(0.0), [2], [2])
    torch.testing.assert_close(weights, torch.tensor([[[near, far], [far, near]]]))


def test_length_transform_counts_from_one():
    """With a small σ: the copy if |x| = l_y; k = 2j if |x| = 2 l_y; j = 2k if l_y = 2 |x|; the last meets the last."""
    narrow = length_transform(-2.0)
    assert attention_weights(narrow, [4], [4])[0].argmax(-1).tolist() == [0, 1, 2, 3]
    assert attention_weights(narrow, [6], [3])[0].argmax(-1).tolist() == [1, 3, 5]
    assert attention_weights(narrow, [3], [6])[0, 1::2].argmax(-1).tolist() == [0, 1, 2]
    for source_length, target_length in [(3, 5), (5, 3), (7, 1), (2, 9)]:
        weights = attention_weights(narrow, [source_length], [target_length])
        assert weights[0, -1].argmax() == source_length - 1


def test_length_transform_weights_sum_to_one_over_the_source():
    source_lengths = [6, 3, 1]
    weights = attention_weights(length_transform(0.5), source_lengths, [4, 5, 2])
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    assert not weights.masked_fill(mask_of(source_lengths)[:, None] == 1, 0.0).any()


def test_length_transform_commutes_with_affine_maps():
    """So it can be applied in the latent space instead of the hidden one."""
    mask, lengths = mask_of([6, 4]), torch.tensor([5, 7])
    z, matrix, bias = randn(2, 6, 3), randn(3, 8, seed=1), randn(8, seed=2)
    module = length_transform(0.3)
    after = module(z, mask, lengths, 7) @ matrix + bias
    before = module(z @ matrix + bias, mask, lengths, 7)
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("log_sigma", [-20.0, -3.0, 0.0, 3.0, 20.0, 100.0])
def test_sigma_is_positive_for_any_parameter(log_sigma):
    """Finite weights that sum to one, and never larger farther away: so σ² > 0."""
    weights = attention_weights(length_transform(log_sigma), [5], [5])[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    for j in range(5):
        assert weights[j].argmax() == j or weights[j].max() - weights[j].min() < 1e-6
        assert (weights[j, : j + 1].diff() >= -1e-7).all() and (weights[j, j:].diff() <= 1e-7).all()


def test_sigma_is_trained():
    """Finite differences of the one parameter, about σ = 1; it is one number."""
    module = length_transform(0.0)
    assert [parameter.numel() for parameter in module.parameters()] == [1]
    z, mask, lengths = randn(1, 5, 3), mask_of([5]), torch.tensor([7])
    module(z, mask, lengths, 7).square().sum().backward()
    above, below = (length_transform(step)(z, mask, lengths, 7).square().sum() for step in (0.01, -0.01))
    torch.testing.assert_close(module.log_sigma.grad[0], (above - below) / 0.02, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_length_transform_in_half_precision_gives_float32(dtype):
    """Positions up to 300 are no whole numbers in bfloat16, so they must not be computed in it."""
    mask, lengths = mask_of([300]), torch.tensor([290])
    z = randn(1, 300, 2).to(dtype)
    aligned = length_transform(0.0).to(dtype)(z, mask, lengths, 290)
    assert aligned.dtype == torch.float32
    assert torch.equal(aligned, length_transform(0.0)(z.float(), mask, lengths, 290))
