"""The terms of the training objective (Shu et al., 2020, Eq. 5, 9, 10), as pure functions, and what holds them.

Every likelihood and divergence is in nats. Masks are 1 at valid positions. Terms are returned a sentence each, so that
whoever adds them up decides what to divide by: a batch in pieces then has the loss of the whole.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, log_softmax, nll_loss
from transformers.utils import ModelOutput

IGNORED_LABEL = -100


@dataclass
class LvnarOutput(ModelOutput):
    """What `LvnarForConditionalGeneration.forward` returns; the terms of the objective are nats a sentence.

    Args:
        loss: scalar; token NLL (in training label-smoothed, and mixed with the loss of bigrams), budgeted KL and length
            NLL of the batch, divided by its number of target tokens (or by `num_items_in_batch`).
        logits: (batch, target_length, target_vocab_size), float32 outside autocast; with alignment "ctc" of the cells,
            (batch, T, target_vocab_size), where padding is blank.
        token_nll: (batch,) -log p(y | x, z, l_y), without label smoothing; with "ctc", -log p(y | x, z).
        kl: (batch,) KL before the budget.
        budgeted_kl: (batch,) Σ_k max(b, KL_k).
        length_nll: (batch,) -log p(l_y | z); None with alignment "ctc", as the two others of the length.
        length_accuracy: (batch,) 1 where the likeliest length is the true one, else 0.
        elbo: (batch,) -(token_nll + kl + length_nll), an estimate of a lower bound of log p(y, l_y | x) from one z;
            with "ctc", without the length, of log p(y | x).
        num_target_tokens: scalar, end-of-sentence tokens included.
        prior_means, prior_stds, posterior_means, posterior_stds: (batch, source_length, latent_dim).
        length_logits: (batch, 2 * max_length_offset + 1).
        encoder_hidden_states: (batch, source_length, hidden_size), the states of the prior.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_nll: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    budgeted_kl: torch.Tensor | None = None
    length_nll: torch.Tensor | None = None
    length_accuracy: torch.Tensor | None = None
    elbo: torch.Tensor | None = None
    num_target_tokens: torch.Tensor | None = None
    prior_means: torch.Tensor | None = None
    prior_stds: torch.Tensor | None = None
    posterior_means: torch.Tensor | None = None
    posterior_stds: torch.Tensor | None = None
    length_logits: torch.Tensor | None = None
    encoder_hidden_states: torch.Tensor | None = None


def token_nll(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of the target tokens, -Σ_i log p(y_i | x, z, l_y), first term of Eq. 5.

    Args:
        logits: (batch, target_length, target_vocab_size).
        labels: (batch, target_length), -100 at padding.
        label_smoothing: weight ε of the uniform distribution over the vocabulary in the smoothed target.

    Returns:
        Two (batch,) float32 tensors, nats a sentence: the negative log-likelihood, and the same against the smoothed
        target, (1 - ε) · nll + ε · mean over the vocabulary of -log p. They are one tensor if ε is 0.
    """
    log_probs = log_softmax(logits.float(), dim=-1)
    nll = nll_loss(log_probs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    nll = nll.view(labels.shape).sum(-1)
    if label_smoothing == 0.0:
        return nll, nll
    uniform_nll = -log_probs.mean(-1).masked_fill(labels == IGNORED_LABEL, 0.0).sum(-1)
    return nll, (1 - label_smoothing) * nll + label_smoothing * uniform_nll


def gaussian_kl(
    posterior_means: torch.Tensor,
    posterior_stds: torch.Tensor,
    prior_means: torch.Tensor,
    prior_stds: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """KL[q(z_k | x, y) || p(z_k | x)] at each source position k, summed over the latent dimensions (Eq. 5).

    Args:
        posterior_means, posterior_stds, prior_means, prior_stds: (batch, source_length, latent_dim), standard
            deviations positive.
        attention_mask: (batch, source_length).

    Returns:
        (batch, source_length) float32, nats a position, 0 at padding.
    """
    q_mean, q_std, p_mean, p_std = (t.float() for t in (posterior_means, posterior_stds, prior_means, prior_stds))
    kl = torch.log(p_std / q_std) + (q_std.square() + (q_mean - p_mean).square()) / (2 * p_std.square()) - 0.5
    return kl.sum(-1).masked_fill(attention_mask == 0, 0.0)


def budgeted_kl(kl: torch.Tensor, kl_budget: float, attention_mask: torch.Tensor) -> torch.Tensor:
    """max(b, KL_k) at each source position (Eq. 9): below the budget b the KL costs the same, whatever it is.

    Args:
        kl: (batch, source_length), nats a position.
        kl_budget: b, nats a position.
        attention_mask: (batch, source_length).

    Returns:
        (batch, source_length), 0 at padding.
    """
    return kl.clamp(min=kl_budget).masked_fill(attention_mask == 0, 0.0)


def kl_budget_at(
    step: float, num_training_steps: float, initial_budget: float = 1.0, final_budget: float = 0.0
) -> float:
    """KL budget b at optimizer step s of M: `initial_budget` while s < M/2, then in a line to `final_budget` at M.

    Eq. 10 is that with a final budget of 0. A share of the run, with M = 1, gives the same as steps.

    Raises:
        ValueError: if `step` is not in [0, `num_training_steps`], or there are no steps.
    """
    if num_training_steps < 1:
        raise ValueError(f"num_training_steps is {num_training_steps}; it must be at least 1.")
    if not 0 <= step <= num_training_steps:
        raise ValueError(f"step is {step}; it must be in [0, {num_training_steps}], the number of training steps.")
    half = num_training_steps / 2
    if step < half:
        return initial_budget
    return final_budget + (initial_budget - final_budget) * (num_training_steps - step) / half


def length_nll(length_logits: torch.Tensor, length_offsets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of the target length, -log p(l_y | z), a softmax over l_y - |x|.

    Args:
        length_logits: (batch, 2 * max_length_offset + 1); class c stands for the offset c - max_length_offset.
        length_offsets: (batch,) the true l_y - |x|, within the range.

    Returns:
        (batch,) float32, nats a sentence.
    """
    max_length_offset = length_logits.shape[-1] // 2
    return cross_entropy(length_logits.float(), length_offsets + max_length_offset, reduction="none")


def gaussian_log_density(values: torch.Tensor, means: torch.Tensor, stds: torch.Tensor) -> torch.Tensor:
    """log N(values; means, stds²), element by element, float32, nats. All arguments have one shape."""
    values, means, stds = values.float(), means.float(), stds.float()
    return -0.5 * ((values - means) / stds).square() - torch.log(stds) - 0.5 * math.log(2 * math.pi)
