"""Text as people type it: a step before the model and one after it.

What is unusual: the model sees single clean sentences only. A text is taken apart into lines, marks at their edges,
sentences, and spans that must not change (`markup_lvnar`); what is no sentence goes back where it was, character by
character. A span inside a sentence goes through the model as a placeholder, a control character; if the model does not
give each of them back exactly once, the text between the spans is translated piece by piece. A figure or name that the
model changes goes through it as a span too, and so do the words of a link, which are translated by themselves.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import re
import unicodedata
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .figures_lvnar import AMOUNT, figures_of
from .markup_lvnar import Marked, mask_line, without_protected
from .names_lvnar import find_names, lost_names, without_repeats
from .segmentation_lvnar import is_unspaced
from .sentences_lvnar import (
    BLOCK,
    MARK,
    MASKS,
    SPAN,
    SentenceSplitter,
    find_core,
    has_words,
    is_all_capitals,
    lower_sentence,
)
from .subwords_lvnar import PLACEHOLDERS
from .vocabulary_lvnar import INVISIBLE

_INVISIBLE = re.compile(INVISIBLE)
# What ends a line; and the tab, which ends a cell of a table.
_LINE_ENDS = re.compile("(\r\n|[\t\n\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029])")
_FENCE, _FENCE_END = re.compile(r"\s*```[^`]*"), re.compile(r"\s*```\s*")
# Bars that part cells: those that stand apart; all of a line that begins and ends with one.
_BAR, _BAR_OF_ROW = re.compile(r"(?<!\S)(\|)(?!\S)"), re.compile(r"(?<!\\)(\|)")

_END_MARKS = " .!?…,;:。！？、，；："
_ENUMERATOR = re.compile(r"\s*\(?\d{1,3}[.)]\s*")
# Where a sentence that is too long is parted, the best places first.
_CLAUSE_MARKS = tuple(
    map(
        re.compile,
        (
            r"(?<![.!?…])[.!?…]+[\"'”’»)]*\s+|[。！？।]+[」』）]*",
            *(r"[;:]\s+|[；：]", r"\s[–—-]+\s+|[–—]", r",\s+|[、，]"),
        ),
    )
)
# Scripts by language, as `unicodedata.name` says them; languages that are not here are in Latin letters.
_SCRIPTS = {
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "kk", "ky", "mn", "tg"), ("CYRILLIC",)),
    **dict.fromkeys(("sr", "uz"), ("CYRILLIC", "LATIN")),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ug"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("DEVANAGARI",)),
    **dict.fromkeys(("he", "yi"), ("HEBREW",)),
    **{"ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "zh": ("CJK", "BOPOMOFO"), "ko": ("HANGUL", "CJK")},
    **{"el": ("GREEK",), "th": ("THAI",), "ka": ("GEORGIAN",), "hy": ("ARMENIAN",), "bn": ("BENGALI",)},
    **{"ta": ("TAMIL",), "te": ("TELUGU",), "km": ("KHMER",), "lo": ("LAO",), "my": ("MYANMAR",), "am": ("ETHIOPIC",)},
}
_LETTERS_LOOKED_AT = 50
_MOST_CHARACTERS_A_TOKEN = 50


def drop_invisible(text: str) -> str:
    """The text without the characters of no width that `INVISIBLE` names, as the tokenizer's normaliser drops them."""
    return text if text.isascii() else _INVISIBLE.sub("", text)


@dataclass
class _Sentence:
    """What the model gets, and how its translation is finished.

    Args:
        core: the sentence, a mask in place of each span.
        spans: what the masks stand for; of what is marked, the words are translated by themselves.
        is_capitals: all capitals: the model sees it in lower case, and its translation is brought back.
        text: for the model, placeholders in place of spans.
        is_piece: a part of a sentence between spans.
    """

    core: str
    spans: list[str | Marked]
    is_capitals: bool
    text: str
    is_piece: bool = False

    def finish(self, translation: str, spans: Sequence[str]) -> str | None:
        """The translation with the spans in it; None if it lacks a figure, or has not each placeholder once.

        A piece ends with the marks of its source. Where the model says nothing, the source stays.
        """
        translation = _LINE_ENDS.sub(" ", translation).strip()
        if self.is_capitals:
            translation = translation.upper()
        found = sorted(character for character in translation if character in PLACEHOLDERS)
        if found != list(PLACEHOLDERS[: len(self.spans)]):
            if self.spans:
                return None
            translation = "".join(c for c in translation if c not in PLACEHOLDERS).strip()
        if self.is_piece:
            translation = translation.rstrip(_END_MARKS)
            translation += self.core[len(self.core.rstrip(_END_MARKS)) :] if translation else ""
        if not translation:
            return self.core
        if (figures := figures_of(self.core)) and figures - figures_of(translation):
            return None
        texts = dict(zip(PLACEHOLDERS, self._part_from_words(translation, spans), strict=False))
        return "".join(texts.get(character, character) for character in translation)

    def finish_choice(self, spans: Sequence[Sequence[str]], drafts: Sequence[str], choice: int) -> str | None:
        """The same of one of several translations, each with a text of its own for each span."""
        return self.finish(_choose(drafts, choice), [_choose(texts, choice) for texts in spans])

    def _part_from_words(self, translation: str, spans: Sequence[str]) -> Iterator[str]:
        """The spans, with a space where a word or span of the translation touches one that touched none before."""
        places = (index for index, character in enumerate(self.core) if character in MASKS)
        for place, placeholder, span in zip(places, PLACEHOLDERS, spans, strict=False):
            found = translation.find(placeholder)
            sides = zip(_touches(self.core, place), _touches(translation, found), strict=True)
            before, after = (" " if touches_now and not touched else "" for touched, touches_now in sides)
            yield f"{before}{span}{after}"


@dataclass
class _Plan:
    """A text taken apart: a literal, a sentence, a literal, ..., a literal."""

    literals: list[list[str]] = field(default_factory=lambda: [[]])
    sentences: list[_Sentence] = field(default_factory=list)

    def add_literal(self, text: str) -> None:
        self.literals[-1].append(text)

    def add_sentence(self, sentence: _Sentence) -> None:
        self.sentences.append(sentence)
        self.literals.append([])

    def join(self, translations: Sequence[str]) -> str:
        """The text with translations in place of its sentences."""
        parts = [*self.literals[0]]
        for index, translation in enumerate(translations):
            parts += [translation, self._joint(index, translations)]
        return "".join(parts)

    def join_all(self, translations: Sequence[Sequence[str | None]]) -> list[str]:
        """The same for several translations of each sentence."""
        number = len(translations[0]) if translations else 1
        return [self.join([str(choices[choice]) for choices in translations]) for choice in range(number)]

    def _joint(self, index: int, translations: Sequence[str]) -> str:
        """What stands after a sentence; a space is won or lost where only one of the scripts puts spaces."""
        joint = "".join(self.literals[index + 1])
        if joint not in ("", " ") or index + 1 == len(translations):
            return joint
        source = self.sentences[index].core[-1], self.sentences[index + 1].core[0]
        target = translations[index][-1:], translations[index + 1][:1]
        if joint == "" and any(map(is_unspaced, source)) and all(target) and not any(map(is_unspaced, target)):
            return " "
        if joint == " " and not any(map(is_unspaced, source)) and all(target) and all(map(is_unspaced, target)):
            return ""
        return joint


class TextFormat:
    """Translates texts of any kind by a model of single sentences; their format is kept.

    Kept character by character: line ends, tabs and the bars of tables, white space at the edges of lines and
    sentences, bullets, dashes, quotation marks and tags around a sentence, emoji, what `markup_lvnar` protects, and
    whatever has no letter and no digit. What stands in a cell, is the text of a link or is emphasised is translated by
    itself. Characters of no width are dropped elsewhere, and white space inside a sentence becomes single spaces. A
    sentence of several words in capitals is translated in lower case and brought back. One of more tokens than the
    model takes is parted at sentence and clause marks. A figure of two digits or more that the model changes is kept as
    it is, and a name, if the tokenizer has `translated_words`.

    Args:
        tokenizer: the model's; placeholders are used if it has a token for each.
        max_length: of the model, in tokens; None: any.
        source_language: code, for the rules where sentences end; None: English, and no look at the script.

    Raises:
        UnicodeEncodeError, a ValueError: a text with surrogates.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None, source_language: str | None = None) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        code = None if source_language is None else re.split("[-_]", source_language)[0].lower()
        self._language = code or "en"
        self._scripts = None if code is None else _SCRIPTS.get(code, ("LATIN",))
        self._has_placeholders = all(
            {character, f"<0x{ord(character):02X}>"} & set(tokenizer.tokenize(character)) for character in PLACEHOLDERS
        )
        self._warned: set[str] = set()
        self._splitter = SentenceSplitter(self._language)

    def translate(
        self, texts: Sequence[str], translate_sentences: Callable[[list[str]], Sequence[Sequence[str]]]
    ) -> list[list[str]]:
        """The translations of each text, as many as the model gives; a text without words is its own translation.

        Args:
            texts: of any kind.
            translate_sentences: gives the translations of each sentence, one or several, but the same number for all.
                Called once, and again for what is marked and for lost names or placeholders; never without a sentence.
        """
        finished = self._translate_plans([self._plan(text) for text in texts], translate_sentences)
        number = max(map(len, finished), default=1)
        return [[_choose(translations, choice) for choice in range(number)] for translations in finished]

    def _translate_plans(
        self, plans: Sequence[_Plan], translate_sentences: Callable[[list[str]], Sequence[Sequence[str]]]
    ) -> list[list[str]]:
        """The translations of each plan; of one without a sentence, what it is."""
        sentences = [sentence for plan in plans for sentence in plan.sentences]
        drafts = translate_sentences([sentence.text for sentence in sentences]) if sentences else []
        marked = [
            self._plan_marked(span, sentence.is_capitals)
            for sentence in sentences
            for span in sentence.spans
            if isinstance(span, Marked)
        ]
        of_marked = iter(self._translate_plans(marked, translate_sentences) if marked else [])
        spans = [[next(of_marked) if isinstance(span, Marked) else [span] for span in one.spans] for one in sentences]
        finished = [
            [sentence.finish_choice(own_spans, choices, choice) for choice in range(len(choices))]
            for sentence, own_spans, choices in zip(sentences, spans, drafts, strict=True)
        ]
        self._keep_names(sentences, spans, finished, translate_sentences)
        lost = [index for index, choices in enumerate(finished) if None in choices]
        if lost:
            pieces = [_Plan() for _ in lost]
            for plan, index in zip(pieces, lost, strict=True):
                self._add_otherwise(plan, sentences[index])
            for index, found in zip(lost, self._translate_plans(pieces, translate_sentences), strict=True):
                finished[index] = [
                    _choose(found, choice) if text is None else text for choice, text in enumerate(finished[index])
                ]
        remaining = iter(finished)
        return [plan.join_all([next(remaining) for _ in plan.sentences]) for plan in plans]

    def _keep_names(
        self,
        sentences: Sequence[_Sentence],
        spans: Sequence[list[list[str]]],
        finished: list[list[str | None]],
        translate_sentences: Callable[[list[str]], Sequence[Sequence[str]]],
    ) -> None:
        """Translate sentences that lack a name once more, with placeholders; what then lacks anything stays as it was.

        Args:
            spans: of each sentence, what its masks stand for, a text for each choice.
            finished: of each sentence its translations; one that is None is not looked at.
        """
        again: list[tuple[int, list[int], _Sentence, list[list[str]]]] = []
        for index, (sentence, choices) in enumerate(zip(sentences, finished, strict=True)):
            names = [] if sentence.is_capitals else list(find_names(sentence.core, self._tokenizer))
            lost = [[] if text is None else lost_names(sentence.core, names, text) for text in choices if names]
            places = sorted({place for of_choice in lost for place in of_choice})
            if places and self._has_placeholders and len(places) + len(sentence.spans) <= len(PLACEHOLDERS):
                lacking = [choice for choice, of_choice in enumerate(lost) if of_choice]
                again.append((index, lacking, *self._with_spans(sentence, spans[index], places)))
        texts = [sentence.text for _, _, sentence, _ in again if has_words(sentence.core)]
        drafts = iter(translate_sentences(texts) if texts else ())
        for index, lacking, sentence, own_spans in again:
            said = next(drafts) if has_words(sentence.core) else [sentence.text]
            own_drafts = [without_repeats(draft, PLACEHOLDERS) for draft in said]
            for choice in lacking:
                kept = sentence.finish_choice(own_spans, own_drafts, choice)
                finished[index][choice] = finished[index][choice] if kept is None else kept

    def _with_spans(
        self, sentence: _Sentence, spans: list[list[str]], places: list[tuple[int, int]]
    ) -> tuple[_Sentence, list[list[str]]]:
        """A sentence with masks at further places; and what all its masks stand for."""
        core, masks = sentence.core, (match.start() for match in re.finditer(f"[{SPAN}{MARK}]", sentence.core))
        names = [(start, [core[start:end]]) for start, end in places]
        found = [texts for _, texts in sorted([*zip(masks, spans, strict=True), *names])]
        for start, end in reversed(places):
            core = f"{core[:start]}{SPAN}{core[end:]}"
        return self._masked(core, [texts[0] for texts in found], False, sentence.is_piece), found

    # Before

    def _plan(self, text: str) -> _Plan:
        plan = _Plan()
        if not has_words(text):
            plan.add_literal(text)
            return plan
        self._check_script(text)
        parts = _LINE_ENDS.split(text)
        closing = [index for index, part in enumerate(parts) if _FENCE_END.fullmatch(part)]
        literal_until = -1
        for index, part in enumerate(parts):
            if closing and index > literal_until and _FENCE.fullmatch(part):  # code of several lines
                place = bisect_right(closing, index)
                literal_until = closing[place] if place < len(closing) else literal_until
            if index % 2 or index <= literal_until or not has_words(part):
                plan.add_literal(part)
            else:
                self._add_line(plan, part)
        return plan

    def _plan_marked(self, marked: Marked, is_capitals: bool) -> _Plan:
        plan = _Plan()
        self._add_marked(plan, marked, is_capitals)
        return plan

    def _add_marked(self, plan: _Plan, marked: Marked, is_capitals: bool) -> None:
        plan.add_literal(marked.before)
        self._add_line(plan, marked.text, is_capitals, is_part=True)
        plan.add_literal(marked.after)

    def _add_line(self, plan: _Plan, line: str, is_capitals: bool = False, is_part: bool = False) -> None:
        masked, spans = mask_line(line, self._scripts == ("LATIN",))
        masked, remaining = drop_invisible(masked), iter(spans)
        is_capitals = is_capitals or is_all_capitals(masked)
        for part in re.split(f"({BLOCK})", masked) if BLOCK in masked else [masked]:
            for cell in _split_cells(part) if "|" in part else [part]:
                for piece in self._splitter.split(cell):
                    self._add_piece(plan, piece, remaining, is_capitals, is_part)

    def _add_literal(self, plan: _Plan, text: str, spans: Iterator[str | Marked], is_capitals: bool) -> None:
        """Add what is no sentence; what is marked in it may have some."""
        for character in text:
            span = next(spans) if character in MASKS else character
            if isinstance(span, Marked):
                self._add_marked(plan, span, is_capitals)
            else:
                plan.add_literal(span)

    def _add_piece(
        self, plan: _Plan, piece: str, spans: Iterator[str | Marked], is_capitals: bool, is_part: bool = False
    ) -> None:
        """Add a sentence with the marks around it; `spans` gives what its masks stand for, in order."""
        start, end = (0, 0) if not is_part and _ENUMERATOR.fullmatch(piece) else find_core(piece)
        core = piece[start:end]
        if not has_words(core):
            self._add_literal(plan, piece, spans, is_capitals)
            return
        self._add_literal(plan, piece[:start], spans, is_capitals)
        if cut := self._find_cut(core):
            self._add_piece(plan, core[:cut], spans, is_capitals)
            self._add_piece(plan, core[cut:], spans, is_capitals)
        else:
            core = " ".join(core.split())
            own = [next(spans) for character in core if character in MASKS]
            is_capitals = is_all_capitals(core) or (is_capitals and core.isupper())
            if len(own) > (len(PLACEHOLDERS) if self._has_placeholders else 0):
                self._add_pieces(plan, core, own, is_capitals)
            else:
                self._add_masked(plan, core, own, is_capitals, is_part)
        self._add_literal(plan, piece[end:], spans, is_capitals)

    def _add_otherwise(self, plan: _Plan, sentence: _Sentence) -> None:
        """Add a sentence that the model did not keep whole: its figures as spans, or as pieces around its spans."""
        remaining = iter(sentence.spans)
        spans = [
            next(remaining) if match[0] in MASKS else match[0]
            for match in re.finditer(f"[{SPAN}{MARK}]|{AMOUNT.pattern}", sentence.core)
        ]
        core = AMOUNT.sub(SPAN, sentence.core)
        fits = self._has_placeholders and len(sentence.spans) < len(spans) <= len(PLACEHOLDERS)
        if fits and not sentence.is_piece and has_words(core):
            self._add_masked(plan, core, spans, sentence.is_capitals)
        else:
            self._add_pieces(plan, core, spans, sentence.is_capitals)

    def _add_masked(
        self, plan: _Plan, core: str, spans: list[str | Marked], is_capitals: bool, is_piece: bool = False
    ) -> None:
        """Add a sentence with placeholders for its masks."""
        plan.add_sentence(self._masked(core, spans, is_capitals, is_piece))

    def _masked(self, core: str, spans: list[str | Marked], is_capitals: bool, is_piece: bool) -> _Sentence:
        placeholders = iter(PLACEHOLDERS)
        text = "".join(next(placeholders) if character in MASKS else character for character in core)
        text = lower_sentence(text, self._language) if is_capitals else text
        return _Sentence(core, spans, is_capitals, text, is_piece)

    def _add_pieces(self, plan: _Plan, core: str, spans: list[str | Marked], is_capitals: bool) -> None:
        """Add a sentence as pieces around its spans."""
        remaining = iter(spans)
        for piece in re.split(f"([{SPAN}{MARK}])", core):
            self._add_piece(plan, piece, remaining, is_capitals, is_part=True)

    def _find_cut(self, core: str) -> int | None:
        """Where a sentence that is too long is parted; None if it is not, or has no place for it."""
        limit = self._max_length
        if limit is None or len(core.encode()) < limit - 1:  # no token is less than a byte; </s>, and the first space
            return None
        is_surely_too_long = len(core) > _MOST_CHARACTERS_A_TOKEN * limit
        if not is_surely_too_long and len(self._tokenizer(core, verbose=False)["input_ids"]) <= limit:
            return None
        first_word = next(index for index, character in enumerate(core) if character.isalnum())
        for marks in _CLAUSE_MARKS:
            ends = [m.end() for m in marks.finditer(core, first_word) if m.end() < len(core)]
            if ends:
                return min(ends, key=lambda end: abs(2 * end - len(core)))
        return None

    def _check_script(self, text: str) -> None:
        """Warn once of a text in another script than the source language's."""
        if self._scripts is None or (self._scripts == ("LATIN",) and text.isascii()) or "script" in self._warned:
            return
        looked_at = without_protected(text[: 20 * _LETTERS_LOOKED_AT])
        letters = [character for character in looked_at if character.isalpha()][:_LETTERS_LOOKED_AT]
        names = [re.split("[ -]", unicodedata.name(c, ""), maxsplit=1)[0] for c in letters]
        outcome = "Such letters stay" if self._scripts == ("LATIN",) else "Such texts are translated to nonsense"
        if len(names) > 1 and sum(name in self._scripts for name in names) * 10 < len(names):
            self._warn_once(
                "script",
                f"The text is written in other letters than {self._language!r}, the source language of the model: "
                f"{text[:60]!r}. {outcome}; this is said once.",
            )

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            warnings.warn(message, stacklevel=3)


def _split_cells(line: str) -> list[str]:
    """A line at the bars that part cells."""
    is_row = len(row := line.strip()) > 1 and row[0] == row[-1] == "|"
    return (_BAR_OF_ROW if is_row else _BAR).split(line)


def _touches(text: str, place: int) -> tuple[bool, bool]:
    """Whether a word, of a script that puts spaces between words, touches a character on its left and right.

    On its left, a span counts as a word: so between two of them it counts once.
    """
    left, right = text[max(place - 1, 0) : place], text[place + 1 : place + 2]
    is_word, is_word_after = (side.isalnum() and not is_unspaced(side) for side in (left, right))
    return is_word or left in (*MASKS, *PLACEHOLDERS), is_word_after


def _choose(translations: Sequence[str], choice: int) -> str:
    """One of several translations; the only one, if there is but one."""
    return translations[choice if len(translations) > 1 else 0]
