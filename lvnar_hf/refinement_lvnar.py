"""Deterministic inference with a delta posterior (Shu et al., 2020, Algorithm 1, Eq. 11 and 12).

    μ_0 = E_p(z | x)[z]              y_0 = argmax p(y | x, μ_0)
    μ_t = E_q(z | x, y_{t-1})[z]     y_t = argmax p(y | x, μ_t)     t = 1..T, stop when y_t = y_{t-1}

The length is predicted anew from μ_t in every step. With alignment "ctc", y_t is what is left of the likeliest cells
when equal neighbours are merged and blanks removed. There is no randomness anywhere. A sentence leaves the batch when
its translation repeats itself.

Some translations alternate: y_t = y_s, s < t - 1, and so on for ever. Each step of a sentence is compared with one
landmark too, its translation of the last step that is a power of two (Brent, 1980), so that every cycle is found
within a few rounds of it, in constant memory. The sentence then goes on to the step s' with s' ≡ T modulo the cycle,
fewer than one round more, and leaves: its translation is y_T, that of all T steps.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import pad

from .confidence_lvnar import token_probabilities
from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import collapse, ctc_cell_mask, ctc_nll, part_equal_words
from .decoding_options_lvnar import MAX_STEPS, NOT_FINITE, DecodingOptions
from .generation_lvnar import LvnarGenerateOutput
from .layers_lvnar import KeysValues
from .length_lvnar import length_log_probs, lengths_to_mask, likeliest_lengths
from .losses_lvnar import IGNORED_LABEL, gaussian_log_density, token_nll
from .sizes_lvnar import parts_by_length


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
    rows = _fill(torch.arange(len(input_ids), device=input_ids.device), padded_batch_size)
    source = model.encode(input_ids[rows], attention_mask[rows])
    # μ_0 = E_p(z | x)[z]
    return refine_latents(model, source, source.prior_means, options, None, len(input_ids), padded_batch_size)


def refine_latents(
    model: TranslationParts,
    source: EncodedSource,
    latents: torch.Tensor,
    options: DecodingOptions,
    lengths: torch.Tensor | None = None,
    batch_size: int | None = None,
    padded_batch_size: Callable[[int], int] = int,
) -> LvnarGenerateOutput:
    """Algorithm 1 from any latents μ_0.

    Args:
        source: of a batch, perhaps filled.
        latents: (batch, source_length, latent_dim).
        lengths: (batch,) of the translations, in every step; None: the likeliest ones.
        batch_size: how many sentences are no filling; None: all.
        padded_batch_size: as for `refine`.
    """
    num_sentences = len(latents) if batch_size is None else batch_size
    active = torch.arange(num_sentences, device=latents.device)  # sentences that may still change
    translation = _translate(model, source, latents, options, lengths)  # y_0 = argmax p(y | x, μ_0)
    record = _Record(translation, len(active), model.config.pad_token_id, options)
    targets, mask = translation.targets, translation.mask
    landmark, landmark_step = targets, 0
    last_step = min(options.num_refinement_steps, MAX_STEPS)
    ends = active.new_full((len(latents),), last_step)  # the step after which each sentence leaves
    for step in range(1, last_step + 1):
        latents, _ = model.infer_posterior(source, targets, mask)  # μ_t = E_q(z | x, y_{t-1})[z]
        previous = targets
        translation = _translate(model, source, latents, options, lengths)  # y_t = argmax p(y | x, μ_t)
        targets, mask = translation.targets, translation.mask
        record.add_step(active, translation)
        if landmark_step < step - 1:
            end = step + (last_step - step) % (step - landmark_step)
            ends = ends.where(_are_different(targets, landmark, model.config.pad_token_id), end)
        ends = ends.where(_are_different(targets, previous, model.config.pad_token_id), step)
        if step & (step - 1) == 0:
            landmark, landmark_step = targets, step
        rows = (ends > step)[: len(active)].nonzero()[:, 0]
        if len(rows) == 0:
            break
        if len(rows) < len(active):
            active, rows = active[rows], _fill(rows, padded_batch_size)
            source, targets, mask = source.select(rows), targets[rows], mask[rows]
            landmark, ends = landmark[rows], ends[rows]
            lengths = None if lengths is None else lengths[rows]
    return record.output()


def translate_in_parts(
    translate: Callable[..., LvnarGenerateOutput],
    model: TranslationParts,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    options: DecodingOptions,
    max_positions: int,
) -> LvnarGenerateOutput:
    """`refine`, or `search`, of a batch with more than `max_positions` in parts; see `parts_by_length`.

    A part has room for the longest translations that its sentences may have.
    """
    is_ctc = model.config.alignment == "ctc"
    ratio, most_added = (model.config.upsampling_ratio, 0) if is_ctc else (1.0, model.config.max_length_offset)
    if input_ids.numel() * ratio + len(input_ids) * most_added <= max_positions:
        return translate(model, input_ids, attention_mask, options)
    rows_in_order, sizes = parts_by_length(model.config, attention_mask.sum(-1).tolist(), max_positions, most_added)
    order = torch.tensor(rows_in_order, device=input_ids.device)
    outputs = []
    for rows in order.split(sizes):
        width = int(attention_mask[rows].sum(-1).max())
        outputs.append(translate(model, input_ids[rows, :width], attention_mask[rows, :width], options))
    return _merge_parts(outputs, order, model.config.pad_token_id)


def _merge_parts(outputs: list[LvnarGenerateOutput], order: torch.Tensor, pad_token_id: int) -> LvnarGenerateOutput:
    """What `refine` gives for the parts of a batch, as for the batch; a sentence that has stopped keeps its own."""
    place = order.argsort()

    def join(tensors: list[Any], padding: float = pad_token_id) -> torch.Tensor:
        return torch.cat(_pad_to_one_length(padding, *tensors))[place]

    candidates, scores = ([getattr(output, n) for output in outputs] for n in ("candidates", "candidate_scores"))
    steps = bounds = None
    if outputs[0].sequences_per_step is not None:
        of_parts: list[Any] = [output.sequences_per_step for output in outputs]
        most = max(map(len, of_parts))
        steps = tuple(join([part[min(step, len(part) - 1)] for part in of_parts]) for step in range(most))
    if outputs[0].lower_bounds is not None:
        tensors: list[Any] = [output.lower_bounds for output in outputs]
        most = max(tensor.shape[1] for tensor in tensors)
        columns = [torch.arange(most, device=place.device).clamp(max=tensor.shape[1] - 1) for tensor in tensors]
        bounds = torch.cat([t.index_select(1, c) for t, c in zip(tensors, columns, strict=True)])[place]
    taken: list[Any] = [output.num_steps_taken for output in outputs]
    return LvnarGenerateOutput(
        sequences=join([output.sequences for output in outputs]),
        num_steps_taken=torch.cat(taken)[place],
        sequences_per_step=steps,
        lower_bounds=bounds,
        token_confidences=None
        if outputs[0].token_confidences is None
        else join([output.token_confidences for output in outputs], 0.0),
        candidates=None if candidates[0] is None else join(candidates),
        candidate_scores=None if scores[0] is None else torch.cat(scores)[place],
    )


class _Translation(NamedTuple):
    """What `_translate` gives.

    Args:
        targets, mask: (batch, longest), ids and where they are.
        bounds: (batch,) lower bounds, 0 if not asked.
        total: (), of what is greatest at each position and of the lengths; finite unless one of them is not. The
            greatest of some numbers is finite, unless one of them is NaN or infinite, or all are -infinite.
    """

    targets: torch.Tensor
    mask: torch.Tensor
    bounds: torch.Tensor
    total: torch.Tensor
    confidences: torch.Tensor | None = None  # (batch, longest) probabilities of the tokens, if asked


class _Record:
    """The translations of a batch, the last alone or y_0, y_1, ...; a sentence that has stopped keeps its own."""

    def __init__(self, first: _Translation, batch_size: int, pad_token_id: int, options: DecodingOptions):
        self._pad_token_id, self._options = pad_token_id, options
        self._targets, self._bounds = [first.targets[:batch_size]], [first.bounds[:batch_size]]
        self._num_steps = first.targets.new_zeros(batch_size)
        self._total = first.total
        self._confidences = None if first.confidences is None else first.confidences[:batch_size]

    def add_step(self, active: torch.Tensor, translation: _Translation) -> None:
        """Add y_t of the sentences `active`, the first rows of `translation`."""
        self._num_steps[active] += 1
        self._total = self._total + translation.total
        last, new = _pad_to_one_length(self._pad_token_id, self._targets[-1], translation.targets[: len(active)])
        targets = last.index_copy(0, active, new)
        bounds = self._bounds[-1].index_copy(0, active, translation.bounds[: len(active)])
        if self._confidences is not None and translation.confidences is not None:
            last, new = _pad_to_one_length(0.0, self._confidences, translation.confidences[: len(active)])
            self._confidences = last.index_copy(0, active, new)
        kept = len(self._targets) if self._options.return_dict_in_generate else 0
        self._targets, self._bounds = [*self._targets[:kept], targets], [*self._bounds[:kept], bounds]

    def output(self) -> LvnarGenerateOutput:
        if not math.isfinite(float(self._total.detach())):
            raise ValueError(NOT_FINITE)
        targets = self._targets[-1]
        longest = int((targets != self._pad_token_id).sum(-1).max())
        return LvnarGenerateOutput(
            sequences=targets[:, :longest],
            num_steps_taken=self._num_steps,
            sequences_per_step=tuple(self._targets) if self._options.return_dict_in_generate else None,
            lower_bounds=torch.stack(self._bounds, dim=1) if self._options.with_bounds else None,
            token_confidences=None if self._confidences is None else self._confidences[:, :longest],
        )


def _fill(rows: torch.Tensor, padded_batch_size: Callable[[int], int]) -> torch.Tensor:
    """Rows (sentences,), the first of them again up to the size of the batch."""
    missing = padded_batch_size(len(rows)) - len(rows)
    return torch.cat([rows, rows[:missing]]) if missing else rows


def _translate(
    model: TranslationParts,
    source: EncodedSource,
    latents: torch.Tensor,
    options: DecodingOptions,
    lengths: torch.Tensor | None = None,
) -> _Translation:
    """argmax p(y | x, μ), and how likely it is."""
    positions, length_logits = target_positions(model, source, latents, options.max_length, lengths)
    logits = model.decode(source, latents, positions)
    targets, highest = _likeliest_targets(model, logits, positions, options.max_length, options.num_target_ids)
    total = highest.masked_fill(positions == 0, 0.0).sum()
    if length_logits is not None:
        total = total + length_logits.amax(-1).sum()
    mask = (targets != model.config.pad_token_id).long() if length_logits is None else positions
    if not options.with_bounds:
        return _Translation(targets, mask, latents.new_zeros(len(targets), dtype=torch.float32), total)
    labels = targets.masked_fill(mask == 0, IGNORED_LABEL)
    if length_logits is None:
        nll, _ = ctc_nll(logits, labels, positions, model.config.pad_token_id)
    else:
        nll, _ = token_nll(logits, labels)
        length_offsets = mask.sum(-1) - source.attention_mask.sum(-1)
        nll = nll - length_log_probs(model.config, length_logits, length_offsets)
    log_densities = gaussian_log_density(latents, source.prior_means, source.prior_stds).sum(-1)
    log_prior = log_densities.masked_fill(source.attention_mask == 0, 0.0).sum(-1)
    confidences = None
    if options.with_confidences:
        confidences = token_probabilities(model.config, logits, targets, positions, options.num_target_ids)
    return _Translation(targets, mask, -nll + log_prior, total, confidences)


def target_positions(
    model: TranslationParts,
    source: EncodedSource,
    latents: torch.Tensor,
    max_length: int | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The decoder's positions, (batch, longest), and the length's logits.

    They are of the given lengths (batch,), of the likeliest length, or with alignment "ctc" all cells.
    """
    if model.config.alignment == "ctc":
        return ctc_cell_mask(source.attention_mask, model.config.upsampling_ratio), None
    length_logits = model.predict_length(source, latents)
    if lengths is None:
        lengths = likeliest_lengths(model.config, length_logits, source.attention_mask, max_length)[:, 0]
    return lengths_to_mask(lengths, int(lengths.max())), length_logits


def likeliest_targets(
    model: TranslationParts,
    logits: torch.Tensor,
    target_mask: torch.Tensor,
    max_length: int | None = None,
    num_target_ids: int | None = None,
) -> torch.Tensor:
    """argmax p(y | x, z, l_y), padded on the right; with alignment "ctc", the likeliest cells collapsed.

    Padding is no word: it is left out, or it is blank, of whose logit the config's `blank_penalty` is taken, but not
    where that merges equal words (`part_equal_words`). An empty translation becomes the end of the sentence.

    Args:
        logits: (batch, target_length, decoder_vocab_size).
        target_mask: (batch, target_length).
        max_length: with "ctc", what goes beyond it is cut; by default `max_position_embeddings`.
        num_target_ids: of the vocabulary; spare rows after them are no words. None: all rows are.

    Returns:
        (batch, target_length); with "ctc", (batch, longest translation).
    """
    return _likeliest_targets(model, logits, target_mask, max_length, num_target_ids)[0]


def mix_own_translations(
    model: TranslationParts, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the posterior is shown in training: the target, or, of a share of the sentences, the model's own y_0.

    So it sees what it is given in refinement. The bound stays one: q(z | x, y_0(x)) depends on x alone.

    Args:
        target_ids, target_mask: (batch, target_length).
        share: of the sentences, drawn at random.

    Returns:
        Ids and mask, (batch, longest of both).
    """
    is_own = torch.rand(len(target_ids), device=target_ids.device) < share
    with torch.no_grad():
        positions, _ = target_positions(model, source, source.prior_means)
        own_ids = likeliest_targets(model, model.decode(source, source.prior_means, positions), positions)
    torch.clear_autocast_cache()  # it holds weights as a pass without gradient has cast them
    padding = model.config.pad_token_id
    own_ids, ids = _pad_to_one_length(padding, own_ids, target_ids)
    ids = torch.where(is_own[:, None], own_ids, ids)
    return ids, (ids != padding).to(target_mask.dtype)


def _likeliest_targets(
    model: TranslationParts,
    logits: torch.Tensor,
    target_mask: torch.Tensor,
    max_length: int | None,
    num_target_ids: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `likeliest_targets` returns; and the highest logit of each position, (batch, target_length)."""
    config = model.config
    logits = logits[..., :num_target_ids]
    words, word_logits = _likeliest_words(logits, config.pad_token_id)
    if config.alignment == "length":
        return words.masked_fill(target_mask == 0, config.pad_token_id), word_logits
    blank_logits = logits[..., config.pad_token_id]
    highest = torch.maximum(word_logits, blank_logits)
    is_word = (blank_logits - config.blank_penalty < word_logits) & (target_mask != 0)
    cells = words.masked_fill(~is_word, config.pad_token_id)
    if config.blank_penalty > 0.0:
        cells = part_equal_words(cells, is_word & (blank_logits >= word_logits), config.pad_token_id)
    limit = config.max_position_embeddings
    targets = collapse(cells, target_mask, config.pad_token_id)[:, : min(max_length or limit, limit)]
    if targets.shape[1] == 0:
        return targets.new_full((len(targets), 1), config.eos_token_id), highest
    is_empty = targets[:, :1] == config.pad_token_id
    return torch.cat([targets[:, :1].masked_fill(is_empty, config.eos_token_id), targets[:, 1:]], dim=-1), highest


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


def _pad_to_one_length(padding: float, *sequences: torch.Tensor) -> list[torch.Tensor]:
    longest = max(s.shape[-1] for s in sequences)
    return [pad(s, (0, longest - s.shape[-1]), value=padding) for s in sequences]
