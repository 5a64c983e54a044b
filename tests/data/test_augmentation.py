"""What augmentation adds: right in both languages, the same for the same seed, and counted."""

import dataclasses
import itertools
import json
import random
import re

import pytest

import training.data.augmentation
from lvnar_hf.subwords_lvnar import PLACEHOLDERS
from tests.data.test_corpora import own_cache, write  # noqa: F401
from training.data.augmentation import AugmentedPairs, Augmenter, augment_pairs
from training.data.corpora import TextPairs, load_text_pairs
from training.data.encoding import REASONS, tokenize_pairs
from training.data.shared_spans import CorpusWords, count_words, find_figures, shared_figures, shared_names
from training.sections import AugmentationArguments

KINDS = tuple(AugmentationArguments().rates)
WORDS = CorpusWords(
    {
        "Tom": "he",
        "Ken": "he",
        "Jim": "he",
        "Marika": "she",
        "Lucy": "she",
        "Boston": "place",
        "Osaka": "place",
        "Berlin": "place",
    },
    ({"the", "is", "we", "my", "where"}, {"der", "ist", "wir", "mein", "wo", "sie"}),
)
FIGURES = [
    ("He is 33 years old.", "Er ist 33 Jahre alt."),
    ("It costs $50.", "Das kostet 50 Dollar."),
    ("I paid 20 euros.", "Ich habe 20 Euro bezahlt."),
    ("The train leaves at 3:30.", "Der Zug fährt um 3.30 Uhr ab."),
    ("Come at 5 o'clock.", "Komm um 5 Uhr."),
    ("It is 2,500 meters high.", "Er ist 2.500 Meter hoch."),
    ("I need 3.5 liters.", "Ich brauche 3,5 Liter."),
    ("Only 30% came.", "Nur 30 % kamen."),
    ("She was born on May 3, 1988.", "Sie wurde am 3. Mai 1988 geboren."),
    ("Bus 12 and bus 7 stop here.", "Bus 12 und Bus 7 halten hier."),
]
NUMBER_WORDS = [
    ("I have three cats.", "Ich habe drei Katzen."),
    ("Ten people came.", "Zehn Leute kamen."),
    ("She is twenty-five.", "Sie ist fünfundzwanzig."),
    ("Meet me at six o'clock.", "Triff mich um sechs Uhr."),
    ("He comes at seven.", "Er kommt um sieben."),
    ("I have many books.", "Ich habe viele Bücher."),
    ("She left a few minutes ago.", "Sie ging vor ein paar Minuten."),
    ("Give me two dollars.", "Gib mir zwei Dollar."),
    ("We saw two dogs and nine cats.", "Wir sahen zwei Hunde und neun Katzen."),
    ("I slept for eight hours.", "Ich habe acht Stunden geschlafen."),
]
NAMES = [
    ("Tom is here.", "Tom ist hier."),
    ("This is Tom's car.", "Das ist Toms Auto."),
    ("Ken met Lucy.", "Ken traf Lucy."),
    ("I live in Boston.", "Ich wohne in Boston."),
    ("Tom flew to Osaka.", "Tom flog nach Osaka."),
    ("Where is Marika?", "Wo ist Marika?"),
    ("Tom's coming.", "Tom kommt."),
    ("Ask Jim!", "Frag Jim!"),
    ("Lucy, come here!", "Lucy, komm her!"),
    ("Boston is big.", "Boston ist groß."),
]
HIDDEN = [
    *NAMES[:1],
    NAMES[2],
    *NAMES[3:6],
    FIGURES[0],
    FIGURES[9],
    FIGURES[3],
    ("Tom paid 50 euros.", "Tom zahlte 50 Euro."),
    ("In Osaka, Ken is 3rd.", "Ken ist in Osaka Dritter."),
]
PLAIN = [
    ("The dog sleeps.", "Der Hund schläft."),
    ("We have time.", "Wir haben Zeit."),
    ("Where are you?", "Wo bist du?"),
    ("Tom is tall.", "Tom ist groß."),
    ("My house is white.", "Mein Haus ist weiß."),
    ("The water is cold.", "Wasser ist kalt."),
    ("Is she here?", "Ist sie hier?"),
    ("I know.", "Ich weiß es."),
    ("We eat at 9 a.m.", "Wir essen um 9 Uhr."),
    ("Are you happy?", "Sind Sie froh?"),
]
TEXTS = {
    "numbers": FIGURES,
    "number_words": NUMBER_WORDS,
    "names": NAMES,
    "placeholders": HIDDEN,
    "outer_placeholders": PLAIN,
    "joined": PLAIN,
    "informal": PLAIN,
    "capitals": PLAIN,
}
# Made of them, by seeds from 1; {0} and {1} stand for the first two placeholders.
MADE = {
    "numbers": [
        ("He is 7,744 years old.", "Er ist 7.744 Jahre alt."),
        ("It costs $3.", "Das kostet 3 Dollar."),
        ("I paid 89.99 euros.", "Ich habe 89,99 Euro bezahlt."),
        ("The train leaves at 5:06.", "Der Zug fährt um 5.06 Uhr ab."),
        ("Come at 7:53.", "Komm um 7.53 Uhr."),
        ("It is 8,420 meters high.", "Er ist 8.420 Meter hoch."),
        ("I need 13.0 liters.", "Ich brauche 13,0 Liter."),
        ("Only 31% came.", "Nur 31 % kamen."),
        ("She was born on May 16, 1547.", "Sie wurde am 16. Mai 1547 geboren."),
        ("Bus 82 and bus 600 stop here.", "Bus 82 und Bus 600 halten hier."),
    ],
    "number_words": [
        ("I have 3 cats.", "Ich habe 3 Katzen."),
        ("3 people came.", "3 Leute kamen."),
        ("She is 25.", "Sie ist 25."),
        ("Meet me at 6 o'clock.", "Triff mich um 6 Uhr."),
        ("He comes at 12:33.", "Er kommt um 12.33 Uhr."),
        ("I have 8700 books.", "Ich habe 8700 Bücher."),
        ("She left 90 minutes ago.", "Sie ging vor 90 Minuten."),
        ("Give me 2 dollars.", "Gib mir 2 Dollar."),
        ("We saw 80 dogs and 3347 cats.", "Wir sahen 80 Hunde und 3347 Katzen."),
        ("I slept for 554 hours.", "Ich habe 554 Stunden geschlafen."),
    ],
    "names": [
        ("Jim is here.", "Jim ist hier."),
        ("This is Jimim's car.", "Das ist Jimims Auto."),
        ("Tom met Marika.", "Tom traf Marika."),
        ("I live in Berlin.", "Ich wohne in Berlin."),
        ("Tomen flew to Osakaka.", "Tomen flog nach Osakaka."),
        ("Where is Lucika?", "Wo ist Lucika?"),
        ("Jim's coming.", "Jim kommt."),
        ("Ask Ken!", "Frag Ken!"),
        ("Marika, come here!", "Marika, komm her!"),
        ("Bososton is big.", "Bososton ist groß."),
    ],
    "placeholders": [
        ("{0} is here.", "{0} ist hier."),
        ("{0} met Lucy.", "{0} traf Lucy."),
        ("I live in {0}.", "Ich wohne in {0}."),
        ("Tom flew to {0}.", "Tom flog nach {0}."),
        ("Where is {0}?", "Wo ist {0}?"),
        ("He is {0} years old.", "Er ist {0} Jahre alt."),
        ("Bus {0} and bus {1} stop here.", "Bus {0} und Bus {1} halten hier."),
        ("The train leaves at {0}.", "Der Zug fährt um {0} Uhr ab."),
        ("{0} paid {1} euros.", "{0} zahlte {1} Euro."),
        ("In Osaka, {0} is 3rd.", "{0} ist in Osaka Dritter."),
    ],
    "outer_placeholders": [
        ("{0} The dog sleeps.", "{0} Der Hund schläft."),
        ("We have time. {0}", "Wir haben Zeit. {0}"),
        ("{0} Where are you?", "{0} Wo bist du?"),
        ("{0} Tom is tall.", "{0} Tom ist groß."),
        ("My house is white. {0}", "Mein Haus ist weiß. {0}"),
        ("The water is cold. {0}", "Wasser ist kalt. {0}"),
        ("Is she here? {0}", "Ist sie hier? {0}"),
        ("{0} I know.", "{0} Ich weiß es."),
        ("We eat at 9 a.m. {0}", "Wir essen um 9 Uhr. {0}"),
        ("Are you happy? {0}", "Sind Sie froh? {0}"),
    ],
    "joined": [
        ("Are you happy? The dog sleeps.", "Sind Sie froh? Der Hund schläft."),
        ("Are you happy? The dog sleeps. We have time.", "Sind Sie froh? Der Hund schläft. Wir haben Zeit."),
        ("We have time. Where are you?", "Wir haben Zeit. Wo bist du?"),
        ("Where are you? Tom is tall.", "Wo bist du? Tom ist groß."),
        ("Tom is tall. My house is white.", "Tom ist groß. Mein Haus ist weiß."),
        ("Tom is tall. My house is white. The water is cold.", "Tom ist groß. Mein Haus ist weiß. Wasser ist kalt."),
        ("The water is cold. Is she here?", "Wasser ist kalt. Ist sie hier?"),
        ("Is she here? I know.", "Ist sie hier? Ich weiß es."),
        ("I know. We eat at 9 a.m.", "Ich weiß es. Wir essen um 9 Uhr."),
        ("We eat at 9 a.m. Are you happy?", "Wir essen um 9 Uhr. Sind Sie froh?"),
    ],
    "informal": [
        ("The dog sleeps", "Der Hund schläft"),
        ("we have time.", "wir haben Zeit."),
        ("where are you?", "wo bist du?"),
        ("Tom is tall", "Tom ist groß"),
        ("my house is white", "mein Haus ist weiß"),
        ("the water is cold", "Wasser ist kalt"),
        ("is she here?", "ist sie hier?"),
        ("I know", "Ich weiß es"),
        ("we eat at 9 a.m.", "wir essen um 9 Uhr."),
        None,
    ],
    "capitals": [
        ("THE DOG SLEEPS.", "DER HUND SCHLÄFT."),
        ("WE HAVE TIME.", "WIR HABEN ZEIT."),
        ("WHERE ARE YOU?", "WO BIST DU?"),
        ("TOM IS TALL.", "TOM IST GROSS."),
        ("MY HOUSE IS WHITE.", "MEIN HAUS IST WEISS."),
        ("THE WATER IS COLD.", "WASSER IST KALT."),
        ("IS SHE HERE?", "IST SIE HIER?"),
        ("I KNOW.", "ICH WEISS ES."),
        ("WE EAT AT 9 A.M.", "WIR ESSEN UM 9 UHR."),
        ("ARE YOU HAPPY?", "SIND SIE FROH?"),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_ten_examples_of_each_kind(kind):
    augmenter, texts = Augmenter(AugmentationArguments(), ("en", "de"), WORDS), TEXTS[kind]
    for index, (pair, expected) in enumerate(zip(texts, MADE[kind], strict=True)):
        before = [texts[index - 2], texts[index - 1]]
        made = augmenter.make_one(kind, pair, before, random.Random(1 + index))
        if expected is not None and "laceholders" in kind:
            expected = tuple(side.format(*PLACEHOLDERS) for side in expected)
        assert made == expected


# figures on both sides

TEMPLATES = [
    ("He is {} years old.", "Er ist {} Jahre alt."),
    ("It costs ${}.", "Das kostet {} Dollar."),
    ("I paid {} euros, not {}.", "Ich habe {} Euro bezahlt, nicht {}."),
    ("The train leaves at {}:30.", "Der Zug fährt um {}.30 Uhr ab."),
    ("It is {},250 meters and {} centimeters long.", "Er ist {}.250 Meter und {} Zentimeter lang."),
    ("I need {}.5 liters.", "Ich brauche {},5 Liter."),
    ("She came on May {}.", "Sie kam am {}. Mai."),
    ("Room {}, floor {}, house {}", "Zimmer {}, Stock {}, Haus {}"),
    ("See you at {} o'clock.", "Bis {} Uhr."),
    ("Only {}% came.", "Nur {} % kamen."),
]
WORD_TEMPLATES = [
    ("I have {} cats.", "Ich habe {} Katzen."),
    ("He comes at {}.", "Er kommt um {}."),
    ("Come at {} o'clock.", "Komm um {} Uhr."),
    ("Give me {} dollars.", "Gib mir {} Dollar."),
    ("{} of 50 came.", "{} von 50 kamen."),
]
WORDS_OF_BOTH = [("two", "zwei"), ("seven", "sieben"), ("twelve", "zwölf"), ("sixteen", "sechzehn")]
WORDS_OF_BOTH += [("seventy", "siebzig"), ("forty-one", "einundvierzig"), ("ninety-seven", "siebenundneunzig")]


def plain_numbers(text: str, thousands: str, point: str) -> list[str]:
    """The numbers of a text, as "1234.5" or "3:30", sorted; by other means than the code's."""
    text = re.sub(rf"(?<=\d){re.escape(thousands)}(?=\d{{3}}(?!\d))", "", text)
    text = re.sub(r"(\d)\.(\d\d) Uhr", r"\1:\2", text)
    return sorted(re.findall(r"\d+(?:[.:]\d+)?", re.sub(rf"(?<=\d){re.escape(point)}(?=\d)", ".", text)))


def test_figures_agree_on_both_sides_of_two_thousand_pairs():
    augmenter, generator = Augmenter(AugmentationArguments(), ("en", "de"), WORDS), random.Random(0)
    lengths, doubled, forms = set(), 0, set()
    for number in range(2000):
        is_words = number % 2
        source, target = generator.choice(WORD_TEMPLATES if is_words else TEMPLATES)
        figures = [(str(n), str(n)) for n in generator.sample(range(2, 24), 3)]
        chosen = [generator.choice(WORDS_OF_BOTH)] if is_words else figures
        pair = source.format(*(one for one, _ in chosen)), target.format(*(other for _, other in chosen))
        made = augmenter.make_one("number_words" if is_words else "numbers", pair, [], generator)
        assert made is not None and made[0] != pair[0] and made[1] != pair[1], pair
        values = plain_numbers(made[0], ",", "."), plain_numbers(made[1], ".", ",")
        assert values[0] == values[1] and len(set(values[0])) == len(values[0]), (pair, made)
        assert len(values[0]) == source.count("{") + source.count("50 came")
        if not is_words:
            assert not set(values[0]) & set(plain_numbers(pair[0], ",", ".")), "each is another"
        lengths |= {len(value) for value in values[0] if value.isdigit()}
        doubled += any(
            one == other and one.isdigit() for value in values[0] for one, other in itertools.pairwise(value)
        )
        forms |= {form for form in ("$", " dollars", "o'clock", ":") if form in made[0]} | set(
            re.findall(r"[.:,]", made[1])
        )
        assert ("o'clock" in made[0]) <= ("Uhr" in made[1]) and not re.search(r"\d:\d\d o'clock", made[0])
        if "% came" in source:
            assert float(values[0][0]) < 100
        if "May" in source:
            assert int(values[0][0]) <= 28
    assert lengths >= {1, 2, 3, 4, 5, 6} and doubled > 500 and forms == {"$", " dollars", "o'clock", ":", ".", ","}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("It is 5 p.m.", "Es ist 17 Uhr."),  # another figure
        ("I have 5 cats.", "Ich habe fünf Katzen."),
        ("Give 5 or 5.", "Gib 5 oder 5."),  # which is which?
        ("the 3rd of 5", "der 3. von 5"),
        ("It is 3.500 kilos.", "Es sind 3.500 Kilo."),  # another number in each language
        ("On 1.2.2003", "Am 1.2.2003"),
        ("A4 and 5", "A4 und 5"),
        ("1 cat", "1 Katze"),
        ("one cat", "eine Katze"),
        ("How many books?", "Wie viele Bücher?"),
        ("twenty-two-year-old", "zweiundzwanzigjährig"),
        ("two or two", "zwei oder drei"),
        ("the two of 5", "die zwei von 6"),
        ("I did it many times.", "Ich tat es viele Male."),  # 28 Mal
        ("nine hundred and four years", "neunhundert und vier Jahre"),  # parts of a larger number
        ("I have 4 hundred and two cows.", "Ich habe vier hundert und zwei Kühe."),
        ("a 20-year high", "ein Hoch von 20 Jahren"),
        ("in the 1970's", "um 1970"),
    ],
)
def test_what_is_no_figure_of_both_sides_is_left_alone(source, target):
    augmenter = Augmenter(AugmentationArguments(), ("en", "de"), WORDS)
    for kind in ("numbers", "number_words"):
        assert augmenter.make_one(kind, (source, target), [], random.Random(0)) is None


@pytest.mark.parametrize(
    ("source", "target", "is_hour"),
    [
        ("I will go at 10.", "Ich werde um 10 gehen.", True),
        ("He comes at 7.", "Er kommt um 7.", True),
        ("Wait until 4.", "Warte bis 4!", True),
        ("She is over 40.", "Sie ist nach 40.", False),
        ("I won by 10 points.", "Ich gewann um 10 Punkte.", False),
        ("Tom came 3 days ago.", "Tom kam vor 3 Tagen.", False),
    ],
)
def test_an_hour_stays_an_hour(source, target, is_hour):
    augmenter = Augmenter(AugmentationArguments(), ("en", "de"), WORDS)
    made = {augmenter.make_one("numbers", (source, target), [], random.Random(seed)) for seed in range(40)}
    values = [re.search(r"[\d,]+(?::\d\d)?", one)[0] for one, _ in made]
    if is_hour:
        assert all(2 <= int(value.split(":")[0]) <= 12 for value in values) and any(":" in value for value in values)
        assert all(("Uhr" in other) == (":" in one) for one, other in made)
    else:
        assert not any(":" in value for value in values) and max(map(len, values)) > 3


def test_a_language_that_is_not_known_has_runs_of_digits():
    assert [span.value for span in find_figures("1,5 et 2.500 à 3:30, 42", "fr")] == [None, None, "3:30", "42"]
    augmenter = Augmenter(AugmentationArguments(), ("en", "fr"), WORDS)
    for seed in range(50):
        made = augmenter.make_one("numbers", ("I have 42 cats.", "J'ai 42 chats."), [], random.Random(seed))
        assert made and re.findall(r"[\d.,]*\d", made[0]) == re.findall(r"\d+", made[1]) != ["42"]
    assert augmenter.make_one("number_words", ("two cats", "deux chats"), [], random.Random(0)) is None


def test_japanese_keeps_its_digits_and_has_no_spaces():
    augmenter = Augmenter(AugmentationArguments(), ("ja", "en"), CorpusWords())
    pair = ("３時に２０人来た。", "20 people came at 3.")
    (wide, narrow), _ = shared_figures(*pair, ("ja", "en"))
    assert (wide.value, wide.is_wide, narrow.value, narrow.is_wide) == ("3", True, "3", False)
    for seed in range(20):
        source, target = augmenter.make_one("numbers", pair, [], random.Random(seed))
        assert re.fullmatch("[２-９１][０-２]?時に[０-９]+人来た。", source)
        values = [str(int(value)) for value in re.findall(r"\d+", source)]
        assert re.fullmatch(rf"{values[1]} people came at {values[0]}\.", target)
        joined = augmenter.make_one(
            "joined", ("来た。", "He came."), [("雨。", "Rain."), ("雪。", "Snow.")], random.Random(seed)
        )
        assert re.sub("– ", "", joined[0]) in ("雪。来た。", "雨。雪。来た。") and joined[1].endswith(
            "Snow. He came."
        ) | ("– He came." in joined[1])
    assert augmenter.make_one("informal", pair, [], random.Random(1)) == ("３時に２０人来た", "20 people came at 3")
    assert augmenter.make_one("capitals", pair, [], random.Random(0)) is None
    ends = {augmenter.make_one("outer_placeholders", pair, [], random.Random(seed)) for seed in range(20)}
    mark = PLACEHOLDERS[0]
    assert ends == {(mark + pair[0], f"{mark} {pair[1]}"), (pair[0] + mark, f"{pair[1]} {mark}")}


# names


def test_names_and_lowercase_words_come_from_the_corpus():
    pairs = [
        *[("We met Tom in Boston because he asked.", "Wir trafen Tom in Boston, weil er fragte.")] * 3,
        *[("Did he see Marika? She is here.", "Hat er Marika gesehen? Sie ist hier.")] * 1,
        *[("She saw Marika and Marika saw her house.", "Marika sah das Haus, und wir sahen Marika.")] * 3,
        *[("In May the Rose is a rose in May.", "Im Mai ist die Rose eine Rose.")] * 3,
        *[("Only Twice here, Twice.", "Nur Twice hier, Twice.")] * 2,
        (None, None),
    ]
    words = count_words(pairs, ("en", "de"))
    assert words.names == {"Tom": "he", "Boston": "place", "Marika": "she"}
    assert {"met", "is", "house", "he"} <= words.lowercase[0] and {"ist", "sahen", "wir"} <= words.lowercase[1]
    assert not {"Tom", "tom", "we", "Haus", "haus", "rose", "Rose"} & (
        words.lowercase[1] | words.lowercase[0] - {"rose"}
    )


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ("Tom met Ken.", "Tom traf Ken.", ["Tom", "Ken"]),
        ("Tom's car", "Toms Auto", ["Tom"]),
        ("Tom loves it.", "Toms Liebe", []),  # no genitive in the source
        ("Tom met Tom.", "Tom traf Tom.", []),
        ("Tom is here.", "Tom ist in Tomsk.", []),
        ("Tom is Tommy.", "Tom ist Tommy.", []),
        ("Tom-Tom", "Tom", []),
        ("I left East Berlin.", "Ich verließ Berlin.", []),  # a part of a longer name
        ("Tom is here.", "Er ist hier.", []),
        ("Paul is here.", "Paul ist hier.", []),  # not in the list
    ],
)
def test_names_are_those_that_stand_once_on_each_side(source, target, names):
    assert [span.value for span, _ in shared_names(source, target, WORDS.names, "de")] == names


def test_placeholders_are_numbered_as_the_source_has_them():
    augmenter = Augmenter(AugmentationArguments(), ("en", "de"), WORDS)
    seen = set()
    for seed in range(60):
        made = augmenter.make_one(
            "placeholders", ("Lucy gave 50 to Ken.", "Ken bekam von Lucy 50."), [], random.Random(seed)
        )
        marks = [mark for mark in made[0] if mark in PLACEHOLDERS]
        assert marks == list(PLACEHOLDERS[: len(marks)]) == sorted(mark for mark in made[1] if mark in PLACEHOLDERS)
        seen.add(made)
    first, second, third = PLACEHOLDERS[:3]
    assert (f"{first} gave {second} to {third}.", f"{third} bekam von {first} {second}.") in seen and len(seen) == 7


def test_joined_sentences_are_whole_and_not_too_long():
    augmenter = Augmenter(AugmentationArguments(max_joined_words=4), ("en", "de"), WORDS)
    made = [
        augmenter.make_one("joined", ("c d.", "c d."), [("a b!", "a b?")], random.Random(seed)) for seed in range(40)
    ]
    assert set(made) == {None, ("a b! c d.", "a b? c d.")}, "three need two before them, and a dash counts as a word"
    for before in (("a b", "a b."), ("a b c.", "a b."), ("a.", "a b c.")):
        assert augmenter.make_one("joined", ("c d.", "c d."), [before], random.Random(2)) is None


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Wait...", "Warte..."),
        ("He left at 5 p.m.", "Er ging um 17 Uhr"),
        ("Tom sleeps!", "Tom schläft!"),
        ("Ken", "Ken"),
        ('"The dog"', "„Der Hund“"),
        ("", ""),
        (".", "."),
    ],
)
def test_what_has_no_capital_or_full_stop_to_lose(source, target):
    augmenter = Augmenter(AugmentationArguments(), ("en", "de"), CorpusWords({}, ({"wait"}, {"warte"})))
    made = {augmenter.make_one("informal", (source, target), [], random.Random(seed)) for seed in range(30)}
    assert made <= {None, ("wait...", "warte...")}


# the text


def many_pairs() -> list[tuple[str, str] | tuple[None, None]]:
    pairs = [pair for texts in TEXTS.values() for pair in texts] * 3
    return [*pairs[:50], (None, None), ("", ""), *pairs[50:]]


def text_of(pairs) -> TextPairs:
    return TextPairs(lambda: iter(pairs), lambda: "test")


SOME = {"augment_numbers": 1.5, "augment_names": 0.5, "augment_joined": 0.3, "augment_informal": 0.2}


def test_the_text_stays_and_what_is_added_is_counted():
    pairs = many_pairs()
    text = AugmentedPairs(text_of(pairs), AugmentationArguments(**SOME), ("en", "de"))
    rows = list(text.read())
    assert text.counts == {f"added_{kind}": text.counts[f"added_{kind}"] for kind in KINDS}
    assert sum(text.counts.values()) == len(rows) - len(pairs) > 100
    assert (
        text.counts["added_capitals"]
        == 0
        < min(text.counts[f"added_{kind}"] for kind in ("numbers", "names", "joined"))
    )
    remaining = iter(rows)
    assert all(pair in remaining for pair in pairs), "every pair, in its order"
    assert [row["row_id"] for row in text] == list(range(len(rows))) and len(text) == len(rows)
    # So many for each pair that the kind can be made of: all, or with 1.5 one or two.
    for rate, least, most in ((1.0, 1.0, 1.0), (3.0, 3.0, 3.0), (1.5, 1.2, 1.8)):
        capitals = AugmentedPairs(text_of(pairs), AugmentationArguments(augment_capitals=rate), ("en", "de"))
        num_capitals = sum(1 for _ in capitals.read()) - len(pairs)
        assert num_capitals == capitals.counts["added_capitals"]
        assert least <= num_capitals / (len(pairs) - 2) <= most


def test_a_seed_is_a_text():
    def read(**changes) -> list:
        arguments = AugmentationArguments(**SOME | changes)
        return list(AugmentedPairs(text_of(many_pairs()), arguments, ("en", "de")).read())

    assert read() == read() != read(augmentation_seed=2)
    text = AugmentedPairs(text_of(many_pairs()), AugmentationArguments(**SOME), ("en", "de"))
    assert list(text.read()) == list(text.read())
    # What is made of a pair does not depend on the pairs before it, if it is not joined to them.
    alone = {"augment_joined": 0.0, "augment_names": 0.0}
    changed = [("Hello there!", "Hallo!"), *many_pairs()[1:]]
    again = AugmentedPairs(text_of(changed), AugmentationArguments(**SOME | alone), ("en", "de"))
    assert list(again.read())[-100:] == read(**alone)[-100:]


def test_nothing_asked_for_is_the_text_itself():
    text = text_of(many_pairs())
    assert augment_pairs(text, AugmentationArguments(), ("en", "de")) is text
    assert isinstance(augment_pairs(text, AugmentationArguments(augment_names=0.1), ("en", "de")), AugmentedPairs)


def test_another_setting_is_another_text_to_the_cache():
    def key(languages=("en", "de"), **changes) -> str:
        return json.dumps(AugmentedPairs(text_of([]), AugmentationArguments(**SOME | changes), languages).key)

    others = [{field.name: 3} for field in dataclasses.fields(AugmentationArguments)]
    keys = [key(), key(("en", "fr")), *(key(**other) for other in others)]
    assert len(set(keys)) == len(keys) and key() == keys[0]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_tokenised_text_and_its_counts_are_found_again(num_workers, write, sample_tokenizer, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("training.data.encoding.CHUNK_SIZE", 40)
    pairs = [pair for pair in many_pairs() if pair[0] is not None]
    files = [
        write(f"x.{side}", list(texts)) for side, texts in zip(("en", "de"), zip(*pairs, strict=True), strict=True)
    ]

    def tokenise(**changes):
        text = augment_pairs(
            load_text_pairs(files[:1], files[1:]), AugmentationArguments(**SOME | changes), ("en", "de")
        )
        return tokenize_pairs(
            text, sample_tokenizer, 30, 20, num_workers=num_workers, cache_folder=tmp_path / f"{num_workers}"
        )

    kept, counts = tokenise()
    num_added = sum(count for name, count in counts.items() if name.startswith("added_"))
    assert counts["kept"] == len(kept) and counts["empty"] == 1 and num_added > 100
    assert sum(counts[name] for name in ("kept", *REASONS)) == len(pairs) + num_added
    sources = list(AugmentedPairs(text_of(pairs), AugmentationArguments(**SOME), ("en", "de")).read())
    expected = sample_tokenizer([source for source, _ in sources])["input_ids"]
    assert kept["input_ids"][:] == [expected[row_id] for row_id in kept["row_id"][:]]
    other, _ = tokenise(augmentation_seed=5)
    assert other.to_dict() != kept.to_dict()
    monkeypatch.setattr(training.data.augmentation, "count_words", None)
    again, same_counts = tokenise()
    assert again.to_dict() == kept.to_dict() and same_counts == counts
