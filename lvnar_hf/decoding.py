"""Sentences sorted by length, in batches of a token budget."""

from collections.abc import Sequence


def make_batches(lengths: Sequence[int], max_tokens: int) -> list[range]:
    """Consecutive sentences whose padded tokens do not exceed `max_tokens`; a longer sentence is a batch of its own."""
    batches, start, longest = [], 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index > start and longest * (index + 1 - start) > max_tokens:
            batches.append(range(start, index))
            start, longest = index, length
    if lengths:
        batches.append(range(start, len(lengths)))
    return batches
