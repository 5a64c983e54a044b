"""Names of people, places and things: words that a translation keeps as they are.

What is unusual: nothing but the training text says which capitalised words are names. Its tokenizer may have a list of
words that are none, those that stand there in small letters or that the translations change. Any other word with a
capital, if the vocabulary has it in pieces only, is taken for a name: of a word that it has seen often the model knows
better.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FILE = "translated_words.txt"  # in a tokenizer's folder
_MOST_BYTES = 64_000_000
# Ingrid, O'Brien, McDonald, iPhone; of Priya's, what stands before the apostrophe. Longer ones are no words.
# A letter may be decomposed.
_LETTER = r"[^\W\d_][\u0300-\u036f]{0,2}"
_WORD = re.compile(rf"(?<!\w)(?<!\w['’])(?:[DLO]['’](?=[A-Z]))?(?:{_LETTER}){{2,50}}(?!\w)")
_LISTED = re.compile(r"(?:[dlo]['’])?[^\W\d_]{2,50}")
# A first word has its capital from the sentence. It counts as translated if a word of the translation begins with all
# but so many of its letters, which are at least so many: Therapists, Therapisten.
_MOST_ENDING, _LEAST_STEM = 3, 6


def translated_words(pairs: Iterable[tuple[str, str | None]]) -> frozenset[str]:
    """The words of a corpus that are no names, in small letters.

    A name stands more often with a capital, inside a sentence or where its pair's target keeps it, than it stands in
    small letters; and at least half of the targets of such pairs keep it.

    Args:
        pairs: source and target; a target that is None says nothing of what is kept.
    """
    inside: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    small: Counter[str] = Counter()
    for source, target in pairs:
        for word, match in {match[0]: match for match in _WORD.finditer(source)}.items():
            key = _key(word)
            if word.islower():
                small[key] += 1
            elif not word.isupper():
                inside[key] += not _is_first(source, match.start())
                if target is not None:
                    seen[key] += 1
                    kept[key] += key in _key(target)
    words = filter(_is_listable, seen.keys() | small.keys())
    return frozenset(w for w in words if max(inside[w], kept[w]) <= small[w] or 2 * kept[w] < seen[w])


def only_in_pieces(words: Iterable[str], tokenizer: Any) -> frozenset[str]:
    """Those of the words that the vocabulary has in pieces only, with a capital and without."""
    return frozenset(word for word in words if _is_in_pieces(word, tokenizer))


def find_names(text: str, tokenizer: Any) -> Iterator[tuple[int, int]]:
    """Where the names of a text stand, in order; several words side by side are one name.

    None do where the tokenizer has no list.
    """
    if getattr(tokenizer, "translated_words", None) is None:
        return
    start = end = 0
    is_name: dict[str, bool] = {}
    for match in _WORD.finditer(text):
        word = match[0]
        if word not in is_name:
            is_small_or_capitals = word.islower() or word.isupper()
            is_listed = is_small_or_capitals or _key(word) in tokenizer.translated_words
            is_name[word] = not is_listed and _is_in_pieces(word, tokenizer)
        if is_name[word]:
            if end and text[end : match.start()] not in (" ", "-"):
                yield start, end
                end = 0
            start, end = start if end else match.start(), match.end()
    if end:
        yield start, end


def lost_names(text: str, names: Iterable[tuple[int, int]], translation: str) -> list[tuple[int, int]]:
    """Those of the names that a translation has not, or not as often as the text; in letters of any case.

    Of a name of several words each is looked for.

    Args:
        names: where they stand in the text.
    """
    said = _key(translation)
    left: dict[str, int] = {}
    lost = []
    for start, end in names:
        is_lost = False
        for word in re.split("[ -]", _key(text[start:end])):
            left[word] = left.get(word, said.count(word)) - 1
            is_lost = is_lost or left[word] < 0
        if is_lost and not (_is_first(text, start) and _has_stem(said, _key(text[start:end]))):
            lost.append((start, end))
    return lost


def _is_first(text: str, start: int) -> bool:
    """Whether a sentence begins there."""
    before = text[:start].rstrip(" \"'“”„‘’«»(")
    return not before or before[-1] in ".!?…:"


def without_repeats(text: str, characters: str | Iterable[str]) -> str:
    """A text with the first of each of these characters alone, as a model that says a placeholder twice meant it."""
    left, kept = set(characters), []
    repeats = left.copy()
    for character in text:
        if character in left or character not in repeats:
            kept.append(character)
            left.discard(character)
    return text if len(kept) == len(text) else " ".join("".join(kept).split())


def _has_stem(said: str, word: str) -> bool:
    stem = word[: max(_LEAST_STEM, len(word) - _MOST_ENDING)]
    return len(word) > _LEAST_STEM and re.search(rf"(?<!\w){re.escape(stem)}", said) is not None


def read_translated_words(file: str | os.PathLike[str]) -> frozenset[str]:
    """The words of a file, one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8, too large, or has something else than words in small letters.
    """
    file = Path(file)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is larger than {_MOST_BYTES} bytes.")
    words = frozenset(file.read_bytes().decode("utf-8").split())
    _refuse_others(words, file)
    return words


def write_translated_words(words: Iterable[str], file: str | os.PathLike[str]) -> None:
    """Write the words one a line, sorted.

    Raises:
        ValueError: there is something else among them than words in small letters.
    """
    words = sorted(words)
    _refuse_others(words, file)
    Path(file).write_bytes("".join(f"{word}\n" for word in words).encode())


def _refuse_others(words: Iterable[str], file: str | os.PathLike[str]) -> None:
    if wrong := next((word for word in words if not _is_listable(word)), None):
        raise ValueError(f"{file}: {wrong[:80]!r} is no word in small letters.")


def _is_listable(word: str) -> bool:
    return _LISTED.fullmatch(word) is not None and word == _key(word)


def _key(text: str) -> str:
    """A text for comparison: composed, in small letters."""
    return unicodedata.normalize("NFC", text).casefold()


def _is_in_pieces(word: str, tokenizer: Any) -> bool:
    forms = dict.fromkeys((word, word.title(), word.casefold()))
    return all(len(tokenizer.tokenize(form)) > 1 for form in forms)
