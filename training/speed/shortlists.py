"""A shortlist of the vocabulary: its candidates by IBM Model 1, its least confidence, and what it leaves out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lvnar_hf.engines.shortlist import Shortlist

BATCH_SIZE = 32


@dataclass
class DecoderStates:
    """Of a batch, what the decoder says of each of its valid positions.

    Attributes:
        input_ids, attention_mask: (sentences, length), of the sources.
        sentences: (positions,) which sentence.
        logits: (positions, target_vocab_size), that of padding -inf, if it is not blank.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sentences: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def decoder_states(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, num_refinement_steps: int = 1
) -> DecoderStates:
    """After so many refinement steps; source ids and mask are (sentences, length)."""
    source = model.encode(input_ids, attention_mask)
    latents = source.prior_means
    if num_refinement_steps:
        options = {"num_refinement_steps": num_refinement_steps - 1, "remove_repetitions": False}
        targets = model.generate(input_ids, attention_mask=attention_mask, **options)
        latents, _ = model.infer_posterior(source, targets, (targets != model.config.pad_token_id).long())
    mask, _ = model.target_positions(source, latents)
    logits = model.decode(source, latents, mask)[mask.bool()]
    if model.config.alignment == "length":
        logits[:, model.config.pad_token_id] = float("-inf")
    return DecoderStates(input_ids, attention_mask, mask.nonzero()[:, 0], logits)


def aligned_counts(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], source_size: int, target_size: int, num_iterations: int
) -> np.ndarray:
    """How often each target token is expected to translate each source token, by IBM Model 1 with an empty word.

    Args:
        pairs: source and target ids.
        num_iterations: of expectation maximisation.

    Returns:
        (source_size, target_size) float32.
    """
    empty = source_size
    sources, targets, positions, num_positions = [], [], [], 0
    for source_ids, target_ids in pairs:
        source, target = np.array([empty, *source_ids]), np.asarray(target_ids)
        sources.append(np.tile(source, len(target)))
        targets.append(np.repeat(target, len(source)))
        positions.append(num_positions + np.repeat(np.arange(len(target)), len(source)))
        num_positions += len(target)
    position = np.concatenate(positions)
    links = np.concatenate(sources).astype(np.int64) * target_size + np.concatenate(targets)
    kinds, kind = np.unique(links, return_inverse=True)  # of links, each (source token, target token) once
    probabilities = np.ones(len(kinds))
    for _ in range(num_iterations):
        weights = probabilities[kind]
        weights /= np.bincount(position, weights, minlength=num_positions)[position]
        counts = np.bincount(kind, weights, minlength=len(kinds))
        totals = np.bincount(kinds // target_size, counts, minlength=source_size + 1)
        probabilities = counts / totals[kinds // target_size]
    table = np.zeros((source_size + 1, target_size), dtype=np.float32)
    table.flat[kinds] = counts
    return table[:empty]


def make_shortlist(counts: np.ndarray, frequent: torch.Tensor, num_candidates: int, pad_token_id: int) -> Shortlist:
    """The candidates with the largest counts that are not frequent ones; whatever the confidence, they are enough.

    Args:
        counts: (source_size, target_size), of `aligned_counts`.
        frequent: (n,) target tokens.
    """
    others = torch.from_numpy(counts).clone()
    others[:, frequent] = 0
    best, candidates = others.topk(min(num_candidates, others.shape[1]))
    candidates = candidates.masked_fill(best == 0, pad_token_id)
    return Shortlist(candidates.int(), frequent.int(), torch.tensor(float("-inf")))


def confidences(states: DecoderStates, shortlist: Shortlist, config: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of each position, the log probability of the best among those tried, and whether a likelier token is not tried.

    Returns:
        (positions,), (positions,) bool, and the number of tokens tried, over all sentences.
    """
    tried = shortlist.candidates_of(states.input_ids, states.attention_mask, config)
    is_padding = shortlist.is_padding(tried, config)
    scores = states.logits.gather(1, tried[states.sentences])
    scores = scores.masked_fill(is_padding[states.sentences], float("-inf"))
    highest = scores.amax(-1)
    return highest - scores.logsumexp(-1), states.logits.amax(-1) > highest, int((~is_padding).sum())


def calibrate(shortlist: Shortlist, batches: Sequence[DecoderStates], config: Any, whole_share: float) -> Shortlist:
    """With the confidence that `whole_share` of the positions do not have."""
    values = torch.cat([confidences(states, shortlist, config)[0] for states in batches])
    least = values.sort().values[int(whole_share * len(values))]
    return Shortlist(shortlist.candidates, shortlist.frequent, least)


def measure(shortlist: Shortlist, batches: Sequence[DecoderStates], config: Any) -> dict[str, float]:
    """Share of positions that miss the likeliest token, by the list alone and with the check; shares and sizes."""
    values, is_missed, sizes = zip(*(confidences(states, shortlist, config) for states in batches), strict=True)
    has_whole = torch.cat(values) < shortlist.min_confidence
    missed = torch.cat(is_missed)
    return {
        "missed_without_check": missed.double().mean().item(),
        "missed": (missed & ~has_whole).double().mean().item(),
        "whole_share": has_whole.double().mean().item(),
        "mean_size": sum(sizes) / sum(len(states.input_ids) for states in batches),
    }


def states_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> Iterator[DecoderStates]:
    options = {"padding": True, "truncation": True, "max_length": model.config.max_position_embeddings}
    for start in tqdm(range(0, len(texts), BATCH_SIZE), desc="decoder's states", unit="batch"):
        encoded = tokenizer(list(texts[start : start + BATCH_SIZE]), **options, return_tensors="pt")
        yield decoder_states(model, encoded["input_ids"], encoded["attention_mask"])
