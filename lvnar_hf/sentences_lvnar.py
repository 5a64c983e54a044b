"""The sentences of a line, and the marks around each of them.

What is protected in a line stands there as a mask, one character: see `text_lvnar`.

This module travels to the Hub with the model: it imports nothing but the standard library. `sentencex`, which finds the
sentences, is imported when a `SentenceSplitter` is made; without it a plain rule serves.
"""

import importlib
import re
import unicodedata
import warnings
from collections.abc import Callable
from typing import Any

# Stand in a line for what is protected: a span that may be a word of the sentence, a mark that is none, and a tag that
# ends a sentence.
SPAN, MARK, BLOCK = "\x01", "\x02", "\x03"
MASKS = (SPAN, MARK, BLOCK)

_WHITE_SPACE = re.compile(r"\s")
# The plain rule, without sentencex.
_FULL_STOPS = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|[。！？]+[」』）]*\s*|[।؟։።]\s*")
_ABBREVIATIONS = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|Nr|Hr|Fr|ca|bzw|usw|\w\.\w)|(?<=\s)\d{1,3})\.\s+$"
)
_JAPANESE_QUOTATION = re.compile("[\u3041-\u309f、。]")
_LONGEST_SEGMENTED = 10_000  # characters that sentencex gets at once

# What stands at the edges of a sentence and is none of it.
_CLOSERS = {
    **{'"': '"', "'": "'’", "“": "”", "”": "”", "„": "“”", "«": "»", "»": "«", "‹": "›", "›": "‹", "‘": "’", "‚": "‘’"},
    **{"(": ")", "[": "]", "{": "}", "「": "」", "『": "』", "（": "）", "【": "】", "《": "》", "〈": "〉"},
    **{"*": "*", "_": "_", "~": "~"},
}
_OPENERS: dict[str, str] = {}
for _opener, _closers in _CLOSERS.items():
    for _closer in _closers:
        _OPENERS[_closer] = _OPENERS.get(_closer, "") + _opener
_APOSTROPHES = "'’"
SENTENCE_ENDS = ".!?…。！？؟।॥։።"
SENTENCE_MARKS = f"{SENTENCE_ENDS},;:、，；：؛،"
_LEADING = re.compile(r"\(?(?:\d{1,3}|[A-Za-z])\)\s+|\[[ xX]?\]\s+|\.{2,}\s*|[*~_]+\s+")
_MOST_WRAPPERS = 8  # brackets and quotation marks that are looked at, on each side of a sentence


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit; masks are none."""
    return any(map(str.isalnum, text))


def is_all_capitals(text: str) -> bool:
    """Whether the text has at least two words, and all its letters are capitals."""
    return text.isupper() and sum(any(map(str.isalpha, word)) for word in text.split()) > 1


def lower_sentence(text: str, language: str) -> str:
    """A sentence in capitals as it would be written, as far as can be known: first letter, and the English "I"."""
    text = text.lower()
    if language == "en":
        text = re.sub(r"\bi\b", "I", text)
    first = next(index for index, character in enumerate(text) if character.isalnum())
    return text[:first] + text[first].upper() + text[first + 1 :]


class SentenceSplitter:
    """Finds the sentences of a line.

    Args:
        language: code, for the rules where sentences end.
    """

    def __init__(self, language: str) -> None:
        self._language, self._has_warned = language, False
        try:
            self._segment: Callable[[str, str], Any] | None = importlib.import_module("sentencex").segment
        except ImportError:
            self._segment = None

    def split(self, line: str) -> list[str]:
        """The sentences of a line, each with the white space after it."""
        # Sentencex panics at some other spaces; and a mark parts sentences: "<p>Yes.</p><p>No.</p>".
        flat = _WHITE_SPACE.sub(" ", line).replace(MARK, " ")
        flat.encode()
        pieces = self._segment_by_package(flat) or self._split_plainly(flat)
        sentences: list[str] = []
        position = 0
        for piece in pieces:
            last = sentences[-1][-1:] if sentences else " "
            is_quotation = last in "」』" and _JAPANESE_QUOTATION.match(piece)  # 「はい。」と言った。
            if is_quotation or not (last.isspace() or has_words(piece)):
                sentences[-1] += line[position : position + len(piece)]
            else:
                sentences.append(line[position : position + len(piece)])
            position += len(piece)
        return sentences

    def _segment_by_package(self, line: str) -> list[str]:
        """What sentencex makes of a line; nothing without it, and where it fails.

        Its time grows with the square of a line's length, so a very long one is given to it in parts.
        """
        if self._segment is None:
            return []
        if len(line) > _LONGEST_SEGMENTED:
            parts = [""]
            for piece in self._split_plainly(line):
                if parts[-1] and len(parts[-1]) + len(piece) > _LONGEST_SEGMENTED:
                    parts.append("")
                parts[-1] += piece
            if len(parts) == 1:
                return parts
            return [s for p in parts for s in (self._segment_by_package(p) if len(p) <= _LONGEST_SEGMENTED else [p])]
        try:
            pieces = list(self._segment(self._language, line))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # it is no Exception
                raise
            return []
        return pieces if "".join(pieces) == line else []

    def _split_plainly(self, line: str) -> list[str]:
        pieces, start = [], 0
        for match in _FULL_STOPS.finditer(line):
            following = line[match.end() : match.end() + 10].lstrip("\"'“‘«„([¿¡-–— ")[:1]
            word = line[max(start, match.end() - 10) : match.end()]
            if following and not following.islower() and not _ABBREVIATIONS.search(word):
                pieces.append(line[start : match.end()])
                start = match.end()
        if pieces and self._segment is None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "The text has several sentences, and they are found by a plain rule. For one that knows the languages "
                "and their abbreviations: pip install 'lvnar-hf[text]', or without the package lvnar-hf: pip install "
                "sentencex",
                stacklevel=2,
            )
        return [*pieces, line[start:]]


def find_core(piece: str) -> tuple[int, int]:
    """Start and end of the sentence itself, without the marks around it."""
    start, end = 0, len(piece)
    opened, num_closed = "", 0
    while start < end:
        character, following = piece[start], piece[start + 1 : start + 2]
        if character.isspace() or character == MARK:
            start += 1
        elif match := _LEADING.match(piece, start):
            start = match.end()
        elif character in _CLOSERS:
            if len(opened) == _MOST_WRAPPERS or not _is_wrapped(piece, start):
                break
            opened += character
            start += 1
        elif _belongs_to_the_start(character, following):
            break
        else:
            start += 1
    while end > start:
        character = piece[end - 1]
        openers = _OPENERS.get(character, "")
        if character.isspace() or character == MARK:
            end -= 1
        elif opened and opened[-1] in openers:
            opened = opened[:-1]
            end -= 1
        elif openers and character not in "*_~":
            is_open = any(opener in piece[start : end - 1] for opener in openers)
            if is_open or character in _APOSTROPHES or num_closed == _MOST_WRAPPERS:
                break
            end, num_closed = end - 1, num_closed + 1
        elif character.isalnum() or character in SENTENCE_MARKS or character == SPAN:
            break
        elif unicodedata.category(character) in ("So", "Sk", "Cf", "Co", "Cn") and character not in "°™®©":
            end -= 1
        else:  # dashes, bars and arrows that stand by themselves
            before = piece[start:end].rstrip(character)
            is_apart = before[-1:].isspace() or before[-1:] == MARK
            if not is_apart or not (unicodedata.category(character) == "Pd" or character in "|/\\><=#*_~"):
                break
            end = start + len(before)
    return start, end


def _belongs_to_the_start(character: str, following: str) -> bool:
    """Whether a character, neither space nor bracket nor quotation mark, is the first of a sentence."""
    category = unicodedata.category(character)
    if character.isalnum() or character == SPAN or character in "¿¡" or category[0] == "M" or category == "Sc":
        return True
    if not (following.isalnum() or following == SPAN):
        return False
    if category == "Pd":
        return following.isdigit()
    return category != "So" and character not in "…•·‣◦>|"


def _is_wrapped(piece: str, start: int) -> bool:
    """Whether the bracket or quotation mark at `start` is closed at the end of the piece, or in another one."""
    character = piece[start]
    first = len(piece) - len(piece[start:].lstrip(character)) if character in "*_~" else start + 1
    for index in range(first, len(piece)):
        if piece[index] in _CLOSERS[character]:
            beside = piece[index - 1 : index], piece[index + 1 : index + 2]
            if piece[index] in _APOSTROPHES and all(map(str.isalnum, beside)):
                continue  # an apostrophe
            rest = piece[index + 1 :]
            return not any(c.isalnum() or c == SPAN or c in SENTENCE_MARKS for c in rest)
    return character not in _APOSTROPHES and not piece[start + 1 : start + 2].isspace()
