"""Batches of a token budget: every pair once, little padding, the same plan for every process."""

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed

from training.data.batching import TokenBudgetBatchSampler, TranslationCollator, plan_batches


def realistic_lengths(num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal source lengths up to 60, median 9, as in Tatoeba; targets a fifth longer or shorter by chance."""
    generator = np.random.default_rng(0)
    source = generator.lognormal(2.2, 0.45, num_pairs)
    target = source * generator.lognormal(0.0, 0.18, num_pairs) + generator.normal(0.0, 1.0, num_pairs)
    return tuple(np.clip(np.rint(lengths), 2, 60).astype(int) for lengths in (source, target))


@pytest.mark.parametrize("max_tokens", [60, 1536])
def test_every_pair_is_in_one_batch_within_the_budget(max_tokens):
    source, target = realistic_lengths(3000)
    plan = plan_batches(source, target, max_tokens, seed=1, epoch=0)
    assert sorted(index for batch in plan for index in batch) == list(range(3000))
    for batch in plan:
        assert len(batch) * max(source[batch].max(), target[batch].max()) <= max_tokens


def test_the_plan_depends_on_seed_and_epoch_alone():
    lengths = realistic_lengths(3000)

    def plan_of(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_batches(*lengths, 1536, seed=seed, epoch=epoch)]

    plan = plan_of(seed=1, epoch=2)
    set_seed(5)
    np.random.random(3)
    assert plan_of(seed=1, epoch=2) == plan
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = plan_of(seed=seed, epoch=epoch)
        assert other != plan
        assert {frozenset(batch) for batch in other} != {frozenset(batch) for batch in plan}  # not only their order


def test_little_is_padding():
    source, target = realistic_lengths(20_000)
    plan = plan_batches(source, target, 1536, seed=1, epoch=0)
    padded = sum(len(batch) * (source[batch].max() + target[batch].max()) for batch in plan)
    assert 1 - (source.sum() + target.sum()) / padded < 0.08
    full = [len(batch) * max(source[batch].max(), target[batch].max()) for batch in plan]
    assert np.mean(full) > 0.9 * 1536


def test_a_pair_over_the_budget_is_refused():
    with pytest.raises(ValueError, match="has 11 tokens on a side; max_tokens_per_batch is 10"):
        plan_batches([3, 4], [3, 11], max_tokens=10, seed=1, epoch=0)
    assert plan_batches([3, 4], [3, 11], max_tokens=11, seed=1, epoch=0)


@pytest.mark.parametrize("num_processes", [2, 5])
def test_processes_share_the_plan_without_overlap(num_processes):
    lengths = realistic_lengths(3000)
    samplers = [TokenBudgetBatchSampler(*lengths, 1536, 1, rank, num_processes) for rank in range(num_processes)]
    num_left_out = set()
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        plan = plan_batches(*lengths, 1536, seed=1, epoch=epoch)
        slices = [list(sampler) for sampler in samplers]
        assert [len(part) for part in slices] == [len(plan) // num_processes] * num_processes
        assert [len(sampler) for sampler in samplers] == [len(part) for part in slices]
        num_left_out.add(len(plan) % num_processes)
        indices = [index for part in slices for batch in part for index in batch]
        assert sorted(indices) == sorted(i for batch in plan[: len(plan) - len(plan) % num_processes] for i in batch)
        assert list(samplers[0]) == slices[0]  # iterating does not advance the epoch
    assert num_processes == 2 or num_left_out != {0}


def test_fewer_batches_than_processes_are_refused():
    with pytest.raises(ValueError, match=r"2 pairs give 1 batches, and a step takes 2 .*; lower max_tokens_per_batch"):
        TokenBudgetBatchSampler([3, 3], [3, 3], 100, seed=1, rank=0, world_size=2)


def test_collator_pads_each_side_with_its_own_value():
    rows = [
        {"row_id": 7, "input_ids": [5, 6, 1], "labels": [8, 1]},
        {"row_id": 3, "input_ids": [0, 1], "labels": [9, 9, 9, 1]},  # an id like padding, inside a sentence
    ]
    batch = TranslationCollator(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [0, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[8, 1, -100, -100], [9, 9, 9, 1]]
    assert batch["row_ids"].tolist() == [7, 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
