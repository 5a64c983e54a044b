"""What a sentence and its translation share letter by letter, or by rule: figures, number words, names.

A span counts only if it stands exactly once on each side, in the form that the side's language gives
it ("1,234.50" and "1.234,50"), so that both can be replaced without a word aligner.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LATIN = "A-Za-zÀ-ɏ"
DIGITS = "0-9０-９"
TO_ASCII = str.maketrans("０１２３４５６７８９", "0123456789")
TO_WIDE = str.maketrans("0123456789", "０１２３４５６７８９")
# A whole figure, separators inside included: not a part of a longer one, nor of a word or a decade.
FIGURE = re.compile(
    rf"(?<![{LATIN}{DIGITS}_.,:/])[{DIGITS}]+(?:[.,:][{DIGITS}]+)*(?![{LATIN}{DIGITS}_/]|[.,:][{DIGITS}]|-[{LATIN}]|['’]s)"
)
DIGIT = re.compile(f"[{DIGITS}]")
# Between thousands, and before decimals. Of other languages only runs of digits are known.
SEPARATORS = {"en": (",", "."), "ja": (",", "."), "de": (".", ",")}

# What stands around a figure says how large it may be.
HALF_DAY_AFTER = re.compile(r"\s?[ap]\.?\s?m\b", re.IGNORECASE)
CLOCK_AFTER = re.compile(r"\s?(?:o['’]clock|Uhr\b|時)|" + HALF_DAY_AFTER.pattern, re.IGNORECASE)
CLOCK_BEFORE = re.compile(r"(?:^|\s)(?:um|halb|gegen|bis|vor|nach|seit|ab)\s$", re.IGNORECASE)
AT_BEFORE = re.compile(r"\bat\s$", re.IGNORECASE)
HOURS = frozenset(map(str, range(2, 25)))
DATE_AFTER = re.compile(r"\.\s\S|日|月")
PERCENT_AFTER = re.compile(r"\s?(?:%|％|percent|per cent|Prozent|パーセント)")
MINUTES_AFTER = re.compile(r"\s?(?:分|minutes? (?:past|to)\b|Minuten (?:vor|nach)\b)")
MONEY_AFTER = re.compile(r"\s?(?:[$€£]|dollars?\b|euros?\b|pounds\b|Pfund\b)", re.IGNORECASE)
MONEY_BEFORE = re.compile(r"[$€£]\s?$")

UNITS = {
    "en": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "de": ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
}
TEENS = {
    "en": ["ten", "eleven", "twelve", "thir", "four", "fif", "six", "seven", "eigh", "nine"],
    "de": ["zehn", "elf", "zwölf", "drei", "vier", "fünf", "sech", "sieb", "acht", "neun"],
}
TENS = {
    "en": ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
    "de": ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"],
}
TEEN = {"en": "teen", "de": "zehn"}  # what the last seven of TEENS end in


def _number_words(language: str) -> dict[str, int]:
    """Words from 2 to 99; 1 is an article too, and takes another form of the noun."""
    units, tens = UNITS[language], TENS[language]
    words = {word: value for value, word in enumerate(units[1:], start=2)}
    for value, word in enumerate(TEENS[language], start=10):
        words[word if value < 13 else word + TEEN[language]] = value
    for ten, word in enumerate(tens, start=2):
        words[word] = 10 * ten
        for unit, name in enumerate(units, start=1):
            words[f"{name}und{word}" if language == "de" else f"{word}-{name}"] = 10 * ten + unit
    return words


NUMBER_WORDS = {language: _number_words(language) for language in UNITS}
NUMBER_WORD = {
    language: re.compile(
        # Not in "two hundred and four", of which it is a part.
        rf"(?<![\w-])(?<!hundred and )(?<!hundert und )(?:{'|'.join(sorted(words, key=len, reverse=True))})(?![\w-])"
        r"(?! (?:hundred|thousand|million|hundert|tausend|million))",
        re.IGNORECASE,
    )
    for language, words in NUMBER_WORDS.items()
}

# Words that say "more than two"; a figure takes their place, whatever ending German gives them. Not after what makes
# another thing of them, as "how many" and "the many".
SEVERAL = "several"
QUANTIFIER = {
    "en": re.compile(r"(?<![\w-])(?:many|several|a few)(?= [a-z])(?! (?:a|an|the)\b)", re.IGNORECASE),
    "de": re.compile(r"(?<![\w-])(?:vielen?|mehreren?|einigen?|ein paar)(?= \w)(?! Malen?\b)", re.IGNORECASE),
}
NO_QUANTITY_BEFORE = re.compile(
    r"\b(?:how|so|too|as|that|very|not|quite|the|these|those|my|your|his|her|our|their|in|of"
    r"|wie|zu|sehr|nicht|genauso|ebenso|die|den|der|(?:dies|mein|dein|sein|ihr|unser)e[nr]?) $",
    re.IGNORECASE,
)

NAME = re.compile(rf"(?<![{LATIN}'’-])[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]{{2,}}(?![{LATIN}-])")
MIN_NAME_COUNT = 3  # pairs of the corpus in which a name stands on both sides
# Months that several languages write alike.
NOT_NAMES = frozenset(["April", "August", "September", "November", "March", "Mai", "Juni", "Juli"])
PRONOUNS = {"en": ({"he", "him", "his"}, {"she", "her", "hers"})}
PLACE_SHARE = 0.15  # of a name's occurrences inside sentences that follow "in", from which on it is a place
SENTENCE_END = (".", "!", "?", ":", "…", "。", "！", "？")
QUOTES_AND_STOPS = "\"'“”„‚‘’«»‹›()[].,;:!?…-–—"


@dataclass
class Span:
    """A stretch of a text.

    Attributes:
        start, end: in characters.
        value: what it stands for, the same in every language: "1234.50", "3:30", a name; None: nobody can say.
        kind: of a figure: "whole", "decimal" or "time".
        separator: of a time, between hour and minute.
        is_grouped: thousands are separated.
        is_wide: written in the full-width digits of East Asia.
        has_genitive: of a name: German's s follows.
    """

    start: int
    end: int
    value: str | None
    kind: str = ""
    separator: str = ":"
    is_grouped: bool = False
    is_wide: bool = False
    has_genitive: bool = False


SharedSpan = tuple[Span, Span]
Languages = tuple[str | None, str | None]  # of source and target


def replace_spans(text: str, replacements: Iterable[tuple[Span, str]]) -> str:
    """The text with other strings in place of some spans, which do not overlap."""
    for span, new in sorted(replacements, key=lambda replacement: -replacement[0].start):
        text = text[: span.start] + new + text[span.end :]
    return text


# figures


def find_figures(text: str, language: str | None) -> list[Span]:
    """Every figure of a text, in order; `value` is None for one that cannot be read, as 1.2.2003."""
    return [_read_figure(match, text, language) for match in FIGURE.finditer(text)]


def _read_figure(match: re.Match[str], text: str, language: str | None) -> Span:
    figure = match[0].translate(TO_ASCII)
    span = Span(*match.span(), None, is_wide=figure != match[0])
    if figure.isdigit():
        span.value, span.kind = figure, "whole"
    elif (time := re.fullmatch(r"(\d\d?)([:.])(\d\d)", figure)) and (
        time[2] == ":" or CLOCK_AFTER.match(text, match.end())
    ):
        if int(time[1]) < 24 and int(time[3]) < 60:
            span.value, span.kind, span.separator = f"{int(time[1])}:{time[3]}", "time", time[2]
    elif language in SEPARATORS:
        thousands, point = map(re.escape, SEPARATORS[language])
        number = re.fullmatch(rf"(\d{{1,3}}(?:{thousands}\d{{3}})+|\d+)(?:{point}(\d+))?", figure)
        if number:
            whole = re.sub(thousands, "", number[1])
            span.value, span.kind = (f"{whole}.{number[2]}", "decimal") if number[2] else (whole, "whole")
            span.is_grouped = whole != number[1]
    return span


def write_figures(
    shared: SharedSpan, value: str, texts: tuple[str, str], languages: Languages, generator: random.Random
) -> tuple[str, str]:
    """A value in the form of each language, as its span was written.

    English dollars, euros and pounds become a sign, half of the time; where an hour of the clock becomes a time to the
    minute, "o'clock" goes and "Uhr" comes. The spans' ends are moved to what is replaced.
    """
    written = []
    for span, text, language in zip(shared, texts, languages, strict=True):
        new = _write_figure(value, span, language)
        if ":" in value and span.kind != "time":
            if language == "de" and not CLOCK_AFTER.match(text, span.end):
                new += " Uhr"
            elif language == "en" and (clock := re.compile(r"\so['’]clock").match(text, span.end)):
                span.end = clock.end()
        elif (
            language == "en"
            and (money := re.compile(r" (dollars|euros|pounds)\b").match(text, span.end))
            and not MONEY_BEFORE.search(text[: span.start])
            and generator.random() < 0.5
        ):
            span.end, new = money.end(), {"d": "$", "e": "€", "p": "£"}[money[1][0]] + new
        written.append(new)
    return written[0], written[1]


def _write_figure(value: str, span: Span, language: str | None) -> str:
    if ":" in value:
        text = value.replace(":", span.separator)
    else:
        thousands, point = SEPARATORS.get(language or "", (",", "."))
        whole, _, fraction = value.partition(".")
        text = f"{int(whole):,}".replace(",", thousands) if span.is_grouped else whole
        text += point + fraction if fraction else ""
    return text.translate(TO_WIDE) if span.is_wide else text


def pair_up(source: Sequence[Span], target: Sequence[Span]) -> list[SharedSpan]:
    """The spans whose value stands exactly once on each side, in the source's order."""
    sides = []
    for spans in (source, target):
        values = [span.value for span in spans]
        sides.append({span.value: span for span in spans if span.value is not None and values.count(span.value) == 1})
    return [(span, sides[1][value]) for value, span in sides[0].items() if value in sides[1]]


def shared_figures(source: str, target: str, languages: Languages) -> list[SharedSpan] | None:
    """All figures of a pair, source side and target side; None if there is a digit that the other side has not."""
    if not DIGIT.search(source) and not DIGIT.search(target):
        return []
    sides = [find_figures(text, language) for text, language in zip((source, target), languages, strict=True)]
    shared = [pair for pair in pair_up(*sides) if pair[0].kind == pair[1].kind]
    for side, text in enumerate((source, target)):
        in_figures = sum(len(DIGIT.findall(text, pair[side].start, pair[side].end)) for pair in shared)
        if in_figures != len(DIGIT.findall(text)):
            return None
    return shared


def shared_number_words(source: str, target: str, languages: Languages) -> list[SharedSpan]:
    """Number words that say the same on both sides, as whole numbers, and words that say `SEVERAL`."""
    if languages[0] not in NUMBER_WORDS or languages[1] not in NUMBER_WORDS:
        return []
    sides = []
    for text, language in zip((source, target), languages, strict=True):
        words = NUMBER_WORDS[str(language)]
        found = NUMBER_WORD[str(language)].finditer(text)
        spans = [Span(*match.span(), str(words[match[0].lower()]), "whole") for match in found]
        for match in QUANTIFIER[str(language)].finditer(text):
            is_quantity = not NO_QUANTITY_BEFORE.search(text[: match.start()])
            spans.append(Span(*match.span(), SEVERAL if is_quantity else None, "whole"))
        sides.append(spans)
    return sorted(pair_up(*sides), key=lambda pair: pair[0].start)


def other_value(shared: SharedSpan, texts: tuple[str, str], languages: Languages, generator: random.Random) -> str:
    """Another value that the sentence can hold: an hour stays an hour, a percentage under 100, a day in its month.

    Where nothing speaks against it, figures have one to six digits, often two equal ones in a row. `is_grouped` of
    both spans is set where the figure is to have its thousands separated, `separator` for a time that is made of an
    hour.

    Args:
        shared: the figure (or number word) on both sides.
        texts: source and target.
    """
    sides = list(zip(shared, texts, strict=True))
    can_separate = all(language in SEPARATORS for language in languages)

    def stands_before(pattern: re.Pattern[str]) -> bool:
        return any(pattern.match(text, span.end) for span, text in sides)

    def stands_after(pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(text[: span.start]) for span, text in sides)

    value, kind = str(shared[0].value), shared[0].kind
    last_hour = 11 if stands_before(HALF_DAY_AFTER) else 12
    if kind == "time":
        return _random_time(last_hour if stands_before(CLOCK_AFTER) else 23, generator)
    if kind == "decimal":
        return f"{random_figure(generator, 3)}.{''.join(generator.choices('0123456789', k=len(value.split('.')[1])))}"
    # "um zehn": an hour, if no noun can follow.
    is_last = not any(re.match(r"\s\w", text[span.end :]) for span, text in sides)
    ends_time = stands_after(CLOCK_BEFORE) and (is_last or stands_after(AT_BEFORE)) and value in HOURS
    if stands_before(CLOCK_AFTER) or ends_time:
        if set(languages) != {"en", "de"} or generator.random() < 0.5:
            return str(generator.randint(2, last_hour))
        shared[languages.index("de")].separator = generator.choice("::.")
        return _random_time(last_hour, generator)
    for is_so, greatest in (
        (stands_before(DATE_AFTER), 12 if stands_before(re.compile("月")) else 28),
        (stands_before(MINUTES_AFTER), 59),
        (stands_before(PERCENT_AFTER), 99),
    ):
        if is_so:
            return str(generator.randint(2, greatest))
    if value != SEVERAL and 1000 <= int(value) < 2100 and not shared[0].is_grouped and generator.random() < 0.7:
        return str(generator.randint(1000, 2099))
    if can_separate and (stands_before(MONEY_AFTER) or stands_after(MONEY_BEFORE)) and generator.random() < 0.4:
        return f"{random_figure(generator, 3)}.{generator.choice(['50', '99', f'{generator.randrange(100):02d}'])}"
    if can_separate and not any(span.is_grouped or span.is_wide for span in shared) and generator.random() < 0.4:
        shared[0].is_grouped = shared[1].is_grouped = True
    return random_figure(generator, 6)


def _random_time(last_hour: int, generator: random.Random) -> str:
    """From 2 o'clock to 59 minutes past the last hour; often with equal digits, and on the hour."""
    hour = generator.randint(2, last_hour)
    equal = hour if hour > 9 else 11 * min(hour, 5)
    minutes = generator.choice([equal, 0, *(generator.randrange(60) for _ in range(3))])
    return f"{hour}:{minutes:02d}"


def random_figure(generator: random.Random, max_digits: int) -> str:
    """A whole number of at most so many digits, from 2; some end in zeros, some have equal digits in a row."""
    weights = [10, 35, 25, 15, 8, 7][:max_digits]
    (num_digits,) = generator.choices(range(1, len(weights) + 1), weights)
    digits = [generator.choice("23456789"), *generator.choices("0123456789", k=num_digits - 1)]
    if num_digits > 1:
        digits[0] = generator.choice("123456789")
        place, chance = generator.randrange(1, num_digits), generator.random()
        if chance < 0.3:
            digits[place] = digits[place - 1]
        elif chance < 0.5:
            digits[place:] = "0" * (num_digits - place)
    return "".join(digits)


# names


@dataclass
class CorpusWords:
    """What the words of a corpus say of themselves.

    Attributes:
        names: names that both sides write alike, and of which kind each is: "place", "he", "she" or "".
        lowercase: of either side, the words that stand inside sentences more often without a capital than with one.
    """

    names: dict[str, str] = field(default_factory=dict)
    lowercase: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))

    def names_of(self, kind: str) -> list[str]:
        """The names of a kind, sorted; all, if there are fewer than two."""
        names = sorted(name for name, own_kind in self.names.items() if own_kind == kind)
        return names if len(names) > 1 else sorted(self.names)


def count_words(pairs: Iterable[tuple[str | None, str | None]], languages: Languages) -> CorpusWords:
    """Names and lowercase words of a corpus, in one pass; only its vocabulary is held in memory."""
    inside: tuple[dict[str, int], dict[str, int]] = ({}, {})  # occurrences inside sentences, by word
    shared: dict[str, int] = {}  # pairs with the name on both sides
    after_in: dict[str, int] = {}
    gender: dict[str, int] = {}  # pairs with "he" less those with "she"
    masculine, feminine = PRONOUNS.get(languages[0] or "", (set(), set()))
    for source, target in pairs:
        if source is None or target is None:
            continue
        for text, counts in zip((source, target), inside, strict=True):
            before = "."
            for word in text.split():
                bare = word.strip(QUOTES_AND_STOPS)
                if bare and not before.endswith(SENTENCE_END) and word[0] == bare[0]:
                    counts[bare] = counts.get(bare, 0) + 1
                    if counts is inside[0] and before == "in" and bare[0].isupper():
                        after_in[bare] = after_in.get(bare, 0) + 1
                before = word
        if names := set(NAME.findall(source)).intersection(NAME.findall(target)):
            words = set(source.lower().split())
            sign = bool(words & masculine) - bool(words & feminine)
            for name in names:
                shared[name] = shared.get(name, 0) + 1
                gender[name] = gender.get(name, 0) + sign
    found = CorpusWords()
    for name, count in sorted(shared.items()):
        capitals, small = inside[0].get(name, 0), inside[0].get(name.lower(), 0)
        if count >= MIN_NAME_COUNT and capitals >= 2 and 10 * small <= capitals and name not in NOT_NAMES:
            is_place = after_in.get(name, 0) >= PLACE_SHARE * capitals
            found.names[name] = "place" if is_place else {0: ""}.get(gender[name], "he" if gender[name] > 0 else "she")
    for counts, lowercase in zip(inside, found.lowercase, strict=True):
        lowercase.update(
            word for word, count in counts.items() if word == word.lower() and count > counts.get(_capitalize(word), 0)
        )
    return found


def _capitalize(word: str) -> str:
    return word[:1].upper() + word[1:]


def shared_names(source: str, target: str, names: dict[str, str], target_language: str | None) -> list[SharedSpan]:
    """Names that stand exactly once on each side, in the source's order."""
    shared = []
    for match in NAME.finditer(source):
        name = match[0]
        if name not in names or source.count(name) != 1 or target.count(name) != 1:
            continue
        if names[name] == "place" and re.search(r"[A-Z]\w*[ -]$", source[: match.start()]):
            continue  # a part of a longer name, as New York
        start = target.index(name)
        found = re.compile(rf"(?<![{LATIN}-]){name}(s?)(?![{LATIN}-])").match(target, start)
        if found is None:
            continue
        if found[1] and (target_language != "de" or not re.match(r"['’]s\b", source[match.end() :])):
            continue
        shared.append((Span(*match.span(), name), Span(start, start + len(name), name, has_genitive=bool(found[1]))))
    return shared


def other_name(shared: SharedSpan, words: CorpusWords, generator: random.Random) -> str:
    """Another name of the same kind: one of the corpus, two of them, or one put together of two halves."""
    kind = words.names[str(shared[0].value)]
    names = words.names_of(kind)
    form = generator.random()
    while True:
        first, second = generator.choice(names), generator.choice(names)
        if form < 0.4:
            name = first
        elif form < 0.55 and kind != "place" and first != second:
            name = f"{first} {second}"
        else:
            # Up to the end of a first syllable of one; from the second consonant or so of the other.
            head = re.match(r".[^aeiouy]*[aeiouy]+[^aeiouy]?", first.lower())
            tail = re.search(r"[aeiouy]+[^aeiouy]+[aeiouy]*.?$", second.lower())
            name = _capitalize((head[0] if head else first.lower()) + (tail[0] if tail else second.lower()))
        if name != shared[0].value and not (shared[1].has_genitive and name.endswith(("s", "x", "z", "ß"))):
            return name
