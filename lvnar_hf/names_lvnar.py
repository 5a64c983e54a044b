"""Names of people, places and things: words that a translation keeps as they are.

What is unusual: nothing but the training text says which capitalised words are names. Its tokenizer may have a list of
words that are none, those that stand there in small letters or that the translations change. Any other word with a
capital, if the vocabulary has it in pieces only, is taken for a name: of a word that it has seen often the model knows
better.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_MOST_BYTES = 64_000_000
# Ingrid, O'Brien, McDonald, iPhone; of Priya's, what stands before the apostrophe.
_WORD = re.compile(r"(?<![\w'’])(?:[DLO]['’](?=[A-Z]))?[^\W\d_]{2,}(?!\w)")
_LISTED = re.compile(r"(?:[dlo]['’])?[^\W\d_]{2,}")


def translated_words(pairs: Iterable[tuple[str, str | None]]) -> frozenset[str]:
    """The words of a corpus that are no names, in small letters.

    They are those that stand in small letters somewhere, and those with a capital that most of their pairs' targets
    have not.

    Args:
        pairs: source and target; a target that is None says nothing of names.
    """
    seen: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    translated = set()
    for source, target in pairs:
        for word in {match[0] for match in _WORD.finditer(source)}:
            if word.islower():
                translated.add(word.casefold())
            elif target is not None and not word.isupper():
                seen[word.casefold()] += 1
                kept[word.casefold()] += word.casefold() in target.casefold()
    return frozenset(translated.union(word for word, number in seen.items() if 2 * kept[word] <= number))


def only_in_pieces(words: Iterable[str], tokenizer: Any) -> frozenset[str]:
    """Those of the words that the vocabulary has in pieces only, with a capital or without."""
    return frozenset(word for word in words if _is_in_pieces(word, tokenizer) or _is_in_pieces(word.title(), tokenizer))


def find_names(text: str, tokenizer: Any) -> Iterator[str]:
    """The names of a text, in order; several words side by side are one. None where the tokenizer has no list."""
    if getattr(tokenizer, "translated_words", None) is None:
        return
    start = end = 0
    for match in _WORD.finditer(text):
        word = match[0]
        if word.islower() or word.isupper() or word.casefold() in tokenizer.translated_words:
            continue
        if _is_in_pieces(word, tokenizer):
            if end and text[end : match.start()] not in (" ", "-"):
                yield text[start:end]
                end = 0
            start, end = start if end else match.start(), match.end()
    if end:
        yield text[start:end]


def lacks_names(translation: str, names: Iterable[str]) -> bool:
    """Whether a translation has one of the names not, or not as often; in letters of any case."""
    text = translation.casefold()
    return any(text.count(name.casefold()) < number for name, number in Counter(names).items())


def name_pattern(names: Iterable[str]) -> str:
    """A regular expression of these names as whole words, to be searched where they were found."""
    return "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(set(names), key=len, reverse=True))


def read_translated_words(file: str | Path) -> frozenset[str]:
    """The words of a file, one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8, too large, or has something else than words.
    """
    file = Path(file)
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is larger than {_MOST_BYTES} bytes.")
    words = file.read_bytes().decode("utf-8").split()
    if wrong := next((word for word in words if not _LISTED.fullmatch(word)), None):
        raise ValueError(f"{file}: {wrong[:80]!r} is no word.")
    return frozenset(words)


def write_translated_words(words: Iterable[str], file: str | Path) -> None:
    """Write the words one a line, sorted."""
    Path(file).write_bytes("".join(f"{word}\n" for word in sorted(words)).encode())


def _is_in_pieces(word: str, tokenizer: Any) -> bool:
    return len(tokenizer.tokenize(word)) > 1
