"""Which tokens of a translation are a stutter: a word, or a piece of a word, that parallel decoding has given twice.

What is unusual: positions that cannot see each other's words often choose the same one; but a text may repeat itself
too. So what is left alone is a token without a letter (in numbers, `...`, `!!!`), a word in a sentence whose source
repeats a word (`very, very`), a word that grammar doubles (`dass das das Beste ist`), and what stands between signs.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

SPACE_MARK = "\u2581"  # how a vocabulary spells a space: it begins a word

# What stands twice in a row in more than one of a hundred thousand German or English sentences.
DOUBLED_WORDS = frozenset(["das", "der", "die", "ihr", "sie", "wer", "had", "her", "that", "you"])
# Where the tokenizer itself spells a word with a piece twice in a row (`K-uck-uck`), so many letters are a stutter.
LONG_PIECE = 4

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORD = re.compile(r"[^\W_]*[^\W\d_][^\W_]*")
_DOUBLED_WORD = re.compile(rf"(?<!\w)({_WORD.pattern})\W+\1(?!\w)")
_DOUBLED_SYLLABLES = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2,})\W*\1")  # of scripts without spaces


class _Word(NamedTuple):
    """Pieces `start` to `end` of a translation, without the signs around them."""

    start: int
    end: int
    text: str  # "" if a piece has no letter
    begins_bare: bool  # no sign stands before it in the same word
    ends_bare: bool


def repeats_a_word(text: str) -> bool:
    """Whether a text has a word twice in a row, or one of four letters or more twice anywhere."""
    text = text.casefold()
    long_words = [word for word in _WORD.findall(text) if len(word) >= 4]
    is_doubled = _DOUBLED_WORD.search(text) or _DOUBLED_SYLLABLES.search(text)
    return bool(is_doubled) or len(set(long_words)) < len(long_words)


def find_stutter(pieces: Sequence[str], source_text: str, is_as_encoded: Callable[[int, int], bool]) -> list[bool]:
    """For each token of a translation, whether it only repeats what stands before it.

    That is a word that equals the one before it; and a piece that equals the one before it in the same word, if the
    vocabulary would not spell the word so or the piece is long.

    Args:
        pieces: of the vocabulary, with `SPACE_MARK` where a word begins; special tokens are "".
        source_text: what was translated.
        is_as_encoded: whether the pieces from a start to an end are what the tokenizer makes of their text.
    """
    is_stutter = [False] * len(pieces)
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece[:1] in ("", SPACE_MARK) or not pieces[i - 1]]
    source_repeats, source_text = repeats_a_word(source_text), source_text.casefold()
    run, before = 1, None  # how often a word has come in a row
    for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
        word = _word(pieces, start, end)
        for i in range(word.start + 1, word.end):
            piece = pieces[i]
            if piece == pieces[i - 1] and _has_letter(piece) and (piece * 2).casefold() not in source_text:
                is_stutter[i] = len(piece) >= LONG_PIECE or not is_as_encoded(start, end)
        is_same = before is not None and word.text == before.text != "" and before.ends_bare and word.begins_bare
        run = run + 1 if is_same else 1
        if not source_repeats and run > (2 if word.text in DOUBLED_WORDS else 1):
            is_stutter[word.start : word.end] = [True] * (word.end - word.start)
        before = word
    return is_stutter


def _word(pieces: Sequence[str], start: int, end: int) -> _Word:
    def is_sign(piece: str) -> bool:
        return not any(map(str.isalnum, piece))

    first, last = start, end
    while first < end and is_sign(pieces[first]):
        first += 1
    while last > first and is_sign(pieces[last - 1]):
        last -= 1
    begins_bare = all(piece == SPACE_MARK for piece in pieces[start:first])
    if begins_bare:
        first = start
    is_known = all(piece == SPACE_MARK or _has_letter(piece) for piece in pieces[first:last])
    text = "".join(pieces[first:last]).lstrip(SPACE_MARK) if is_known else ""
    return _Word(first, last, text, begins_bare, last == end)


def _has_letter(piece: str) -> bool:
    return _BYTE.fullmatch(piece) is None and any(map(str.isalpha, piece))
