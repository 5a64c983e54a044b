"""Deterministic inference with a delta posterior (Shu et al., 2020, Algorithm 1, Eq. 11 and 12).

    μ_0 = E_p(z | x)[z]              y_0 = argmax p(y | x, μ_0)
    μ_t = E_q(z | x, y_{t-1})[z]     y_t = argmax p(y | x, μ_t)     t = 1..T, stop when y_t = y_{t-1}

The length is predicted anew from μ_t in every step. With alignment "ctc", y_t is what is left of the likeliest cells
when equal neighbours are merged and blanks removed. There is no randomness anywhere. A sentence leaves the batch when
its translation repeats itself.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import pad

from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import collapse, ctc_cell_mask, ctc_nll
from .generation_lvnar import DecodingOptions, LvnarGenerateOutput
from .layers_lvnar import KeysValues
from .length_lvnar import length_log_probs, lengths_to_mask, likeliest_lengths
from .losses_lvnar import IGNORED_LABEL, gaussian_log_density, token_nll


class EncodedSource(NamedTuple):
    """What is computed once for a source, whatever the number of latents, lengths and refinement steps.

    Args:
        attention_mask: (batch, source_length).
        embeddings: (batch, source_length, hidden_size).
        hidden_states: (batch, source_length, hidden_size), the states of the prior.
        prior_means, prior_stds: (batch, source_length, latent_dim).
        decoder_keys_values: of the states, for the cross-attention of each layer of the decoder.
        carried_states: (batch, source_length, hidden_size), what the decoder carries to its positions beside the
            latents; None unless `carries_source_states`.
    """

    attention_mask: torch.Tensor
    embeddings: torch.Tensor
    hidden_states: torch.Tensor
    prior_means: torch.Tensor
    prior_stds: torch.Tensor
    decoder_keys_values: tuple[KeysValues, ...] = ()
    carried_states: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "EncodedSource":
        """The sentences `rows` (indices or a boolean mask over the batch)."""
        return EncodedSource(
            attention_mask=self.attention_mask[rows],
            embeddings=self.embeddings[rows],
            hidden_states=self.hidden_states[rows],
            prior_means=self.prior_means[rows],
            prior_stds=self.prior_stds[rows],
            decoder_keys_values=tuple((keys[rows], values[rows]) for keys, values in self.decoder_keys_values),
            carried_states=None if self.carried_states is None else self.carried_states[rows],
        )


class TranslationParts(Protocol):
    """What Algorithm 1 asks a model for. Masks are 1 at valid positions; ids and masks are (batch, length) int64."""

    config: LvnarConfig

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncodedSource:
        """The source, and its prior p(z | x)."""

    def infer_posterior(
        self, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q(z | x, y): means and standard deviations, each (batch, source_length, latent_dim)."""

    def predict_length(self, source: EncodedSource, latents: torch.Tensor) -> torch.Tensor:
        """p(l_y | z, x): logits over l_y - |x|, (batch, 2 * max_length_offset + 1); with "ctc" never asked."""

    def decode(self, source: EncodedSource, latents: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
        """p(y | x, z, l_y): logits (batch, target_length, vocabulary)."""


def refine(
    model: TranslationParts,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    options: DecodingOptions,
    padded_batch_size: Callable[[int], int] = int,
) -> LvnarGenerateOutput:
    """Algorithm 1 on a batch; `sequences` is the last translation, as the decoder gave it.

    Args:
        input_ids, attention_mask: (batch, source_length), as `check_inputs` leaves them.
        padded_batch_size: for an engine that takes batches of some sizes alone: that for so many sentences, at most
            twice as many. Copies of the first ones fill the batch; nothing is asked of their translations.
    """
    active = torch.arange(len(input_ids), device=input_ids.device)  # sentences that may still change
    rows = _fill(active, padded_batch_size)
    source = model.encode(input_ids[rows], attention_mask[rows])
    latents = source.prior_means  # μ_0 = E_p(z | x)[z]
    targets, mask, bounds = _translate(model, source, latents, options)  # y_0 = argmax p(y | x, μ_0)
    record = _Record(targets[: len(active)], bounds[: len(active)], model.config.pad_token_id)
    for _ in range(options.num_refinement_steps):
        latents, _ = model.infer_posterior(source, targets, mask)  # μ_t = E_q(z | x, y_{t-1})[z]
        previous = targets
        targets, mask, bounds = _translate(model, source, latents, options)  # y_t = argmax p(y | x, μ_t)
        record.add_step(active, targets, bounds)
        rows = _are_different(targets, previous, model.config.pad_token_id)[: len(active)].nonzero()[:, 0]
        if len(rows) == 0:  # y_t = y_{t-1}
            break
        if len(rows) < len(active):
            active, rows = active[rows], _fill(rows, padded_batch_size)
            source, targets, mask = source.select(rows), targets[rows], mask[rows]
    return record.output(options.with_bounds)


class _Record:
    """The translations of a batch, y_0, y_1, ...; a sentence that has stopped keeps its own."""

    def __init__(self, targets: torch.Tensor, bounds: torch.Tensor, pad_token_id: int):
        self._targets, self._bounds, self._pad_token_id = [targets], [bounds], pad_token_id
        self._num_steps = targets.new_zeros(len(targets))

    def add_step(self, active: torch.Tensor, targets: torch.Tensor, bounds: torch.Tensor) -> None:
        """Add y_t of the sentences `active`, the first rows of `targets` and `bounds`."""
        self._num_steps[active] += 1
        last, new = _pad_to_one_length(self._pad_token_id, self._targets[-1], targets[: len(active)])
        self._targets.append(last.index_copy(0, active, new))
        self._bounds.append(self._bounds[-1].index_copy(0, active, bounds[: len(active)]))

    def output(self, with_bounds: bool) -> LvnarGenerateOutput:
        targets = self._targets[-1]
        longest = int((targets != self._pad_token_id).sum(-1).max())
        return LvnarGenerateOutput(
            sequences=targets[:, :longest],
            num_steps_taken=self._num_steps,
            sequences_per_step=tuple(self._targets),
            lower_bounds=torch.stack(self._bounds, dim=1) if with_bounds else None,
        )


def _fill(rows: torch.Tensor, padded_batch_size: Callable[[int], int]) -> torch.Tensor:
    """Rows (sentences,), the first of them again up to the size of the batch."""
    missing = padded_batch_size(len(rows)) - len(rows)
    return torch.cat([rows, rows[:missing]]) if missing else rows


def _translate(
    model: TranslationParts, source: EncodedSource, latents: torch.Tensor, options: DecodingOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """argmax p(y | x, μ): ids and mask (batch, longest); lower bounds (batch,), 0 if not asked."""
    positions, length_logits = target_positions(model, source, latents, options.max_length)
    logits = model.decode(source, latents, positions)
    targets = likeliest_targets(model, logits, positions, options.max_length, options.num_target_ids)
    mask = (targets != model.config.pad_token_id).long() if length_logits is None else positions
    if not options.with_bounds:
        return targets, mask, latents.new_zeros(len(targets), dtype=torch.float32)
    labels = targets.masked_fill(mask == 0, IGNORED_LABEL)
    if length_logits is None:
        nll, _ = ctc_nll(logits, labels, positions, model.config.pad_token_id)
    else:
        nll, _ = token_nll(logits, labels)
        length_offsets = mask.sum(-1) - source.attention_mask.sum(-1)
        nll = nll - length_log_probs(model.config, length_logits, length_offsets)
    log_densities = gaussian_log_density(latents, source.prior_means, source.prior_stds).sum(-1)
    log_prior = log_densities.masked_fill(source.attention_mask == 0, 0.0).sum(-1)
    return targets, mask, -nll + log_prior


def target_positions(
    model: TranslationParts, source: EncodedSource, latents: torch.Tensor, max_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The decoder's positions, (batch, longest): of the likeliest length, or all cells; and the length's logits."""
    if model.config.alignment == "ctc":
        return ctc_cell_mask(source.attention_mask, model.config.upsampling_ratio), None
    length_logits = model.predict_length(source, latents)
    lengths = likeliest_lengths(model.config, length_logits, source.attention_mask, max_length)
    return lengths_to_mask(lengths, int(lengths.max())), length_logits


def likeliest_targets(
    model: TranslationParts,
    logits: torch.Tensor,
    target_mask: torch.Tensor,
    max_length: int | None = None,
    num_target_ids: int | None = None,
) -> torch.Tensor:
    """argmax p(y | x, z, l_y), padded on the right; with alignment "ctc", the likeliest cells collapsed.

    Padding is no word: it is left out, or it is blank, of whose logit the config's `blank_penalty` is taken. An empty
    translation becomes the end of the sentence.

    Args:
        logits: (batch, target_length, decoder_vocab_size).
        target_mask: (batch, target_length).
        max_length: with "ctc", what goes beyond it is cut; by default `max_position_embeddings`.
        num_target_ids: of the vocabulary; spare rows after them are no words. None: all rows are.

    Returns:
        (batch, target_length); with "ctc", (batch, longest translation).
    """
    config = model.config
    logits = logits[..., :num_target_ids]
    words, word_logits = _likeliest_words(logits, config.pad_token_id)
    if config.alignment == "length":
        return words.masked_fill(target_mask == 0, config.pad_token_id)
    is_blank = logits[..., config.pad_token_id] - config.blank_penalty >= word_logits
    cells = words.masked_fill(is_blank, config.pad_token_id)
    limit = config.max_position_embeddings
    targets = collapse(cells, target_mask, config.pad_token_id)[:, : min(max_length or limit, limit)]
    if targets.shape[1] == 0:
        return targets.new_full((len(targets), 1), config.eos_token_id)
    is_empty = targets[:, :1] == config.pad_token_id
    return torch.cat([targets[:, :1].masked_fill(is_empty, config.eos_token_id), targets[:, 1:]], dim=-1)


def _likeliest_words(logits: torch.Tensor, pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """argmax over all but padding, and its logits: (..., vocabulary) to two of (...)."""
    if pad_token_id == 0:  # as the tokenizers here have it: all others are one view
        highest, places = logits[..., 1:].max(-1)
        return places + 1, highest
    highest, places = logits.index_fill(-1, torch.tensor([pad_token_id], device=logits.device), float("-inf")).max(-1)
    return places, highest


def _are_different(targets: torch.Tensor, others: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Which translations (batch, length) are, (batch,) bool."""
    one, other = _pad_to_one_length(pad_token_id, targets, others)
    return (one != other).any(-1)


def _pad_to_one_length(padding: int, *sequences: torch.Tensor) -> list[torch.Tensor]:
    longest = max(s.shape[1] for s in sequences)
    return [pad(s, (0, longest - s.shape[1]), value=padding) for s in sequences]
