"""Batches of a token budget, grouped by length, and their tensors. What is off by one in seq2seq is decided here.

Source and target both end with the end-of-sentence token, and lengths count it. There is no beginning-of-sentence
token and nothing is shifted: position i of the decoder predicts label i.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lvnar_hf.losses_lvnar import IGNORED_LABEL


def plan_batches(
    source_lengths: Sequence[int], target_lengths: Sequence[int], max_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Cut a corpus into batches of sentences alike in length; the same plan for the same seed and epoch.

    Args:
        source_lengths, target_lengths: tokens of each pair.
        max_tokens: sentences times the longest side, padding included, stays within it.
        seed, epoch: decide the order of equal lengths and the order of the batches.

    Returns:
        Batches of indices; every pair is in exactly one.

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
    # Nearly equal target lengths, within them by source length: little padding on either side.
    order = np.lexsort((generator.random(len(longest)), source, target))
    batches: list[list[int]] = []
    batch: list[int] = []
    batch_longest = 0
    for index in order.tolist():
        length = int(longest[index])
        if batch and (len(batch) + 1) * max(batch_longest, length) > max_tokens:
            batches.append(batch)
            batch, batch_longest = [], 0
        batch.append(index)
        batch_longest = max(batch_longest, length)
    if batch:
        batches.append(batch)
    return [batches[i] for i in generator.permutation(len(batches)).tolist()]


class TokenBudgetBatchSampler:
    """The batches of one process: the plan of the epoch, floored to whole rounds of all processes, sliced by rank.

    Iterating does not advance the epoch; `set_epoch` does.
    """

    def __init__(
        self,
        source_lengths: Sequence[int],
        target_lengths: Sequence[int],
        max_tokens: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.source_lengths, self.target_lengths = source_lengths, target_lengths
        self.max_tokens, self.seed = max_tokens, seed
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, num_batches_done: int = 0) -> None:
        """Plan an epoch, without the batches of it that this process has done already."""
        plan = plan_batches(self.source_lengths, self.target_lengths, self.max_tokens, self.seed, epoch)
        if len(plan) < self.world_size:
            raise ValueError(
                f"{len(self.source_lengths)} pairs give {len(plan)} batches for {self.world_size} processes; "
                "lower max_tokens_per_batch."
            )
        batches = plan[: len(plan) // self.world_size * self.world_size][self.rank :: self.world_size]
        self.batches = batches[num_batches_done:]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TranslationCollator:
    """Rows with `input_ids` and `labels` to padded tensors, (batch, longest)."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        source = [torch.tensor(row["input_ids"]) for row in rows]
        target = [torch.tensor(row["labels"]) for row in rows]
        input_ids = torch.nn.utils.rnn.pad_sequence(source, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(s) for s in source])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": torch.nn.utils.rnn.pad_sequence(target, batch_first=True, padding_value=IGNORED_LABEL),
            "row_ids": torch.tensor([row["row_id"] for row in rows]),
        }
