"""The words of a translation: where they stand in its text, and which tokens say them.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import math
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple, TypedDict

from .segmentation_lvnar import is_unspaced as is_unspaced_character


class WordSpan(NamedTuple):
    """A word in a text, from `start` to `end` in characters, and what the model gives it."""

    start: int
    end: int
    probability: float


def word_spans(tokenizer: Any, token_ids: Sequence[int], probabilities: Sequence[float]) -> list[WordSpan]:
    """The words of a translation, `tokenizer.decode(token_ids, skip_special_tokens=True)`, in order.

    A word is what stands between white space; in text without spaces, a subword. Its probability is the product of
    those of its subwords that have a letter or a digit, so that signs around it do not count; of a word without
    them, that of all. Special tokens have no word.

    Args:
        token_ids, probabilities: one for each token.
    """
    text, pieces = _pieces(tokenizer, token_ids)
    if is_unspaced([text]):
        spans = [(start, end) for start, end, _, _ in pieces if not text[start:end].isspace()]
    else:
        spans = _between_spaces(text)
    words = []
    first = 0
    for start, end in spans:
        inside = []
        while first < len(pieces) and pieces[first][1] <= start:
            first += 1
        for piece in pieces[first:]:
            if piece[0] >= end:
                break
            inside.append(piece)
        told = [p for p in inside if any(map(str.isalnum, text[max(start, p[0]) : min(end, p[1])]))] or inside
        numbers = [probabilities[i] for _, _, one, other in told for i in range(one, other)]
        words.append(WordSpan(start, end, math.prod(numbers)))
    return words


def _between_spaces(text: str) -> list[tuple[int, int]]:
    spans, position = [], 0
    for word in text.split():
        start = text.index(word, position)
        position = start + len(word)
        spans.append((start, position))
    return spans


def is_unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters of the texts are of scripts that put no spaces between words."""
    letters = [character for text in texts for character in text if character.isalnum()]
    return 2 * sum(map(is_unspaced_character, letters)) > len(letters)


def split_words(text: str) -> list[str]:
    """What stands between white space."""
    return text.split()


def split_subwords(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of a translation in pieces, which joined are the whole text again.

    A piece is a subword where the text can be cut there: the bytes of one character, or subwords that are joined in
    another way when more follow, stay in one piece.
    """
    text, pieces = _pieces(tokenizer, ids)
    return [text[start:end] for start, end, _, _ in pieces]


def _pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int, int, int]]]:
    """The text, and its pieces: from and to which character, from and to which token."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    pieces, position, first = [], 0, 0
    for last in range(1, len(ids) + 1):
        beginning = tokenizer.decode(list(ids[:last]), skip_special_tokens=True)
        if len(beginning) > position and text.startswith(beginning):
            pieces.append((position, len(beginning), first, last))
            position, first = len(beginning), last
    return text, pieces


class ScoredWord(TypedDict):
    """A word of a text with what is known of it.

    Attributes:
        start, end: where it stands in the text, in characters.
        confidence: from 0 to 1; of what was copied 1.
        is_uncertain: its confidence is below the calibration's threshold.
        is_copied: the model did not say it: a span that must not change, and what else stays as it was.
    """

    text: str
    start: int
    end: int
    confidence: float
    is_uncertain: bool
    is_copied: bool


def place_words(text: str, source_text: str, drafts: Sequence[Sequence[Sequence[ScoredWord]]]) -> list[ScoredWord]:
    """The words of a text that was put together from translations and from what was kept of its source.

    Words are found again by alignment, since what puts texts together may change letters' case and signs; in text
    without spaces, characters. A word of the text that no translation has was copied, if the source has it; else it
    has the least confidence of those that stand in its place.

    Args:
        drafts: the words of each translation, in the order of the text: those that were made first; then those that
            took the place of some of them; and so on.
    """
    unspaced = is_unspaced([text])
    units = [(i, i + 1) for i, c in enumerate(text) if not c.isspace()] if unspaced else _between_spaces(text)
    key: Callable[[str], str] = str.casefold if unspaced else _core
    keys = [key(text[start:end]) for start, end in units]
    sources: dict[int, list[ScoredWord]] = {}  # of each unit
    is_found: set[int] = set()
    for level in drafts:
        words = [word for draft in level for word in draft]
        said = [(key(part), word) for word in words for part in (word["text"] if unspaced else [word["text"]])]
        said = [(part, word) for part, word in said if part]
        places = [place for place in range(len(units)) if place not in is_found]
        matcher = SequenceMatcher(None, [part for part, _ in said], [keys[place] for place in places], autojunk=False)
        for tag, i, j, k, m in matcher.get_opcodes():
            if tag == "equal":
                is_found.update(places[k:m])
                sources.update({place: [word] for place, (_, word) in zip(places[k:m], said[i:j], strict=True)})
            elif tag == "replace":
                sources.update({place: [word for _, word in said[i:j]] for place in places[k:m]})
    kept = set(map(key, source_text if unspaced else source_text.split()))
    placed: list[ScoredWord] = []
    last_sources: list[ScoredWord] | None = None
    for place, (start, end) in enumerate(units):
        own = sources.get(place, []) if place in is_found or keys[place] not in kept else []
        if placed and unspaced and end - 1 == placed[-1]["end"] and own == last_sources:  # the same subword
            placed[-1]["text"], placed[-1]["end"] = placed[-1]["text"] + text[start:end], end
            continue
        least = min(own, key=lambda word: word["confidence"], default=None)
        placed.append(
            {
                "text": text[start:end],
                "start": start,
                "end": end,
                "confidence": 1.0 if least is None else least["confidence"],
                "is_uncertain": False if least is None else least["is_uncertain"],
                "is_copied": least is None,
            }
        )
        last_sources = own
    return placed


def _core(word: str) -> str:
    """A word without its signs, and whatever its case."""
    return "".join(filter(str.isalnum, word)).casefold()
