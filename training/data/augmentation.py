"""Pairs made of the training text's own, to be learnt from beside it: other figures and names, placeholders, joined
sentences, text without capitals and full stops, text all in capitals.

Nothing is stored. `AugmentedPairs` reads its text as `TextPairs` does, and after each pair gives what
is made of it. What that is depends on the seed and the pair's place alone.
"""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from lvnar_hf.subwords_lvnar import PLACEHOLDERS
from training.data.corpora import Pair, TextPairs
from training.data.shared_spans import (
    SENTENCE_END,
    CorpusWords,
    Languages,
    SharedSpan,
    count_words,
    other_name,
    other_value,
    replace_spans,
    shared_figures,
    shared_names,
    shared_number_words,
    write_figures,
)
from training.sections import AugmentationArguments

TextPair = tuple[str, str]
VERSION = 2  # one more whenever the same text and settings would give other pairs
COUNTED_ROWS = 500_000  # of which names and lowercase words are taken
WITHOUT_SPACES = ("ja", "zh", "th")
FULL_STOPS = (".", "。")
# Their capital letter says "you".
FORMAL_WORDS = frozenset(["Sie", "Ihnen", "Ihr", "Ihre", "Ihren", "Ihrem", "Ihrer", "Ihres"])


class AugmentedPairs(TextPairs):
    """A text, and after each of its pairs what is made of it; rows are numbered anew.

    Attributes:
        counts: of each kind, `added_` and its name, the pairs that the last reading from beginning to end has added.

    Args:
        pairs: the text.
        arguments: section `augmentation` of the recipe.
        languages: codes of source and target; what needs to know a language is left out for an unknown one.
    """

    def __init__(self, pairs: TextPairs, arguments: AugmentationArguments, languages: Languages):
        settings = {**dataclasses.asdict(arguments), "languages": languages, "version": VERSION}
        super().__init__(self._read_augmented, lambda: {"pairs": pairs.key, "augmentation": settings})
        self.pairs, self.arguments, self.languages = pairs, arguments, languages
        self._augmenter: Augmenter | None = None

    def _read_augmented(self) -> Iterator[Pair]:
        if self._augmenter is None:
            words = count_words(islice(self.pairs.read(), COUNTED_ROWS), self.languages)
            self._augmenter = Augmenter(self.arguments, self.languages, words)
        counts = Counter(dict.fromkeys((f"added_{kind}" for kind in self.arguments.rates), 0))
        before: list[TextPair] = []
        for row_id, (source, target) in enumerate(self.pairs.read()):
            if source is None or target is None:
                yield None, None
                continue
            yield source, target
            for kind, pair in self._augmenter.make(row_id, (source, target), before):
                counts[f"added_{kind}"] += 1
                yield pair
            before = [*before[-1:], (source, target)]
        self.counts = dict(counts)


def augment_pairs(pairs: TextPairs, arguments: AugmentationArguments, languages: Languages) -> TextPairs:
    """The text with what section `augmentation` adds to it; the text itself if that is nothing."""
    return AugmentedPairs(pairs, arguments, languages) if any(arguments.rates.values()) else pairs


class Augmenter:
    """Makes pairs of a pair.

    Args:
        words: names and lowercase words of the corpus.
    """

    def __init__(self, arguments: AugmentationArguments, languages: Languages, words: CorpusWords):
        self.arguments, self.languages, self.words = arguments, languages, words
        self.rates = arguments.rates
        self.space = ["" if language in WITHOUT_SPACES else " " for language in languages]

    def make(self, row_id: int, pair: TextPair, before: list[TextPair]) -> Iterator[tuple[str, TextPair]]:
        """The kind and text of each pair that is added.

        Args:
            row_id: the place of the pair in its text.
            before: the pairs before it, at most two.
        """
        generator = random.Random(self.arguments.augmentation_seed << 40 | row_id)
        for kind, rate in self.rates.items():
            for _ in range(int(rate) + (generator.random() < rate % 1)):
                made = self.make_one(kind, pair, before, generator)
                if made is not None:
                    yield kind, made

    def make_one(self, kind: str, pair: TextPair, before: list[TextPair], generator: random.Random) -> TextPair | None:
        """A pair of this kind, or None if it cannot be made of this one."""
        if kind == "joined":
            return self._join([*before, pair], generator)
        return getattr(self, f"_change_{kind}")(*pair, generator)

    def _change_numbers(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        shared = shared_figures(source, target, self.languages) or []
        # 1 has another form of the noun beside it, and 0 is often no quantity.
        shared = [spans for spans in shared if spans[0].value not in ("0", "1")]
        return self._replace_figures(source, target, shared, generator)

    def _change_number_words(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        if shared_figures(source, target, self.languages) is None:
            return None
        shared = shared_number_words(source, target, self.languages)
        return self._replace_figures(source, target, shared, generator, share_kept=0.3)

    def _replace_figures(
        self, source: str, target: str, shared: list[SharedSpan], generator: random.Random, share_kept: float = 0.0
    ) -> TextPair | None:
        """Other figures in all places, each different from all others; `share_kept` of them have the same value."""
        if not shared:
            return None
        texts, written = (source, target), []
        used = {span.value for span, _ in shared_figures(source, target, self.languages) or []}
        for spans in shared:
            old = str(spans[0].value)
            value = old if old.isdigit() and old not in used and generator.random() < share_kept else None
            while value is None or value in used or (value == old and not share_kept):
                value = other_value(spans, texts, self.languages, generator)
            used.add(value)
            written.append(write_figures(spans, value, texts, self.languages, generator))
        return self._replace(source, target, shared, written)

    def _change_names(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        shared = shared_names(source, target, self.words.names, self.languages[1])
        if not shared or len(self.words.names) < 2:
            return None
        names = [other_name(spans, self.words, generator) for spans in shared]
        if len(set(names)) < len(names) or any(name in source + target for name in names):
            return None
        return self._replace(source, target, shared, [(name, name) for name in names])

    def _change_placeholders(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        names = shared_names(source, target, self.words.names, self.languages[1])
        shared = [spans for spans in names if not spans[1].has_genitive]
        shared += shared_figures(source, target, self.languages) or []
        if not shared:
            return None
        chosen = generator.sample(shared, generator.randint(1, min(len(shared), len(PLACEHOLDERS))))
        chosen.sort(key=lambda spans: spans[0].start)
        return self._replace(source, target, chosen, list(zip(PLACEHOLDERS, PLACEHOLDERS, strict=True)))

    def _replace(self, source: str, target: str, shared: list[SharedSpan], texts: list[tuple[str, str]]) -> TextPair:
        replaced = [
            replace_spans(text, [(spans[side], new[side]) for spans, new in zip(shared, texts, strict=False)])
            for side, text in enumerate((source, target))
        ]
        return replaced[0], replaced[1]

    def _change_outer_placeholders(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        is_first = generator.random() < 0.3
        mark = PLACEHOLDERS[0]
        sides = [
            f"{mark}{space}{text}" if is_first else f"{text}{space}{mark}"
            for text, space in zip((source, target), self.space, strict=True)
        ]
        return sides[0], sides[1]

    def _join(self, pairs: list[TextPair], generator: random.Random) -> TextPair | None:
        """The last two or three, which must be whole sentences, one after another."""
        num_joined = 2 if generator.random() < 0.7 else 3
        pairs = pairs[-num_joined:]
        if len(pairs) < num_joined or not all(side.endswith(SENTENCE_END) for pair in pairs for side in pair):
            return None
        dash = generator.random() < 0.1
        sides = [
            (f"{space}– " if dash else space).join(texts)
            for space, texts in zip(self.space, zip(*pairs, strict=True), strict=True)
        ]
        num_words = (
            len(text.split()) if space else len(text) // 2 for space, text in zip(self.space, sides, strict=True)
        )
        return (sides[0], sides[1]) if max(num_words) <= self.arguments.max_joined_words else None

    def _change_informal(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        form = generator.random()
        changed = source, target
        if form < 0.8 and all(map(_ends_in_full_stop, changed)):
            changed = changed[0][:-1], changed[1][:-1]
        if form > 0.2 and (first := self._without_capital(source, 0)):
            word = target.split(" ")[0].strip(".,")
            is_formal = word in FORMAL_WORDS and re.search(r"\byou", source, re.IGNORECASE)
            second = None if is_formal else self._without_capital(target, 1)
            changed = first + changed[0][1:], (second or target[0]) + changed[1][1:]
        return changed if changed != (source, target) else None

    def _without_capital(self, text: str, side: int) -> str | None:
        """The first letter made small, if the first word is written so inside sentences."""
        word = re.match(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text)
        if word is None or word[0][0].lower() == word[0][0]:
            return None
        small = word[0][0].lower() + word[0][1:]
        return small[0] if small in self.words.lowercase[side] else None

    def _change_capitals(self, source: str, target: str, generator: random.Random) -> TextPair | None:
        capitals = source.upper(), target.upper()
        return capitals if capitals[0] != source and capitals[1] != target else None


def _ends_in_full_stop(text: str) -> bool:
    """Whether a text ends in one full stop, not that of an abbreviation, and with something before it."""
    return text.endswith(FULL_STOPS) and len(text) > 2 and re.search(r"(?:\.\w|[^\w%$€])[.。]$", text) is None
