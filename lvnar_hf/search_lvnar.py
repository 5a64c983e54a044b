"""Several translations of a sentence, and the choice among them: more time, better translations.

    μ_0^(k) = μ_0 + s σ_0 ε_k        latents around the prior's mean, ε_0 = 0: the mean is among them (s: the scale)
    y_t^(k)                          each refined on its own, Algorithm 1; with its own length, if several are tried
    beam search                      with alignment "ctc", of the last cells ("ctc_beam_lvnar") the likeliest n
    ŷ = argmax score(x, y)           of what is different among all these, by one of SCORES

The noise is the same for every sentence, so that a sentence has the same candidates in any batch, and the first k
candidates are the same however many there are. Candidates that have become equal are one from there on.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import dataclasses
import importlib
import math
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from .configuration_lvnar import LvnarConfig
from .ctc_beam_lvnar import BeamOptions, Cells, prefix_beam_search
from .ctc_lvnar import IMPOSSIBLE, ctc_cell_mask, ctc_nll
from .decoding_options_lvnar import NOT_FINITE, DecodingOptions
from .generation_lvnar import LvnarGenerateOutput
from .length_lvnar import length_log_probs, likeliest_lengths
from .losses_lvnar import IGNORED_LABEL, gaussian_kl, gaussian_log_density, token_nll
from .refinement_lvnar import EncodedSource, TranslationParts, likeliest_targets, refine_latents, target_positions

MAX_SCORED_LOGITS = 2**25  # at once, where candidates are scored


def search(
    model: TranslationParts, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
) -> LvnarGenerateOutput:
    """The best candidate of each sentence, in `sequences`; in `candidates` as many as are asked for, the best first.

    Args:
        input_ids, attention_mask: (batch, source_length), as `check_inputs` leaves them.
    """
    wanted = options.search
    source = model.encode(input_ids, attention_mask)
    rows, latents, lengths = _first_latents(model, source, options)
    of_rows = source.select(rows)
    num_steps = rows.new_zeros(len(input_ids))
    if options.num_refinement_steps:
        options_before = dataclasses.replace(options, num_refinement_steps=options.num_refinement_steps - 1)
        before = refine_latents(model, of_rows, latents, options_before, lengths)
        steps_before: Any = before.num_steps_taken
        num_steps = num_steps.scatter_reduce(0, rows, steps_before + 1, "amax")
        kept = _firsts(rows, before.sequences)
        rows, targets = rows[kept], before.sequences[kept]
        of_rows, lengths = source.select(rows), None if lengths is None else lengths[kept]
        latents, _ = model.infer_posterior(of_rows, targets, _mask(model.config, targets))
    rows, targets, beam_scores = _last_translations(model, of_rows, rows, latents, lengths, options)
    if wanted.score == "rescorer":
        likeliest = beam_scores.new_full((len(input_ids),), -torch.inf).scatter_reduce(0, rows, beam_scores, "amax")
        is_likely = beam_scores >= likeliest[rows] - wanted.rescoring_margin
        rows, targets, beam_scores = rows[is_likely], targets[is_likely], beam_scores[is_likely]
    kept = _firsts(rows, targets)
    rows, targets, beam_scores = rows[kept], targets[kept], beam_scores[kept]
    scores = _scores(model, source, input_ids, rows, targets, beam_scores, options)
    if bool(scores.isnan().any()):
        raise ValueError(NOT_FINITE)
    kept_per_sentence = (len(input_ids), wanted.num_return_candidates, model.config.pad_token_id)
    candidates, candidate_scores = _best_first(rows, targets, scores, *kept_per_sentence)
    best = candidates[:, 0]
    longest = int((best != model.config.pad_token_id).sum(-1).max())
    return LvnarGenerateOutput(
        sequences=best[:, :longest], num_steps_taken=num_steps, candidates=candidates, candidate_scores=candidate_scores
    )


def _noise(config: LvnarConfig, like: torch.Tensor, num_draws: int, seed: int) -> torch.Tensor:
    """Standard normal, the same for every sentence: (num_draws, source_length, latent_dim) for (batch, …) means."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_draws, config.max_position_embeddings, config.latent_dim)
    return torch.randn(shape, generator=generator)[:, : like.shape[1]].to(like)


def _mask(config: LvnarConfig, targets: torch.Tensor) -> torch.Tensor:
    return (targets != config.pad_token_id).long()


def _first_latents(
    model: TranslationParts, source: EncodedSource, options: DecodingOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The sentence of each candidate, (rows,); its latents; and its length, if several are tried for a latent."""
    wanted = options.search
    noise = _noise(model.config, source.prior_means, wanted.num_latent_candidates - 1, wanted.search_seed)
    noise = torch.cat([torch.zeros_like(source.prior_means[:1]), wanted.latent_noise_scale * noise])
    latents = source.prior_means[:, None] + noise * source.prior_stds[:, None]  # (batch, candidates, |x|, latent_dim)
    rows = torch.arange(len(latents), device=latents.device).repeat_interleave(len(noise))
    latents = latents.flatten(0, 1)
    if model.config.alignment == "ctc" or wanted.num_length_candidates == 1:
        return rows, latents, None
    of_rows = source.select(rows)
    length_logits = model.predict_length(of_rows, latents)
    lengths = likeliest_lengths(
        model.config, length_logits, of_rows.attention_mask, options.max_length, wanted.num_length_candidates
    )  # (rows, num_length_candidates)
    num_lengths = lengths.shape[1]
    return rows.repeat_interleave(num_lengths), latents.repeat_interleave(num_lengths, dim=0), lengths.flatten()


def _last_translations(
    model: TranslationParts,
    of_rows: EncodedSource,
    rows: torch.Tensor,
    latents: torch.Tensor,
    lengths: torch.Tensor | None,
    options: DecodingOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each latent, the translation, or with a beam the likeliest ones: their sentences, ids, and log p(y | x, μ)."""
    wanted, padding = options.search, model.config.pad_token_id
    positions, _ = target_positions(model, of_rows, latents, options.max_length, lengths)
    logits = model.decode(of_rows, latents, positions)
    if not math.isfinite(float(logits.amax(-1).masked_fill(positions == 0, 0.0).sum())):
        raise ValueError(NOT_FINITE)
    beam = BeamOptions(wanted.beam_size, wanted.token_bonus, wanted.language_model, wanted.language_model_weight)
    if wanted.beam_size == 1:
        targets = likeliest_targets(model, logits, positions, options.max_length, options.num_target_ids)
        return rows, targets, logits.new_zeros(len(rows), dtype=torch.float32)
    targets, scores = beam_search(logits[..., : options.num_target_ids], positions, padding, beam)
    limit = min(options.max_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
    targets, scores = targets[..., :limit].flatten(0, 1), scores.flatten()
    if targets.shape[1] == 0:
        targets = targets.new_full((len(targets), 1), padding)
    targets[:, 0] = targets[:, 0].masked_fill(targets[:, 0] == padding, model.config.eos_token_id)
    is_there = scores > IMPOSSIBLE / 2
    return rows.repeat_interleave(wanted.beam_size)[is_there], targets[is_there], scores[is_there]


def cell_choices(
    logits: torch.Tensor, blank_id: int, tokens_per_cell: int = BeamOptions().tokens_per_cell
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a beam search chooses from: (batch, T, vocab_size) to `Cells` of k = `tokens_per_cell` tokens.

    Returns:
        (batch, T, k) ids; and (batch, T, 2 k + 1) probabilities, repeats, and blank's probability.
    """
    is_blank = torch.arange(logits.shape[-1], device=logits.device) == blank_id
    words = logits.masked_fill(is_blank, IMPOSSIBLE)
    best, tokens = words.topk(min(tokens_per_cell, logits.shape[-1] - 1), dim=-1)
    repeats = logits.gather(-1, torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1))
    chosen = torch.cat([best, repeats, logits[..., blank_id, None]], dim=-1)
    # Not logsumexp, which is several times slower than this in ONNX Runtime.
    most = torch.maximum(best[..., :1], chosen[..., -1:])
    return tokens, (chosen - most).exp() / (logits - most).exp().sum(-1, keepdim=True)


def beam_search(
    logits: torch.Tensor, cell_mask: torch.Tensor, blank_id: int, options: BeamOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """`prefix_beam_search` for the sentences of a batch.

    Args:
        logits: (batch, T, vocab_size); unnormalised ones are normalised.
        cell_mask: (batch, T), 1 at the cells of a sentence, on the left.
        blank_id: of blank, and of padding in the result.

    Returns:
        (batch, beam_size, longest) ids, the best first, padded on the right; what is not there is blank throughout.
        (batch, beam_size) log-probabilities in nats; IMPOSSIBLE for what is not there.
    """
    tokens, scores = cell_choices(logits.float(), blank_id, options.tokens_per_cell)
    rows_of_cells = zip(tokens.tolist(), scores.tolist(), cell_mask.sum(-1).tolist(), strict=True)
    found = [
        prefix_beam_search(Cells.from_choices(ids[:num_cells], of_cells[:num_cells]), options)
        for ids, of_cells, num_cells in rows_of_cells
    ]
    device = logits.device
    longest = max(len(ids) for of_sentence in found for ids, _ in of_sentence)
    padding: list[tuple[list[int], float]] = [([], IMPOSSIBLE)] * options.beam_size
    rows = [(of_sentence + padding)[: options.beam_size] for of_sentence in found]
    sequences = [[ids + [blank_id] * (longest - len(ids)) for ids, _ in row] for row in rows]
    log_probs = torch.tensor([[score for _, score in row] for row in rows], device=device)
    found_ids = torch.tensor(sequences, dtype=torch.long, device=device)  # floats, if all are empty
    return found_ids.view(len(rows), options.beam_size, longest), log_probs


def _firsts(rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Which of the translations (rows, length) of the sentences `rows` no earlier one is equal to: indices."""
    places: dict[tuple[int, ...], int] = {}
    for place, key in enumerate(torch.cat([rows[:, None], targets], dim=1).tolist()):
        places.setdefault(tuple(key), place)
    return torch.tensor(list(places.values()), device=rows.device)


def _scores(
    model: TranslationParts,
    source: EncodedSource,
    input_ids: torch.Tensor,
    rows: torch.Tensor,
    targets: torch.Tensor,
    beam_scores: torch.Tensor,
    options: DecodingOptions,
) -> torch.Tensor:
    """What each translation (rows, length) of the sentences `rows` is worth: (rows,)."""
    wanted = options.search
    if wanted.score == "beam":
        return beam_scores
    if wanted.score == "consensus":
        return consensus(rows, wanted.tokenizer.batch_decode(targets, skip_special_tokens=True))
    mask = _mask(model.config, targets)
    if wanted.score == "rescorer":
        states = wanted.rescorer.get_encoder()(input_ids=input_ids, attention_mask=source.attention_mask)[0]

        def score(of: torch.Tensor, ids: torch.Tensor, ids_mask: torch.Tensor) -> torch.Tensor:
            of_source = (states[of], source.attention_mask[of])
            return rescorer_log_probs(wanted.rescorer, *of_source, ids, ids_mask) / ids_mask.sum(-1)
    else:
        num_samples = wanted.num_elbo_samples if wanted.score == "elbo" else 0

        def score(of: torch.Tensor, ids: torch.Tensor, ids_mask: torch.Tensor) -> torch.Tensor:
            bounds = lower_bounds(model, source.select(of), ids, ids_mask, num_samples, wanted.search_seed)
            return bounds + wanted.token_bonus * ids_mask.sum(-1)

    longest = max(targets.shape[1], ctc_cell_mask(source.attention_mask, model.config.upsampling_ratio).shape[1])
    size = max(1, MAX_SCORED_LOGITS // (longest * model.config.decoder_vocab_size))
    parts = zip(rows.split(size), targets.split(size), mask.split(size), strict=True)
    return torch.cat([score(*part) for part in parts])


def lower_bounds(
    model: TranslationParts,
    source: EncodedSource,
    targets: torch.Tensor,
    target_mask: torch.Tensor,
    num_samples: int = 0,
    seed: int = 0,
) -> torch.Tensor:
    """Lower bounds of log p(y | x), nats a sentence: (batch,).

    Args:
        targets, target_mask: (batch, target_length).
        num_samples: of z from q(z | x, y), for the mean of as many estimates of the ELBO; the noise is the same for
            each sentence. 0: the deterministic bound of Eq. 12, of z = E_q(z | x, y)[z].
    """
    means, stds = model.infer_posterior(source, targets, target_mask)
    labels = targets.masked_fill(target_mask == 0, IGNORED_LABEL)
    if num_samples == 0:
        log_densities = gaussian_log_density(means, source.prior_means, source.prior_stds).sum(-1)
        log_prior = log_densities.masked_fill(source.attention_mask == 0, 0.0).sum(-1)
        return _log_likelihood(model, source, means, labels, target_mask) + log_prior
    kl = gaussian_kl(means, stds, source.prior_means, source.prior_stds, source.attention_mask).sum(-1)
    noise = _noise(model.config, means, num_samples, seed)
    likelihoods = [_log_likelihood(model, source, means + one * stds, labels, target_mask) for one in noise]
    return torch.stack(likelihoods).mean(0) - kl


def _log_likelihood(
    model: TranslationParts,
    source: EncodedSource,
    latents: torch.Tensor,
    labels: torch.Tensor,
    target_mask: torch.Tensor,
) -> torch.Tensor:
    """log p(y, l_y | x, z), or with alignment "ctc" log p(y | x, z): (batch,)."""
    if model.config.alignment == "ctc":
        cells = ctc_cell_mask(source.attention_mask, model.config.upsampling_ratio)
        return -ctc_nll(model.decode(source, latents, cells), labels, cells, model.config.pad_token_id)[0]
    nll, _ = token_nll(model.decode(source, latents, target_mask), labels)
    length_offsets = target_mask.sum(-1) - source.attention_mask.sum(-1)
    return length_log_probs(model.config, model.predict_length(source, latents), length_offsets) - nll


def rescorer_log_probs(
    rescorer: Any,
    encoder_states: torch.Tensor,
    source_mask: torch.Tensor,
    targets: torch.Tensor,
    target_mask: torch.Tensor,
) -> torch.Tensor:
    """log p(y | x) of an autoregressive model, in one parallel pass: nats a sentence, (batch,).

    Args:
        rescorer: a sequence-to-sequence model of transformers with the vocabulary of the targets.
        encoder_states: (batch, source_length, its hidden size), of its encoder.
        source_mask: (batch, source_length).
        targets, target_mask: (batch, target_length).
    """
    start = rescorer.config.decoder_start_token_id
    inputs = torch.cat([targets.new_full((len(targets), 1), start), targets[:, :-1]], dim=1)
    logits = rescorer(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoder_states),
        attention_mask=source_mask,
        decoder_input_ids=inputs,
        use_cache=False,
    ).logits
    return -token_nll(logits, targets.masked_fill(target_mask == 0, IGNORED_LABEL))[0]


def consensus(rows: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """The mean chrF (Popović, 2015) of each text to the others of the sentence `rows`, 0 where there is none: (rows,).

    Raises:
        ImportError: sacrebleu is not installed.
    """
    chrf = importlib.import_module("sacrebleu").CHRF()
    of_rows = rows.tolist()
    scores = []
    for place, (row, text) in enumerate(zip(of_rows, texts, strict=True)):
        others = [texts[other] for other, its_row in enumerate(of_rows) if its_row == row and other != place]
        scores.append(sum(chrf.sentence_score(text, [other]).score for other in others) / max(1, len(others)))
    return torch.tensor(scores, device=rows.device)


def _best_first(
    rows: torch.Tensor, targets: torch.Tensor, scores: torch.Tensor, batch: int, num_kept: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates (batch, num_kept, length) and their scores (batch, num_kept), the best first; equals in their order.

    Where a sentence has fewer, the rest is padding, and its score -infinite.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    rows = rows[order]
    places = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)  # among the sentence's own
    kept = places < num_kept
    candidates = targets.new_full((batch, num_kept, targets.shape[1]), padding)
    candidates[rows[kept], places[kept]] = targets[order][kept]
    best_scores = scores.new_full((batch, num_kept), float("-inf"))
    best_scores[rows[kept], places[kept]] = scores[order][kept]
    return candidates, best_scores
