"""How long a translation is, and how latents get to so many positions (Shu et al., 2020, section 3.3, Eq. 6 to 8).

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import torch
from torch import nn

from .configuration_lvnar import LvnarConfig


def lengths_to_mask(lengths: torch.Tensor, max_length: int) -> torch.Tensor:
    """Lengths (batch,) to a mask (batch, max_length), int64, 1 at valid positions."""
    return (torch.arange(max_length, device=lengths.device) < lengths[:, None]).long()


class LvnarLengthPredictor(nn.Module):
    """p(l_y | z, x): linear on pooled latents and pooled source states, softmax over l_y - |x|.

    Deviation: the paper pools z alone. The authors' code also lets the predictor see the states of the prior, as here;
    the bound stays valid, since p(l_y | z, x) conditions on nothing that the decoder does not.
    """

    def __init__(self, config: LvnarConfig):
        super().__init__()
        num_classes = 2 * config.max_length_offset + 1
        self.proj = nn.Linear(config.latent_dim + config.hidden_size, num_classes)

    def forward(self, latents: torch.Tensor, source_states: torch.Tensor, source_mask: torch.Tensor) -> torch.Tensor:
        """(batch, 2 * max_length_offset + 1) logits."""
        features = torch.cat([latents, source_states.float()], dim=-1)
        weights = source_mask.float()[..., None]  # float32: 16 bits cannot count beyond 256
        pooled = (features * weights).sum(1) / weights.sum(1)
        return self.proj(pooled.to(source_states.dtype))


def likeliest_lengths(
    config: LvnarConfig,
    length_logits: torch.Tensor,
    attention_mask: torch.Tensor,
    max_length: int | torch.Tensor | None = None,
    num_lengths: int = 1,
) -> torch.Tensor:
    """The likeliest l_y by p(l_y | z, x), the best first: (batch, num_lengths), at most as many as there are classes.

    They are from 1 to `max_length`, by default `max_position_embeddings`; where the predictor has none of them (any
    more), the one nearest to its classes. A tensor () is for graphs.
    """
    limit = config.max_position_embeddings
    if not isinstance(max_length, torch.Tensor):
        max_length = min(max_length or limit, limit)
    num_classes = length_logits.shape[-1]
    shortest = attention_mask.sum(-1) - config.max_length_offset  # the length of class 0, (batch,)
    lengths = shortest[:, None] + torch.arange(num_classes, device=length_logits.device)
    allowed = (lengths >= 1) & (lengths <= max_length)
    allowed_logits = length_logits.masked_fill(~allowed, float("-inf"))
    best = allowed_logits.argmax(-1)[:, None]
    if num_lengths > 1:
        best = allowed_logits.topk(min(num_lengths, num_classes), dim=-1).indices
    lengths = (shortest[:, None] + best).clamp(min=1)
    return torch.where(lengths > max_length, max_length, lengths)


def length_log_probs(config: LvnarConfig, length_logits: torch.Tensor, length_offsets: torch.Tensor) -> torch.Tensor:
    """log p(l_y | z, x) of l_y - |x|, (batch,); -inf where the predictor has no such class."""
    classes = length_offsets + config.max_length_offset
    in_range = (classes >= 0) & (classes < length_logits.shape[-1])
    log_probs = length_logits.float().log_softmax(-1).gather(-1, (classes * in_range)[:, None])[:, 0]
    return log_probs.masked_fill(~in_range, float("-inf"))


class LvnarLengthTransform(nn.Module):
    """Monotonic location-based attention that carries |x| latents to l_y positions (Eq. 6-8).

    It is a weighted mean, so it commutes with the affine map into the hidden space and is applied before it, to
    `latent_dim` numbers a position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.zeros(1))  # σ > 0 is the one trainable number (FSDP takes no scalars)

    def forward(
        self,
        latents: torch.Tensor,  # (batch, source_length, latent_dim), or anything else that source positions have
        source_mask: torch.Tensor,  # (batch, source_length)
        target_lengths: torch.Tensor,  # (batch,)
        max_target_length: int,
    ) -> torch.Tensor:
        """(batch, max_target_length, latent_dim) float32; positions after a sentence's target length are arbitrary."""
        source_positions = torch.arange(1, latents.shape[1] + 1, device=latents.device)  # k, from 1
        target_positions = torch.arange(1, max_target_length + 1, device=latents.device)  # j, from 1
        ratios = source_mask.sum(-1).float() / target_lengths  # |x| / l_y, (batch,)
        centres = ratios[:, None] * target_positions  # (batch, max_target_length)
        distances = source_positions - centres[..., None]  # (batch, max_target_length, source_length)
        scores = -0.5 * (distances * torch.exp(-self.log_sigma.float())).square()  # a_jk, σ = exp(log_sigma)
        scores = scores.masked_fill(source_mask[:, None, :] == 0, float("-inf"))
        with torch.autocast(latents.device.type, enabled=False):  # positions need more than 8 bits
            return scores.softmax(-1) @ latents.float()
