"""Many sentences in batches of sentences alike in length, and the results in the order of the sentences."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


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


def sorted_batches(lengths: Sequence[Any], batch_size: int, rows: Iterable[int] | None = None) -> list[list[int]]:
    """Rows in batches of at most `batch_size`, the shortest first; equally long ones keep their order.

    Args:
        lengths: of all rows, by which they are sorted: a number each, or several, the first before the others.
        rows: those that are taken; None: all.
    """
    order = sorted(range(len(lengths)) if rows is None else rows, key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def decode_batches(decode: Callable[[list[int]], Iterable[Result]], batches: Iterable[list[int]]) -> dict[int, Result]:
    """What `decode` gives for the rows of each batch, by row, in the order of the rows.

    Raises:
        ValueError: a batch has another number of results than rows.
    """
    results = {row: result for rows in batches for row, result in zip(rows, decode(rows), strict=True)}
    return dict(sorted(results.items(), key=lambda item: item[0]))
