"""Degenerate translations: what is counted as one, by which name, and what stands in for it."""

from collections.abc import Sequence

# In the order they are tried. The first two are sources that the teacher is never given.
KINDS = ("empty_source", "source_too_long", "empty", "loop", "cut")
HANDLINGS = ("reference", "drop", "keep")
LONGEST_LOOPED = 4  # tokens
FEWEST_REPEATS = 4


def most_repeats(ids: Sequence[int], longest: int = LONGEST_LOOPED) -> int:
    """How often in a row an n-gram of 1 to `longest` tokens comes at most: 1 if none is repeated, 0 without tokens."""
    most = min(1, len(ids))
    for n in range(1, longest + 1):
        run = 0  # tokens in a row that are those n places before
        for index in range(n, len(ids)):
            run = run + 1 if ids[index] == ids[index - n] else 0
            most = max(most, run // n + 1)
    return most


def is_loop(translation: Sequence[int], source: Sequence[int], reference: Sequence[int]) -> bool:
    """Whether a translation says the same again and again.

    It does if an n-gram of up to 4 tokens comes at least 4 times in a row, and more than twice as often as any does in
    the source or the reference: "1,000,000,000" and "ha ha ha ha" may be repeated.

    Args:
        translation, source, reference: token ids.
    """
    repeats = most_repeats(translation)
    if repeats < FEWEST_REPEATS:
        return False
    return repeats > 2 * max(most_repeats(source), most_repeats(reference))
