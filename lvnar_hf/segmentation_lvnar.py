"""Raw text to words separated by single spaces, and back: `none`, `moses`, `fugashi` and `kytea`.

What is unusual: the Japanese segmenters lose nothing. Joined words are the text again, spaces and all, because a space
that the joining rule would forget is written as a word of its own, `SPACE_WORD`. The packages behind the segmenters are
imported at the first sentence, so that a tokenizer loads without them.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SEGMENTERS = ("none", "moses", "fugashi", "kytea")
# U+2423 OPEN BOX, a word that stands for a space of the text; in the text itself it is written twice.
SPACE_WORD = "\u2423"
_SPACE_WORDS = re.compile(f"{SPACE_WORD}{{1,2}}")
# White space as the vocabulary's normaliser knows it; Python's own has four control characters more.
_WHITE_SPACE = re.compile(r"[^\S\x1c-\x1f]+")
# Ends of blocks of Unicode whose text is written without spaces: from CJK radicals over kana to Han, and its forms.
_UNSPACED_BLOCKS = (
    ("\u2e80", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\ufe30", "\ufe4f"),
    ("\uff01", "\uffef"),
    ("\U0001b000", "\U0001b16f"),
    ("\U00020000", "\U0003ffff"),
)


# Characters that an engine gets at once, several times what a line has: MeCab's time grows with their square.
_LONGEST_PART = 4096
_SENTENCE_ENDS = re.compile("[。！？!?]+[」』）]*| ")


class Segmenter:
    """The segmenter `none`: text that is segmented already, or needs no segmentation.

    A subclass keeps the engine it works with in `_engine`, made when first needed. The engine is left out of pickles
    and copies, which make their own.
    """

    name = "none"

    def __init__(self) -> None:
        self._engine: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}

    def segment(self, text: str) -> str:
        """The words of a text, separated by single spaces."""
        return text

    def join(self, text: str) -> str:
        """Natural text from words separated by spaces, whoever wrote them: `segment` or a model."""
        return text


class MosesSegmenter(Segmenter):
    """Moses' tokenizer, by sacremoses: punctuation and clitics are words of their own; nothing is escaped.

    `join` is Moses' detokenizer, which goes by rules for the language. It does not always hit the text: spaces beside
    quotation marks, slashes, dashes and brackets that the text has otherwise than is usual are lost or won.

    Args:
        language: code, for example "en"; what sacremoses does not know is treated as English.

    Raises:
        ImportError: at the first sentence, without sacremoses.
    """

    name = "moses"

    def __init__(self, language: str = "en") -> None:
        super().__init__()
        self.language = language

    def _load(self) -> tuple[Any, Any]:
        if self._engine is None:
            package = _import("sacremoses", self.name, "sacremoses")
            self._engine = package.MosesTokenizer(self.language), package.MosesDetokenizer(self.language)
        return self._engine

    def segment(self, text: str) -> str:
        return self._load()[0].tokenize(text, escape=False, return_str=True)

    def join(self, text: str) -> str:
        return self._load()[1].detokenize(text.split(), unescape=False)


class JapaneseSegmenter(Segmenter, ABC):
    """What the segmenters of Japanese share: the spaces.

    Joining: two words stay apart if neither touches the other with a character of an unspaced script (kanji, kana,
    their punctuation, full-width forms): "NHK World は 放送 する" becomes "NHK Worldは放送する". Segmenting keeps to
    that rule. It does not part characters of other scripts that stand together ("3.5", "Cruise's"), and where the text
    has a space that joining would drop, there is a `SPACE_WORD`: "NHK World は放送" becomes "NHK World ␣ は 放送".
    So `join(segment(text))` is the text with its white space brought to single spaces, for any text.
    """

    @abstractmethod
    def _find_words(self, text: str) -> Iterable[str]:
        """The words of a text with single spaces; none of them with a space in it."""

    def segment(self, text: str) -> str:
        text = _WHITE_SPACE.sub(" ", text).strip(" ")
        words = [word for part in _short_parts(text) for word in self._find_words(part)]
        if "".join(words) != text.replace(" ", ""):
            words = text.split(" ")  # the engine has lost something, as they do with control characters
        position = 0
        parts: list[str] = []
        for word in words:
            has_space = text.startswith(" ", position)
            if parts:
                if is_unspaced(text[position - 1]) or is_unspaced(word[0]):
                    parts.append(f" {SPACE_WORD} " if has_space else " ")
                elif has_space:
                    parts.append(" ")
            parts.append(word.replace(SPACE_WORD, 2 * SPACE_WORD))
            position += has_space + len(word)
        return "".join(parts)

    def join(self, text: str) -> str:
        parts: list[str] = []
        has_space = False
        for word in text.split(" "):
            if word == SPACE_WORD:
                has_space = True
            elif word:
                if SPACE_WORD in word:  # a single one inside a word, as a model may write it, is a space too
                    word = _SPACE_WORDS.sub(lambda found: SPACE_WORD if len(found[0]) == 2 else " ", word)
                if parts and (has_space or not (is_unspaced(parts[-1][-1]) or is_unspaced(word[0]))):
                    parts.append(" ")
                parts.append(word)
                has_space = False
        return _WHITE_SPACE.sub(" ", "".join(parts)).strip(" ")


class FugashiSegmenter(JapaneseSegmenter):
    """MeCab with the dictionary unidic-lite, by fugashi: short units, inflections apart.

    Raises:
        ImportError: at the first sentence, without fugashi or unidic-lite.
    """

    name = "fugashi"

    def _find_words(self, text: str) -> list[str]:
        if self._engine is None:
            packages = ("fugashi", "unidic-lite")
            fugashi = _import("fugashi", self.name, *packages)
            # Named, since fugashi by itself prefers the large dictionary where there is one, with other words.
            dictionary = _import("unidic_lite", self.name, *packages).DICDIR
            self._engine = fugashi.GenericTagger(f'-O wakati -r "{dictionary}/mecabrc" -d "{dictionary}"')
        return self._engine.parse(text).split(" ")


class KyteaSegmenter(JapaneseSegmenter):
    """KyTea, which the paper's experiments used; its model is a file of its own.

    Args:
        model: path of the model file.
        folder: looked into for a file of that name if there is none at the path.

    Raises:
        ValueError: at the first sentence, without a model, or with a space in its path.
        FileNotFoundError: at the first sentence, if there is no such model.
        ImportError: at the first sentence, without kytea.
    """

    name = "kytea"

    def __init__(self, model: str | None = None, folder: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.folder = folder

    def _find_words(self, text: str) -> list[str]:
        if self._engine is None:
            path = self._find_model()
            self._engine = _import("Mykytea", self.name, "kytea").Mykytea(f"-model {path}")
        # By itself KyTea makes words of spaces and may put them inside others.
        return [word for part in text.split(" ") for word in self._engine.getWS(part)]

    def _find_model(self) -> Path:
        how = (
            "pass kytea_model=PATH to from_pretrained (or as kytea_model in section tokenizer of the recipe), the path "
            "of a model file such as jp-0.4.7-5.mod from https://www.phontron.com/kytea/model.html"
        )
        if not self.model:
            raise ValueError(f"The segmenter 'kytea' needs a model file, and none was given: {how}.")
        candidates = [Path(self.model), *([Path(self.folder, Path(self.model).name)] if self.folder else [])]
        for path in candidates:
            if path.is_file():
                if " " in str(path):
                    raise ValueError(f"KyTea takes no path with a space in it: rename or link {str(path)!r}.")
                return path
        names = " or ".join(map(str, candidates))
        raise FileNotFoundError(f"The segmenter 'kytea' needs its model file, and there is no {names}: {how}.")


def make_segmenter(
    name: str, language: str | None = None, kytea_model: str | None = None, folder: str | None = None
) -> Segmenter:
    """A segmenter by its name.

    Args:
        name: one of `SEGMENTERS`.
        language: for `moses`; None: English.
        kytea_model, folder: for `kytea`: the model file, and a folder that may hold it.

    Raises:
        ValueError: for another name.
    """
    if name == "none":
        return Segmenter()
    if name == "moses":
        return MosesSegmenter(language or "en")
    if name == "fugashi":
        return FugashiSegmenter()
    if name == "kytea":
        return KyteaSegmenter(kytea_model, folder)
    raise ValueError(f"A segmenter is one of {', '.join(SEGMENTERS)}, not {name!r}.")


def _short_parts(text: str) -> list[str]:
    """A text of at most _LONGEST_PART characters as it is, none for an empty one; a longer one in parts.

    It is cut after its last sentence mark or space within them, or else where they end.
    """
    parts, start = [], 0
    while len(text) - start > _LONGEST_PART:
        ends = [match.end() for match in _SENTENCE_ENDS.finditer(text, start, start + _LONGEST_PART)]
        end = ends[-1] if ends else start + _LONGEST_PART
        parts.append(text[start:end])
        start = end
    return [part for part in (*parts, text[start:]) if part]


def is_unspaced(character: str) -> bool:
    """Whether the character is of a script that puts no spaces between words."""
    return character >= "\u2e80" and any(first <= character <= last for first, last in _UNSPACED_BLOCKS)


def _import(module: str, segmenter: str, *packages: str) -> Any:
    """A module that users install when they need it; ImportError says how."""
    extra = "kytea" if segmenter == "kytea" else "ja"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The segmenter {segmenter!r} needs {' and '.join(packages)}: pip install 'lvnar-hf[{extra}]', or "
            f"without the package lvnar-hf: pip install {' '.join(packages)}"
        ) from error
