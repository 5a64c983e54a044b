"""Batches of a token budget, grouped by length, and their tensors. What is off by one in seq2seq is decided here.

Source and target both end with the end-of-sentence token, and lengths count it. There is no beginning-of-sentence
token and nothing is shifted: position i of the decoder predicts label i.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lvnar_hf.losses_lvnar import IGNORED_LABEL


def plan_batches(
    source_lengths: Sequence[int] | np.ndarray,
    target_lengths: Sequence[int] | np.ndarray,
    max_tokens: int,
    seed: int,
    epoch: int,
) -> list[np.ndarray]:
    """Cut a corpus into batches of sentences alike in length; the same plan for the same seed and epoch.

    Args:
        source_lengths, target_lengths: tokens of each pair.
        max_tokens: sentences times the longest side, padding included, stays within it.
        seed, epoch: decide the order of equal lengths and the order of the batches.

    Returns:
        Batches of indices, (sentences,) each; every pair is in exactly one.

    Raises:
        ValueError: if a pair alone exceeds the budget.
    """
    source, target = np.asarray(source_lengths), np.asarray(target_lengths)
    longest = np.maximum(source, target)
    if len(longest) and longest.max() > max_tokens:
        raise ValueError(
            f"A pair has {longest.max()} tokens on a side; max_tokens_per_batch is {max_tokens}. Raise it, or leave "
            "such pairs out: lower max_sentence_length for training, max_position_embeddings for validation."
        )
    generator = np.random.default_rng([seed, epoch])
    # By the longer side; then by how much longer the source is, up and down in turn, so that neighbours in the order
    # are alike on both sides even where the longer side changes.
    difference = np.where(longest % 2 == 0, source - target, target - source)
    order = np.lexsort((generator.random(len(longest)), difference, longest))
    sorted_lengths = longest[order].tolist()
    bounds = [0]
    while (start := bounds[-1]) < len(order):
        # The last sentence of a batch is its longest, and the batch only gets larger with each sentence.
        last_possible = min(start + max_tokens // sorted_lengths[start], len(order))
        candidates = range(start + 1, last_possible + 1)
        bounds.append(
            start + bisect_right(candidates, max_tokens, key=lambda end: (end - start) * sorted_lengths[end - 1])
        )
    return [order[bounds[i] : bounds[i + 1]] for i in generator.permutation(len(bounds) - 1).tolist()]


class TokenBudgetBatchSampler:
    """The batches of one process: the plan of the epoch, floored to whole steps of all processes, sliced by rank.

    Iterating does not advance the epoch; `set_epoch` does. What is left over is another part of the data each epoch.

    Args:
        source_lengths, target_lengths, max_tokens, seed: see `plan_batches`.
        rank, world_size: this process and how many there are; process r takes batch r of every round.
        batches_per_step: batches that each process accumulates for an optimizer step.
    """

    def __init__(
        self,
        source_lengths: Sequence[int] | np.ndarray,
        target_lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches_per_step: int = 1,
    ):
        self.source_lengths, self.target_lengths = source_lengths, target_lengths
        self.max_tokens, self.seed = max_tokens, seed
        self.rank, self.world_size, self.batches_per_step = rank, world_size, batches_per_step
        self.set_epoch(0)

    def set_epoch(self, epoch: int, num_batches_done: int = 0) -> None:
        """Plan an epoch, without the batches of it that this process has done already."""
        plan = plan_batches(self.source_lengths, self.target_lengths, self.max_tokens, self.seed, epoch)
        batches_of_step = self.world_size * self.batches_per_step
        if len(plan) < batches_of_step:
            raise ValueError(
                f"{len(self.source_lengths)} pairs give {len(plan)} batches, and a step takes {batches_of_step} "
                f"({self.world_size} processes, {self.batches_per_step} batches each); lower max_tokens_per_batch."
            )
        batches = plan[: len(plan) // batches_of_step * batches_of_step][self.rank :: self.world_size]
        self.batches = batches[num_batches_done:]

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TranslationCollator:
    """Rows with `input_ids` and `labels` to padded tensors, (batch, longest)."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids, source_mask = _pad([row["input_ids"] for row in rows], self.pad_token_id)
        labels, _ = _pad([row["labels"] for row in rows], IGNORED_LABEL)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(source_mask.astype(np.int64)),
            "labels": torch.from_numpy(labels),
            "row_ids": torch.tensor([row["row_id"] for row in rows]),
        }


def _pad(sequences: list[Sequence[int]], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences at the left of an array (sequences, longest), the rest `value`; and the mask of what is theirs."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, value, np.int64)
    padded[mask] = np.concatenate(sequences)
    return padded, mask
