"""Bounds of log p(y, l_y | x) of sentence pairs, or with alignment "ctc" of log p(y | x), from many latents at once.

What is unusual: source and target are encoded once, whatever the number of samples; only length predictor and decoder
see each sample. The noise of a sentence depends on the seed and its source ids alone, not on its place in a batch, so
estimates of different translations of a sentence have their noise in common.

z_s ~ q(z | x, y), s = 1..S:
    ELBO                  mean_s [log p(y | x, z_s, l_y) + log p(l_y | z_s)] - KL[q(z | x, y) || p(z | x)]     (Eq. 5)
    importance weighted   log mean_s [p(y | x, z_s, l_y) p(l_y | z_s) p(z_s | x) / q(z_s | x, y)]
The second is never below the first in the mean, and rises with S (Burda et al., 2016). With alignment "ctc" there is no
p(l_y | z_s), and p(y | x, z_s) is the sum over the ways to spell y in the cells.
"""

import math
import zlib
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lvnar_hf.ctc_lvnar import ctc_cell_mask, ctc_nll, num_cells_needed, num_ctc_cells
from lvnar_hf.decoding import sorted_batches
from lvnar_hf.inputs_lvnar import check_inputs
from lvnar_hf.losses_lvnar import IGNORED_LABEL, gaussian_kl, gaussian_log_density, length_nll, token_nll

ELBO_PARTS = ("elbo", "token_nll", "kl", "length_nll")  # the last one with alignment "length" alone
LOGITS_AT_ONCE = 2**23  # numbers; logits of 32 MiB are still faster to reduce than larger ones on a CPU


def can_be_scored(model: PreTrainedModel, source_ids: Sequence[int], target_ids: Sequence[int]) -> bool:
    """Whether the model gives the pair a probability: neither side too long nor empty, lengths not too different.

    With alignment "ctc", for the last: the target fits into the source's cells.
    """
    config, lengths = model.config, (len(source_ids), len(target_ids))
    if min(lengths) < 1 or max(lengths) > config.max_position_embeddings:
        return False
    if config.alignment == "ctc":
        needed = int(num_cells_needed(torch.tensor([target_ids])))
        return needed <= num_ctc_cells(lengths[0], config.upsampling_ratio)
    return abs(lengths[1] - lengths[0]) <= config.max_length_offset


@torch.no_grad()
def elbo_of_sequences(
    model: PreTrainedModel,
    source_ids: Sequence[list[int]],
    target_ids: Sequence[list[int]],
    num_samples: int,
    seed: int,
    batch_size: int = 64,
) -> dict[str, torch.Tensor]:
    """ELBO, its parts, and the importance-weighted bound of each sentence pair.

    Args:
        model: in evaluation mode.
        source_ids: a sentence each, with `</s>`.
        target_ids: of the same number; references with `</s>`, or translations as the decoder gave them.
        num_samples: S, draws of z per sentence.
        seed: of the draws.
        batch_size: sentences encoded at once.

    Returns:
        (num_sentences,) float64 tensors in nats per sentence: "elbo", "token_nll", "kl", "length_nll" (not with
        alignment "ctc"), and "importance_weighted".

    Raises:
        ValueError: for different numbers of sentences, no sample, a model in training mode, and pairs that cannot be
            scored.
    """
    if len(source_ids) != len(target_ids):
        raise ValueError(f"{len(source_ids)} sources, but {len(target_ids)} targets.")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    if model.training:
        raise ValueError("The model is in training mode: its dropout would change the bound. Call model.eval().")
    lengths = [(len(source), len(target)) for source, target in zip(source_ids, target_ids, strict=True)]
    names = [name for name in ELBO_PARTS if name != "length_nll" or model.config.alignment == "length"]
    bounds = {name: torch.zeros(len(lengths), dtype=torch.float64) for name in (*names, "importance_weighted")}
    for rows in sorted_batches(lengths, batch_size):
        batch = _batch_bounds(model, [source_ids[i] for i in rows], [target_ids[i] for i in rows], num_samples, seed)
        for name, values in batch.items():
            bounds[name][rows] = values.cpu()
    return bounds


def _batch_bounds(
    model: PreTrainedModel, source_ids: list[list[int]], target_ids: list[list[int]], num_samples: int, seed: int
) -> dict[str, torch.Tensor]:
    """The bounds of one batch, (batch,) float64 each."""
    config, pad_token_id = model.config, model.config.pad_token_id
    input_ids = pad_rows(source_ids, pad_token_id).to(model.device)
    labels = pad_rows(target_ids, IGNORED_LABEL).to(model.device)
    attention_mask = check_inputs(config, input_ids, None, labels)
    target_mask = (labels != IGNORED_LABEL).long()
    offsets = target_mask.sum(-1) - attention_mask.sum(-1)

    source = model.encode(input_ids, attention_mask)
    means, stds = model.infer_posterior(source, labels.masked_fill(target_mask == 0, pad_token_id), target_mask)
    kl = gaussian_kl(means, stds, source.prior_means, source.prior_stds, attention_mask).sum(-1).double()
    noise = _noise(source_ids, num_samples, seed, means).to(means.device)  # (batch, samples, source_length, latent_dim)
    latents = means[:, None] + stds[:, None] * noise
    log_ratios = gaussian_log_density(latents, source.prior_means[:, None], source.prior_stds[:, None])
    log_ratios = log_ratios - gaussian_log_density(latents, means[:, None], stds[:, None])
    log_ratios = (log_ratios.sum(-1) * attention_mask[:, None]).sum(-1).double()  # (batch, samples)

    is_ctc = config.alignment == "ctc"
    # Of the decoder's positions.
    mask = ctc_cell_mask(attention_mask, config.upsampling_ratio) if is_ctc else target_mask
    token_nlls, length_nlls = [], []
    samples_at_once = max(1, LOGITS_AT_ONCE // (mask.numel() * config.decoder_vocab_size))
    for some in latents.split(samples_at_once, dim=1):
        rows = torch.arange(len(labels), device=labels.device).repeat_interleave(some.shape[1])
        repeated = source.select(rows)
        some = some.flatten(0, 1)  # (batch * samples, source_length, latent_dim), the samples of a sentence together
        logits = model.decode(repeated, some, mask[rows])
        if is_ctc:
            nll, _ = ctc_nll(logits, labels[rows], mask[rows], pad_token_id)
        else:
            nll, _ = token_nll(logits, labels[rows])
            length_nlls.append(length_nll(model.predict_length(repeated, some), offsets[rows]).view(len(labels), -1))
        token_nlls.append(nll.view(len(labels), -1))
    nlls = {"token_nll": token_nlls} if is_ctc else {"token_nll": token_nlls, "length_nll": length_nlls}
    samples = {name: torch.cat(parts, dim=1).double() for name, parts in nlls.items()}  # (batch, samples)
    means = {name: values.mean(-1) for name, values in samples.items()}
    weights = log_ratios - sum(samples.values())
    return {
        **{"elbo": -(kl + sum(means.values())), "kl": kl, **means},
        "importance_weighted": weights.logsumexp(-1) - math.log(num_samples),
    }


def pad_rows(sequences: Sequence[list[int]], value: int) -> torch.Tensor:
    """(sentences, longest) int64, padded on the right."""
    return pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True, padding_value=value)


def _noise(source_ids: list[list[int]], num_samples: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    """Standard normal, (batch, samples, source_length, latent_dim), 0 at padding."""
    noise = torch.zeros(len(source_ids), num_samples, *like.shape[1:])
    for row, ids in enumerate(source_ids):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {ids}".encode()))
        noise[row, :, : len(ids)] = torch.randn(num_samples, len(ids), like.shape[-1], generator=generator)
    return noise
