"""The translations that all alignments together make likeliest: prefix beam search (Graves et al., 2006) over cells.

The likeliest cells, collapsed, are one alignment; a translation has many. For each prefix the search keeps the
probability of all alignments of the cells so far that spell it, in two parts, by whether the last cell is blank:

    b(y)      ends in blank: (b(y) + n(y)) p_t(∅)
    n(y)      ends in its last token: n(y) p_t(y_L) + n'(y_1..L-1), where n' is b + n, or b alone if y_L = y_{L-1}

of the prefixes at hand and of those that one token more makes of them, the best `beam_size` go on to the next cell.
Most cells leave little to choose, so that plain numbers in a loop are quicker here than tensors.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

# What stays out of the numbers' limits: probabilities are scaled again where they leave these.
_SMALLEST, _LARGEST, _MAX_ADDED = 1e-100, 1e100, 300.0


class LanguageModel(Protocol):
    """Of the target language, token by token; its states are whatever it likes."""

    def start(self) -> Any:
        """The state before the first token."""

    def extend(self, state: Any, token_id: int) -> tuple[Any, float]:
        """The state after a token more, and the token's log-probability in nats."""


class BeamOptions(NamedTuple):
    """How to search.

    Args:
        beam_size: prefixes that go on from each cell.
        token_bonus: what is added for each token, in nats.
        language_model: its log-probabilities, times `language_model_weight`, are added.
        tokens_per_cell: only the likeliest ones of a cell begin a longer prefix, ...
        min_probability: ... and of those prefixes the ones that have at least this share of the probability that the
            likeliest prefix and the cell's likeliest token, or blank, have together.
    """

    beam_size: int = 20
    token_bonus: float = 0.0
    language_model: LanguageModel | None = None
    language_model_weight: float = 0.3
    tokens_per_cell: int = 10
    min_probability: float = 3e-3


class Cells(NamedTuple):
    """What there is to choose from in the T cells of a sentence.

    Args:
        tokens: (T, k) the likeliest ids of each cell, without blank.
        probabilities: (T, k) theirs.
        repeats: (T, k) the probabilities, in a cell, of the tokens of the cell before it; in the first one, anything.
        blanks: (T,) probabilities.
    """

    tokens: Sequence[Sequence[int]]
    probabilities: Sequence[Sequence[float]]
    repeats: Sequence[Sequence[float]]
    blanks: Sequence[float]

    @classmethod
    def from_choices(cls, tokens: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> "Cells":
        """Those of (T, k) ids and (T, 2 k + 1) probabilities, repeats, and blank's probability."""
        half = len(scores[0]) // 2
        probabilities, repeats = ([row[start : start + half] for row in scores] for start in (0, half))
        return cls(tokens, probabilities, repeats, [row[-1] for row in scores])


class _Prefixes:
    """All prefixes that were looked at, by number: 0 is the empty one.

    Attributes:
        last: the last token of each.
        factors: e to the power of what bonus and language model add for that token.
    """

    def __init__(self, options: BeamOptions):
        self.last, self.factors = [-1], [1.0]
        self._parents, self._longer = [0], {}  # type: tuple[list[int], dict[tuple[int, int], int]]
        self._options, self._model = options, options.language_model
        self._states = [None if self._model is None else self._model.start()]

    def longer(self, prefix: int, token: int) -> int:
        """The prefix with a token more."""
        number = self._longer.get((prefix, token))
        if number is None:
            number = self._longer[prefix, token] = len(self.last)
            added, state = self._options.token_bonus, None
            if self._model is not None:
                state, log_probability = self._model.extend(self._states[prefix], token)
                added += self._options.language_model_weight * log_probability
            self.last.append(token)
            self.factors.append(math.exp(max(-_MAX_ADDED, min(added, _MAX_ADDED))))
            self._parents.append(prefix)
            self._states.append(state)
        return number

    def ids(self, prefix: int) -> list[int]:
        tokens = []
        while prefix:
            tokens.append(self.last[prefix])
            prefix = self._parents[prefix]
        return tokens[::-1]


def prefix_beam_search(cells: Cells, options: BeamOptions) -> list[tuple[list[int], float]]:
    """The likeliest translations of a sentence, at most `beam_size`, the best first.

    Returns:
        Their ids, and log-probabilities in nats: all alignments of the beam together, with what bonus and language
        model add.
    """
    prefixes = _Prefixes(options)
    beam, log_scale = [(0, 1.0, 0.0)], 0.0  # prefixes with b and n
    tokens_before: Sequence[int] = ()
    for tokens, probabilities, repeats, blank in zip(*cells, strict=True):
        least = options.min_probability * max(blank, *probabilities)
        choices = [(token, p) for token, p in zip(tokens, probabilities, strict=True) if p > least]
        least *= beam[0][1] + beam[0][2]
        again = dict(zip(tokens_before, repeats, strict=False)) | dict(choices)
        tokens_before = tokens
        following: dict[int, list[float]] = {}
        for prefix, in_blank, in_token in beam:
            total, last = in_blank + in_token, prefixes.last[prefix]
            parts = following.setdefault(prefix, [0.0, 0.0])
            parts[0] += total * blank
            if in_token:
                parts[1] += in_token * again.get(last, 0.0)
            for token, probability in choices:
                both = (in_blank if token == last else total) * probability
                if both > least:
                    longer = prefixes.longer(prefix, token)
                    following.setdefault(longer, [0.0, 0.0])[1] += both * prefixes.factors[longer]
        ranked = sorted(following.items(), key=lambda item: -item[1][0] - item[1][1])[: options.beam_size]
        beam = [(prefix, parts[0], parts[1]) for prefix, parts in ranked if parts[0] + parts[1] > 0.0]
        best = beam[0][1] + beam[0][2]
        if not _SMALLEST < best < _LARGEST:
            beam = [(prefix, in_blank / best, in_token / best) for prefix, in_blank, in_token in beam]
            log_scale += math.log(best)
    return [(prefixes.ids(prefix), math.log(in_blank + in_token) + log_scale) for prefix, in_blank, in_token in beam]
