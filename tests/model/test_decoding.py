"""Batches of sentences alike in length: every row once, the budget kept, results where they belong."""

import itertools

import pytest

from lvnar_hf.decoding import decode_batches, make_batches, sorted_batches


def test_batches_are_sorted_and_results_are_not():
    lengths = [5, 2, 9, 2, 7]
    batches = sorted_batches(lengths, 2)
    assert batches == [[1, 3], [0, 4], [2]]
    results = decode_batches(lambda rows: [10 * lengths[row] for row in rows], batches)
    assert list(results.items()) == [(0, 50), (1, 20), (2, 90), (3, 20), (4, 70)]
    assert sorted_batches(lengths, 8, rows=[4, 0, 1]) == [[1, 0, 4]] and sorted_batches([], 8) == []
    assert sorted_batches([(2, 3), (2, 1), (1, 9)], 3) == [[2, 1, 0]]
    with pytest.raises(ValueError, match="zip"):
        decode_batches(lambda rows: [0], batches)


@pytest.mark.parametrize("max_tokens", [1, 6, 12, 100])
def test_a_budget_holds_padding_included(max_tokens):
    lengths = [9, 7, 5, 5, 2, 2, 1]
    batches = make_batches(lengths, max_tokens)
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * max(lengths[batch[0]], lengths[following[0]]) > max_tokens
