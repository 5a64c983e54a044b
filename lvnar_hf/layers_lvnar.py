"""Layers of prior, posterior and decoder: embeddings with positions, attention, and pre-norm stacks.

No layer is causal: every position attends to all valid ones. Masks are 1 at valid positions.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .configuration_lvnar import LvnarConfig

# What queries attend to, each (batch, heads, key_length, head_dim).
KeysValues = tuple[torch.Tensor, torch.Tensor]

# Words of a projection in 16 bits that the CPU converts to float32 at once: to copy those of a large vocabulary, which
# no cache holds, takes four times as long as their product with a sentence's states (docs/EXPERIMENTS.md).
_CONVERTED_ROWS = 2048


def sinusoidal_positions(length: int, hidden_size: int, device: torch.device) -> torch.Tensor:
    """Position encodings of Vaswani et al. (2017, section 3.5), sines then cosines: (length, hidden_size) float32.

    Computed where they are used: a non-persistent buffer does not survive loading in transformers 5.
    """
    positions = torch.arange(length, device=device, dtype=torch.float32)
    exponents = torch.arange(hidden_size // 2, device=device, dtype=torch.float32) / (hidden_size // 2)
    angles = positions[:, None] * torch.exp(exponents * -math.log(10000.0))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def vocabulary_logits(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """States (..., hidden_size) and the projection (vocab_size, hidden_size) to logits (..., vocab_size).

    Those of a model in 16 bits are float32: rounded, nearly equal words would become equal.
    """
    if torch.is_autocast_enabled(states.device.type):  # which decides on the number type
        return nn.functional.linear(states, weight)
    dtype = torch.float32 if states.dtype in (torch.float16, torch.bfloat16) else states.dtype
    states = states.to(dtype)
    if weight.dtype != dtype and weight.device.type == "cpu" and not torch.compiler.is_compiling():
        parts = weight.split(_CONVERTED_ROWS)
        return torch.cat([nn.functional.linear(states, part.to(dtype)) for part in parts], dim=-1)
    return nn.functional.linear(states, weight.to(dtype))


class LvnarEmbedding(nn.Embedding):
    """Embedding that is also the tied output projection.

    Both go through `forward`: hooks that load offloaded weights act there.
    """

    def forward(self, inputs: torch.Tensor, project: bool = False) -> torch.Tensor:
        """Ids (...) to embeddings (..., hidden_size); or states (..., hidden_size) to logits (..., vocab_size)."""
        return vocabulary_logits(inputs, self.weight) if project else super().forward(inputs)


class LvnarOutputProjection(nn.Linear):
    """Output projection of its own, where it is not tied; without bias."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__(hidden_size, vocab_size, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """States (..., hidden_size) to logits (..., vocab_size)."""
        return vocabulary_logits(input, self.weight)


class LvnarAttention(nn.Module):
    """Multi-head scaled dot-product attention; self-attention unless keys and values are given."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.query_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_value_proj = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.output_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def project_keys_values(self, states: torch.Tensor) -> KeysValues:
        """States (batch, key_length, hidden_size) to what queries attend to."""
        keys, values = map(self._split_heads, self.key_value_proj(states).chunk(2, dim=-1))
        return keys, values

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, query_length, hidden_size)
        attention_mask: torch.Tensor | None,  # (batch, 1, 1, key_length), True at valid keys; None if all are
        keys_values: KeysValues | None = None,
    ) -> torch.Tensor:
        queries = self._split_heads(self.query_proj(hidden_states))
        keys, values = self.project_keys_values(hidden_states) if keys_values is None else keys_values
        context = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=attention_mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.output_proj(context.transpose(1, 2).flatten(2))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden_size) to (batch, heads, length, head_dim)."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class LvnarLayer(nn.Module):
    """Pre-norm Transformer layer: self-attention, cross-attention if it has one, feed-forward."""

    def __init__(self, config: LvnarConfig, has_cross_attention: bool):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.hidden_size)
        self.self_attention = LvnarAttention(config)
        if has_cross_attention:
            self.cross_attention_norm = nn.LayerNorm(config.hidden_size)
            # Deviation from the authors' code, which calls the self-attention here: weights of its own.
            self.cross_attention = LvnarAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cross_keys: torch.Tensor | None = None,  # (batch, heads, key_length, head_dim)
        cross_values: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        attended = self.self_attention(self.self_attention_norm(hidden_states), attention_mask)
        hidden_states = hidden_states + self.dropout(attended)
        if cross_keys is not None and cross_values is not None:
            attended = self.cross_attention(
                self.cross_attention_norm(hidden_states), cross_attention_mask, (cross_keys, cross_values)
            )
            hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))


def _key_mask(mask: torch.Tensor) -> torch.Tensor | None:
    """A mask (batch, length) as attention takes it, (batch, 1, 1, length) bool; None where it would hide nothing.

    Whether it would is looked up on the CPU alone: elsewhere the look costs more than the mask.
    """
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask.bool()[:, None, None, :]


class LvnarStack(nn.Module):
    """Layers, none of them causal, and a final norm. Masks are (batch, length), 1 at valid positions."""

    layers: Iterable[Any]  # LvnarLayer
    _gradient_checkpointing_func: Callable[..., torch.Tensor]  # set by `gradient_checkpointing_enable`

    def __init__(self, config: LvnarConfig, num_layers: int, has_cross_attention: bool = False):
        super().__init__()
        self.layers = nn.ModuleList([LvnarLayer(config, has_cross_attention) for _ in range(num_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.gradient_checkpointing = False

    def project_cross_states(self, cross_states: torch.Tensor) -> tuple[KeysValues, ...]:
        """States (batch, cross_length, hidden_size) to each layer's keys and values of them."""
        return tuple(layer.cross_attention.project_keys_values(cross_states) for layer in self.layers)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        mask: torch.Tensor,
        cross_keys_values: Sequence[KeysValues] | None = None,  # of `project_cross_states`
        cross_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        attention_mask = _key_mask(mask)
        cross_attention_mask = None if cross_mask is None else _key_mask(cross_mask)
        for index, layer in enumerate(self.layers):
            keys, values = (None, None) if cross_keys_values is None else cross_keys_values[index]
            arguments = (hidden_states, attention_mask, keys, values, cross_attention_mask)
            if self.gradient_checkpointing and self.training:
                hidden_states = self._gradient_checkpointing_func(layer.__call__, *arguments)
            else:
                hidden_states = layer(*arguments)
        return self.final_norm(hidden_states)
