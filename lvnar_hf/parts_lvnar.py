"""The distributions of the model: prior p(z | x), posterior q(z | x, y), decoder p(y | x, z, l_y).

That of the length is in `length_lvnar`. Masks are 1 at valid positions.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_lvnar import LvnarConfig
from .layers_lvnar import KeysValues, LvnarStack, sinusoidal_positions
from .length_lvnar import LvnarLengthTransform

MIN_STD = 1e-4  # of prior and posterior, so that no KL is infinite


class LvnarGaussianHead(nn.Module):
    """States to the mean and standard deviation of a diagonal Gaussian at each position, float32.

    No `nn.Linear`, since it gives two tensors: what looks for linear layers (PEFT's "all-linear") must pass it by.
    """

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * config.latent_dim, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(2 * config.latent_dim))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means, raw_stds = nn.functional.linear(hidden_states, self.weight, self.bias).float().chunk(2, dim=-1)
        return means, nn.functional.softplus(raw_stds) + MIN_STD


class LvnarPrior(nn.Module):
    """p(z | x): encoder over the source, and the Gaussian at each of its positions."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.encoder = LvnarStack(config, config.num_prior_layers)
        self.gaussian_head = LvnarGaussianHead(config)

    def forward(
        self, source_embeddings: torch.Tensor, source_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Source states (batch, source_length, hidden_size), means and stds (batch, source_length, latent_dim)."""
        hidden_states = self.encoder(source_embeddings, source_mask)
        return hidden_states, *self.gaussian_head(hidden_states)


class LvnarPosterior(nn.Module):
    """q(z | x, y): encoder over the target, then layers that start from the source embeddings and attend to it."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.target_encoder = LvnarStack(config, config.num_posterior_encoder_layers)
        self.source_decoder = LvnarStack(config, config.num_posterior_decoder_layers, has_cross_attention=True)
        self.gaussian_head = LvnarGaussianHead(config)

    def forward(
        self,
        source_embeddings: torch.Tensor,
        source_mask: torch.Tensor,
        target_embeddings: torch.Tensor,
        target_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations, each (batch, source_length, latent_dim)."""
        target_states = self.target_encoder(target_embeddings, target_mask)
        keys_values = self.source_decoder.project_cross_states(target_states)
        hidden_states = self.source_decoder(source_embeddings, source_mask, keys_values, target_mask)
        return self.gaussian_head(hidden_states)


class LvnarDecoder(nn.Module):
    """p(y | x, z, l_y) up to the vocabulary projection: aligned latents, positions, layers over the target."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.length_transform = LvnarLengthTransform()
        self.latent_proj = nn.Linear(config.latent_dim, config.hidden_size)
        if config.carries_source_states:
            # As the latents, projected before they are carried: there are fewer source positions.
            self.state_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = LvnarStack(config, config.num_decoder_layers, has_cross_attention=True)

    def forward(
        self,
        latents: torch.Tensor,  # (batch, source_length, latent_dim)
        source_keys_values: Sequence[KeysValues],  # of the prior's states, a layer each
        source_mask: torch.Tensor,
        target_mask: torch.Tensor,  # (batch, target_length)
        carried_states: torch.Tensor | None = None,  # (batch, source_length, hidden_size)
        is_shown: torch.Tensor | None = None,  # (batch, target_length) bool, where the input is
        shown_embeddings: torch.Tensor | None = None,  # this instead, (batch, target_length, hidden_size)
    ) -> torch.Tensor:
        """(batch, target_length, hidden_size)."""
        positions_of = (source_mask, target_mask.sum(-1), target_mask.shape[1])
        dtype = source_keys_values[0][0].dtype
        hidden_states = self.latent_proj(self.length_transform(latents, *positions_of).to(dtype))
        if carried_states is not None:
            hidden_states = hidden_states + self.length_transform(carried_states, *positions_of).to(dtype)
        if is_shown is not None and shown_embeddings is not None:
            hidden_states = torch.where(is_shown[..., None], shown_embeddings.to(hidden_states.dtype), hidden_states)
        positions = sinusoidal_positions(target_mask.shape[1], hidden_states.shape[-1], hidden_states.device)
        # With a dimension for the batch: of two dimensions, torch's compiler would compile anew where the length
        # happens to equal the batch size.
        hidden_states = self.dropout(hidden_states + positions[None].to(hidden_states.dtype))
        return self.stack(hidden_states, target_mask, source_keys_values, source_mask)
