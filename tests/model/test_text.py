"""Text of any kind: taken apart before the model and put together after it, without loss.

Most tests use a model of their own making: it sets each sentence that it is given in ⟨⟩, or mistreats placeholders.
"""

import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import pytest
from conftest import ROOT

from lvnar_hf import train_tokenizer
from lvnar_hf.subwords_lvnar import PLACEHOLDERS
from lvnar_hf.text_lvnar import INVISIBLE, TextFormat, drop_invisible

SHIPPED = ROOT / "model_cards" / "lvnar-tatoeba-en-de"


class CharacterTokenizer:
    """A token for each character."""

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def __call__(self, text: str, **options) -> dict[str, list[int]]:
        return {"input_ids": [*map(ord, text), 1]}


class PlaceholderlessTokenizer(CharacterTokenizer):
    """As sentencepiece's NMT rules: no control characters."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if character not in PLACEHOLDERS]


def translate(
    text: str,
    model: Callable[[str], str] = "⟨{}⟩".format,
    tokenizer: CharacterTokenizer | None = None,
    **options,
) -> str:
    text_format = TextFormat(tokenizer or CharacterTokenizer(), **options)
    ((translation,),) = text_format.translate([text], lambda sentences: [[model(sentence)] for sentence in sentences])
    return translation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I was late. Tom laughed.  Why?", "⟨I was late.⟩ ⟨Tom laughed.⟩  ⟨Why?⟩"),
        ("I met Dr. Smith at 5 p.m. He left.", "⟨I met Dr. Smith at 5 p.m.⟩ ⟨He left.⟩"),
        ("i was late. tom laughed.", "⟨i was late.⟩ ⟨tom laughed.⟩"),
        ("  One line.\r\n\r\n\tAnother.\n", "  ⟨One line.⟩\r\n\r\n\t⟨Another.⟩\n"),
        ("a\u2028b\u0085c\x0cd", "⟨a⟩\u2028⟨b⟩\u0085⟨c⟩\x0c⟨d⟩"),
        (
            "- milk\n* eggs\n• salt\n1. wash\n2) cut\n[ ] cook",
            "- ⟨milk⟩\n* ⟨eggs⟩\n• ⟨salt⟩\n1. ⟨wash⟩\n2) ⟨cut⟩\n[ ] ⟨cook⟩",
        ),
        ("# Heading\n> quoted", "# ⟨Heading⟩\n> ⟨quoted⟩"),
        ("name\tplace", "⟨name⟩\t⟨place⟩"),
        # Characters of no width, and spaces.
        ("\ufeffTom\u200b laug\u00adhed.", "⟨Tom laughed.⟩"),
        ("Tom\u00a0laughed\u2009 loud.\u00a0", "⟨Tom laughed loud.⟩\u00a0"),
        # Marks at the edges.
        ("- Hello. - Bye.", "- ⟨Hello.⟩ - ⟨Bye.⟩"),
        ("–Hello.", "–⟨Hello.⟩"),
        ("...and so on", "...⟨and so on⟩"),
        ("“I am tired.”", "“⟨I am tired.⟩”"),
        ("„Ich bin müde.“", "„⟨Ich bin müde.⟩“"),
        ("'I'm tired.'", "'⟨I'm tired.⟩'"),
        ("(“Hi.”)", "(“⟨Hi.⟩”)"),
        ("**Hello there.**", "**⟨Hello there.⟩**"),
        ("<p>Tom laughed.</p>", "<p>⟨Tom laughed.⟩</p>"),
        ("<p>Yes. So</p><p>Hi <b>Tom</b>.</p>", "<p>⟨Yes.⟩ ⟨So⟩</p><p>⟨Hi <b>⟨Tom⟩</b>.⟩</p>"),
        ("<p>Yes.</p><p>No.</p>", "<p>⟨Yes.⟩</p><p>⟨No.⟩</p>"),
        ('<div class="x"><b>Hi.</b><br/></div>', '<div class="x"><b>⟨Hi.⟩</b><br/></div>'),
        ("Hi! 😀 How are you? 👨‍👩‍👧❤️ :-) :smile:", "⟨Hi!⟩ 😀 ⟨How are you?⟩ 👨‍👩‍👧❤️ :-) :smile:"),
        # What looks like a mark and is none.
        ('"Yes," he said.', '⟨"Yes," he said.⟩'),
        ("'Tis late, and the boys' dog barks", "⟨'Tis late, and the boys' dog barks⟩"),
        ("-5 degrees. $5, please. C# is hard", "⟨-5 degrees.⟩ ⟨$5, please.⟩ ⟨C# is hard⟩"),
        ("(Tom) laughs. Tom (laughs)", "⟨(Tom) laughs.⟩ ⟨Tom (laughs)⟩"),
        ("It is 30°. 100% sure.", "⟨It is 30°.⟩ ⟨100% sure.⟩"),
        ("¿Qué? ¡Hola!", "⟨¿Qué?⟩ ⟨¡Hola!⟩"),
        ("a < b at 10:30:15, 5% of 3/4", "⟨a < b at 10:30:15, 5% of 3/4⟩"),
        # Nothing to translate.
        ("-", "-"),
        (" ... \n!!!", " ... \n!!!"),
        ("😀", "😀"),
        ("https://a.b/c?d", "https://a.b/c?d"),
        ("Go. --- ***", "⟨Go.⟩ --- ***"),
        ("```py\nprint('Hi.')\n```\nGo.\n```", "```py\nprint('Hi.')\n```\n⟨Go.⟩\n```"),
        ("", ""),
        (" \n ", " \n "),
        # Tables: cell by cell.
        ("| a cell | **b** |\n|:--|--:|\n|1|Yes. No|", "| ⟨a cell⟩ | **⟨b⟩** |\n|:--|--:|\n|⟨1⟩|⟨Yes.⟩ ⟨No⟩|"),
        ("a | b\n--- | ---\n`x|y` | a|b", "⟨a⟩ | ⟨b⟩\n--- | ---\n`x|y` | ⟨a|b⟩"),
        # What is marked: parts of a sentence by themselves, whole sentences as they stand.
        ('Read [the book](https://a.b/c_(d) "x y") now.', '⟨Read [⟨the book⟩](https://a.b/c_(d) "x y") now.⟩'),
        ("[Click here](<a b>)", "[⟨Click here⟩](<a b>)"),
        ("[![a [b] c](x.png)](https://a.b) is it", "⟨[![⟨a [b] c⟩](x.png)](https://a.b) is it⟩"),
        ("See [the page][ref] or [`x`](y), [](z).", "⟨See [⟨the page⟩][ref] or [`x`](y), [](z).⟩"),
        ("[ref]: https://a.b\n[^1]: So.[2] I go.[^note]", "[ref]: https://a.b\n[^1]: ⟨So.⟩[2] ⟨I go.⟩[^note]"),
        ("It is **very big** and *so _old_*.", "⟨It is **⟨very big⟩** and *⟨so _⟨old⟩_⟩*.⟩"),
        ("**Note:** I am ***here***.", "⟨**⟨Note:⟩:** I am ***⟨here⟩***.⟩"),
        ("**I was late.** ~~Tom laughed.~~ Why?", "**⟨I was late.⟩** ~~⟨Tom laughed.⟩~~ ⟨Why?⟩"),
        ('A <a href="x">red <i>car</i></a>.', '⟨A <a href="x">⟨red <i>⟨car⟩</i>⟩</a>.⟩'),
        ("\x1b[1;31mRed\x1b[0m is \x1b[4mso\x1b[m.", "⟨\x1b[1;31m⟨Red⟩\x1b[0m is \x1b[4m⟨so⟩\x1b[m.⟩"),
        ("SEE **THAT** [BIG CAR](x)", "⟨SEE **⟨THAT⟩** [⟨BIG CAR⟩](x)⟩"),
        ("a[0] * b[1] * 2*3*4, **kwargs, a**b", "⟨a[0] * b[1] * 2*3*4, **kwargs, a**b⟩"),
        ("He said *I am\nhere* so", "⟨He said *I am⟩\n⟨here* so⟩"),
        # Capitals.
        ("I'M HERE, TOM. YES.", "⟨I'M HERE, TOM.⟩ ⟨YES.⟩"),
        ("NATO. I saw TOM.", "⟨NATO.⟩ ⟨I saw TOM.⟩"),
    ],
)
def test_what_is_translated_and_what_is_kept(text, expected):
    assert translate(text) == expected


def test_japanese_sentences_and_quotations():
    text = "「はい。」と言った。私は学生です。あなたは？"
    assert translate(text, source_language="ja", model="⟨{}。⟩".format).count("⟨") == 3
    assert translate(text, source_language="ja", model=lambda sentence: "So.") == "So. So. So."
    assert translate("I was late. Tom laughed.", model=lambda sentence: "はい。") == "はい。はい。"


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("I'M HERE, TOM. YES!", ["I'm here, tom.", "Yes!"], "GROSS I'M HERE, TOM. GROSS YES!"),
        ("WHERE AM I?", ["Where am I?"], "GROSS WHERE AM I?"),
        ("SEE {name}, TOM", ["See \x01, tom"], "GROSS SEE {name}, TOM"),
        ("NATO!", ["NATO!"], "groß NATO!"),
        ("I am. NO!", ["I am.", "NO!"], "groß I am. groß NO!"),
        ("日本語 文", ["日本語 文"], "groß 日本語 文"),
    ],
)
def test_capitals_are_recased(text, given, expected):
    seen = []
    assert translate(text, lambda sentence: seen.append(sentence) or f"groß {sentence}") == expected
    assert seen == given


# Placeholders

SPANS = [
    "https://en.wikipedia.org/wiki/A_(b)?q=1&r={x}#top",
    "www.example.org/index.html",
    "example.com",
    "a.b+c@d-e.co.uk",
    "{{ user.name }}",
    "{0}",
    "${count}",
    "%s",
    "%1$d",
    "%(total).2f",
    "%%",
    "{% if x %}",
    "{count, plural, one {# item} other {{n} items}}",
    "%name%",
    "$name",
    "--dry-run",
    "--level=3",
    "/usr/bin/python",
    "~/x/y.txt",
    "C:\\Users\\tom",
    "bit.ly/abc",
    "example.de",
    ":smile:",
    "@user_1",
    "@user@server.social",
    "#42",
    "#tag",
    "`x = 1`",
    "``a `b` c``",
    "<b>",
    "</b>",
    "<pre>",
    '<a href="https://a.b/c d">',
    "&nbsp;",
    "&#8212;",
    "😀",
    "👩🏽‍🚀",
    "❤️",
    "🇩🇪",
    "1️⃣",
    ":-)",
    "<3",
    "\x03",
    # As newcomers typed them, and their relatives.
    "README.md",
    "lvnar_hf/text_lvnar.py",
    "a-b_c.tar.gz",
    "./run.sh",
    "../x",
    "~/x",
    "$x^2$",
    "$\\alpha + 2$",
    "$$x_1$$",
    "\\(a b\\)",
    "MAX_VALUE",
    "__init__",
    "os.path.join()",
    "<https://a.b/c>",
    "<code>x = 1</code>",
    "[^1]",
    "[12]",
    "![](a.png)",
    "\x1b[0;31m",
    "\x1b]8;;https://a.b\x1b\\",
]


def without_placeholders(text: str) -> str:
    return "".join(character for character in text if character not in PLACEHOLDERS)


MODELS = {
    "identity": lambda text: text,
    "shouting": str.upper,
    "dropping": without_placeholders,
    "doubling": lambda text: "".join(2 * c if c in PLACEHOLDERS else c for c in text),
    "reversing": lambda text: text[::-1],
    "inventing": lambda text: f"{text}\x08\x01",
    "breaking lines": lambda text: text.replace(" ", "\n\t"),
    "silent": lambda text: "",
}


@pytest.mark.parametrize(
    "text", ["If a<b then we go and c>d is true.", "It costs $5.00 or 5/6, and/or nothing.", "Is 1 < 2 and 3 > 2?"]
)
def test_signs_that_protect_nothing(text):
    seen = []
    assert translate(text, lambda sentence: seen.append(sentence) or sentence) == text and seen == [text]


@pytest.mark.parametrize("span", SPANS)
def test_each_kind_of_span_is_protected(span):
    seen = []
    text = f"We saw {span} there, Tom."
    assert translate(text, lambda sentence: seen.append(sentence) or sentence.upper()) == f"WE SAW {span} THERE, TOM."
    assert seen == ["We saw \x01 there, Tom."]
    for model in MODELS.values():
        for tokenizer in (None, PlaceholderlessTokenizer()):
            assert translate(text, model, tokenizer).count(span) == 1


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("see example.com.", "see \x01."),
        ("see https://a.b/c, ok?", "see \x01, ok?"),
        ("write (a@b.de) now", "write (\x01) now"),
        ("ask @tom!", "ask \x01!"),
        ("“#tag” is it", "“\x01” is it"),
        ("go to https://a.b/c_(d).", "go to \x01."),
        ("詳しくはhttps://a.b/cを見て。", "詳しくは\x01を見て。"),
    ],
)
def test_the_punctuation_after_a_span_is_not_part_of_it(text, given):
    seen = []
    assert translate(text, lambda sentence: seen.append(sentence) or sentence) == text and seen == [given]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "The word Москва is it.", "⟨The word \x01 is it.⟩"),
        ("en", "He said 「日本 語」 and π, مرحبا بك.", "⟨He said 「\x01」 and \x02.⟩"),
        ("de", "Müßige Größe, e\u0301, ªº, ﬁ, Ａ, ĸ, ɐ, ᵃ.", "⟨Müßige Größe, e\u0301, ªº, ﬁ, Ａ, ĸ, ɐ, ᵃ.⟩"),
        ("en", "Где вокзал? Там.", "Где вокзал? Там."),
        ("ru", "Где 東京?", "⟨Где 東京?⟩"),
        (None, "The word Москва", "⟨The word Москва⟩"),
    ],
)
@pytest.mark.filterwarnings("ignore:The text is written")
def test_words_in_other_letters_stay_where_the_source_is_latin(language, text, expected):
    seen = []
    shown = translate(text, lambda sentence: seen.append(sentence) or f"⟨{sentence}⟩", source_language=language)
    assert shown.replace("⟨", "").replace("⟩", "") == text
    assert "".join(f"⟨{sentence}⟩" for sentence in seen) == (expected if "⟨" in expected else "")


def test_what_is_marked_is_translated_by_itself_and_may_move():
    models = {"I see \x01 and \x02.": ["\x02 and \x01.", "\x01 \x02"], "a [b] c": ["A.", "B"], "very": ["so", "too"]}
    seen = []
    text_format = TextFormat(CharacterTokenizer())
    text = "I see [a [b] c](https://a.b) and **very**."
    found = text_format.translate([text], lambda sentences: [seen.append(s) or models[s] for s in sentences])
    assert found == [["**so** and [A](https://a.b).", "[B](https://a.b) **too**"]]
    assert seen == list(models)


def test_placeholders_may_move():
    translation = translate("Tom sent {a} to {b}.", lambda text: "\x02 got \x01 from Tom.")
    assert translation == "{b} got {a} from Tom."


def test_spans_that_a_model_pushes_together_stay_apart():
    """By one space; those that touched before may touch after."""
    assert translate("Got {a} {b}/{c}.", lambda text: "got \x01\x02/\x03.") == "got {a} {b}/{c}."
    assert translate("Got {a}{b}.", lambda text: "got \x01\x02.") == "got {a}{b}."
    assert translate("Got {a} {b} {c}.", lambda text: "got \x03\x01\x02.") == "got {c} {a} {b}."


def test_what_a_model_loses_doubles_or_invents_is_translated_in_pieces():
    pieces = "⟨Tom sent⟩ {a} ⟨to⟩ {b}, ⟨see?⟩?"  # the last mark is the source's

    def careless(change: Callable[[str], str]) -> str:
        return translate("Tom sent {a} to {b}, see?", lambda text: f"⟨{change(text)}⟩")

    for change in (
        without_placeholders,
        MODELS["doubling"],
        MODELS["inventing"],
        lambda text: text.replace("\x02", ""),
    ):
        assert careless(change) == pieces
    assert careless(lambda text: text) == "⟨Tom sent {a} to {b}, see?⟩"
    assert translate("Tom sent {a} to {b}, see?", tokenizer=PlaceholderlessTokenizer()) == pieces
    # A piece is no sentence: the mark that a model puts after it goes, and that of the source stays.
    for mark in (".", "!", "", "?!"):
        for source in ("Tom sent {a}.", "Hi, {a}!"):
            assert translate(source, lambda text: without_placeholders(text).rstrip(".,") + mark) == source  # noqa: B023


def test_where_the_model_says_nothing_the_source_stays():
    assert translate("I\tam\thungry.", lambda text: "" if text == "am" else text.upper()) == "I\tam\tHUNGRY."
    assert translate("I am ${a}, not ${b}!", lambda text: "" if "\x01" in text or text == "not" else text) == (
        "I am ${a}, not ${b}!"
    )
    assert translate(" .\x01. ", lambda text: "") == " .\x01. "


@pytest.mark.parametrize(
    ("text", "translations", "expected"),
    [
        ("Room 1100 costs $99.99.", ["Raum 1,100 kostet 99,99 $."], "Raum 1,100 kostet 99,99 $."),
        ("I paid 1000 yen.", ["Ich zahlte 100 Yen.", "Ich zahlte \x01 Yen."], "Ich zahlte 1000 Yen."),
        ("We meet at 10:30.", ["Um 130.", "Um \x01 Uhr."], "Um 10:30 Uhr."),
        ("We meet at 5:30 p.m.", ["Um 17:30 Uhr."], "Um 17:30 Uhr."),
        ("We meet at 5:30 p.m.", ["Um 53 Uhr.", "Um \x01."], "Um 5:30 p.m."),
        ("At 5:30 p.m. Tom left.", ["Um 53.", "Um \x01 ging Tom."], "Um 5:30 p.m. ging Tom."),
        ("I paid $66 for 12% now.", ["Ich.", "Ich zahlte\x01für\x02."], "Ich zahlte $66 für 12%."),
        ("I ran 200 meters.", ["Ich.", "Ich lief \x01eter."], "Ich lief 200 eter."),
        ("See 200 here.", ["だ。", "これは\x01です。"], "これは200です。"),
        ("The IP is 192.168.0.1:8080.", ["11118.", "IP: \x01."], "IP: 192.168.0.1:8080."),
        ("It costs 12.50.", ["Es kostet 1250.", "Es kostet \x01."], "Es kostet 12.50."),
        ("It closes at 8:00.", ["Um 8:0 Uhr.", "Um \x01 Uhr."], "Um 8:00 Uhr."),
        ("It opens at 09:00.", ["Um 9.00 Uhr."], "Um 9.00 Uhr."),
        ("It costs 10,000.", ["Es kostet 10000."], "Es kostet 10000."),
        ("I see 3 cats.", ["Ich sehe drei Katzen."], "Ich sehe drei Katzen."),
        ("12 and 12, {a}", ["12, \x01", "\x01 und \x02, \x03"], "12 und 12, {a}"),
        ("I am 42.", ["Ich bin 4.", "Ich bin.", "Ich bin"], "Ich bin 42."),
        ("42", ["4.", "no"], "42"),
    ],
)
def test_figures_are_compared_and_kept(text, translations, expected):
    remaining = iter(translations)
    assert translate(text, lambda sentence: next(remaining)) == expected


def test_more_spans_than_placeholders():
    names = [f"{{{index}}}" for index in range(10)]
    assert translate(f"We know {' and '.join(names[:8])}.") == f"⟨We know {' and '.join(names[:8])}.⟩"
    assert translate(f"We know {' and '.join(names)}.") == f"⟨We know⟩ {' ⟨and⟩ '.join(names)}."


def test_a_placeholder_that_was_not_given_is_taken_out():
    assert translate("Tom laughed.", lambda text: "Tom \x01lachte.\x08") == "Tom lachte."


# Length


def test_a_sentence_that_is_too_long_is_parted_at_clauses():
    text = "I went home, and she went out, but he stayed; Tom laughed – Mary cried {a}, too."
    parted = translate(text, max_length=40)
    assert parted == "⟨I went home, and she went out,⟩ ⟨but he stayed;⟩ ⟨Tom laughed – Mary cried {a}, too.⟩"
    assert translate(text, max_length=30).endswith("⟨Tom laughed⟩ – ⟨Mary cried {a}, too.⟩")
    assert translate(text, max_length=200) == f"⟨{text}⟩"
    seen = []
    translate("word, " * 20_000, lambda sentence: seen.append(sentence) or sentence, max_length=40)
    assert max(map(len, seen)) <= 39 and sum(map(len, seen)) > 100_000
    assert translate("word " * 100, max_length=40) == f"⟨{('word ' * 100).strip()}⟩ ", "no place to part it"


# Random text

ALPHABET = [
    *"aBI.!?,;:-–—*#@%{}<>&()[]\"'“”„「」。、 ´/\\|~_=^0159日éßЯ",
    *(
        "\n",
        "\r\n",
        "\t",
        "\u2028",
        "\x1f",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\u200d",
        "\u00ad",
        "\u0301",
        "\x00",
    ),
    *(" Hello there. ", " I HAVE SEEN ", "<p>", "</li>", "\n- ", "```\n", "Mr. ", "\ud7ff", "\U0010ffff"),
]
LINE_ENDS = ("\r\n", *"\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029")


def lines_of(text: str) -> tuple[list[str], list[str]]:
    """The lines of a text, characters of no width dropped; and what ends them."""
    lines, ends, position = [""], [], 0
    while position < len(text):
        end = next((end for end in LINE_ENDS if text.startswith(end, position)), None)
        if end:
            ends.append(end)
            lines.append("")
        else:
            lines[-1] += text[position]
        position += len(end or " ")
    return [drop_invisible(line) for line in lines], ends


@pytest.mark.parametrize("language", ["en", "ja", None])
@pytest.mark.parametrize("model", MODELS)
def test_random_text_keeps_lines_outer_spaces_and_protected_spans(model, language):
    """Over all cases more than 5,000 texts, each with up to three spans."""
    generator = random.Random(f"{model} {language}")
    text_format = TextFormat(CharacterTokenizer(), 60, language)
    texts, spans = [], []
    for _ in range(250):
        parts = [generator.choice(ALPHABET) for _ in range(generator.randrange(40))]
        spans.append([generator.choice(SPANS) for _ in range(generator.randrange(4))])
        for span in spans[-1]:
            parts.insert(generator.randrange(len(parts) + 1), f" {span} ")
        texts.append("".join(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = text_format.translate(texts, lambda sentences: [[MODELS[model](s)] for s in sentences])
    for text, own, (result,) in zip(texts, spans, results, strict=True):
        if not text.strip():
            assert result == text
            continue
        (lines, ends), (result_lines, result_ends) = lines_of(text), lines_of(result)
        assert ends == result_ends, (text, result)
        for line, result_line in zip(lines, result_lines, strict=True):
            assert result_line.startswith(line[: len(line) - len(line.lstrip())]), (text, result)
            assert result_line.endswith(line[len(line.rstrip()) :]), (text, result)
            if model == "identity":
                assert result_line.split() == line.split(), (text, result)
        for span in own:
            assert result.count(span) == text.count(span), (span, text, result)


@pytest.mark.parametrize(
    "hostile",
    [
        *("(", "`", "``a ", "<a", "<!--", "{", "{{a", "a@", "a.", ":a", "😀", "www.", "%(", "#a", "x", "x/", "a://"),
        *("' a", ".", "!?", "{a, plural, ", "{a, plural, {x{", "<a b=c ", "/a", "--a ", "$a", "\n"),
        "\u200d",
        "\u0915" + 39_000 * "\u200d" + "\u0915",
        "```\n",
        "« ",
    ],
)
def test_no_text_takes_long(hostile):
    start = time.perf_counter()
    translate(hostile * (40_000 // len(hostile)) + "a", max_length=128)
    assert time.perf_counter() - start < 3


def test_a_plain_sentence_costs_little():
    """The whole step, before and after; a pipeline adds a dictionary to it."""
    text_format, seconds = TextFormat(CharacterTokenizer(), 128, "en"), []
    for _ in range(500):
        start = time.perf_counter()
        text_format.translate(["Where is the station?"], lambda sentences: [sentences])
        seconds.append(time.perf_counter() - start)
    print(f"{min(seconds) * 1e6:.0f} us at least, {statistics.median(seconds) * 1e6:.0f} us in the middle")
    assert min(seconds) < 0.2e-3


# What is said about it


def test_several_translations_of_each_sentence():
    text_format = TextFormat(CharacterTokenizer())
    texts = ["Go. {a} is {b}, Tom?", "-", "Stop."]
    found = text_format.translate(texts, lambda sentences: [[s.lower(), without_placeholders(s)] for s in sentences])
    assert found == [["go. {a} is {b}, tom?", "Go. {a} is {b}, Tom?"], ["-", "-"], ["stop.", "Stop."]]


def test_without_sentencex_a_plain_rule_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    text_format = TextFormat(CharacterTokenizer())
    marked = lambda sentences: [[f"⟨{s}⟩"] for s in sentences]  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_format.translate(["I met Mr. Smith, e.g. Tom."], marked) == [["⟨I met Mr. Smith, e.g. Tom.⟩"]]
    with pytest.warns(UserWarning, match=r"pip install 'lvnar-hf\[text\]', or .* pip install sentencex") as record:
        for _ in range(2):
            assert text_format.translate(["So. “Why?” 5 men."], marked) == [["⟨So.⟩ “⟨Why?⟩” ⟨5 men.⟩"]]
    assert len(record) == 1
    assert text_format.translate(["はい。いいえ。"], marked) == [["⟨はい。⟩ ⟨いいえ。⟩"]]


@pytest.mark.parametrize(
    ("language", "text", "is_other"),
    [
        ("en", "Где вокзал?", True),
        ("en_XX", "私は学生です。", True),
        ("de", "Müßige Größe – “Я”.", False),
        ("ru", "Где вокзал?", False),
        ("ru-RU", "Where is the station?", True),
        ("ja", "iPhone 15 Pro Maxを買う", False),
        ("ja", "Where is the station?", True),
        ("en", "😀 ← π", False),
        (None, "Где вокзал?", False),
    ],
)
def test_another_script_than_the_languages_is_said_once(language, text, is_other):
    text_format = TextFormat(CharacterTokenizer(), source_language=language)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(2):
            text_format.translate([text], lambda sentences: [[s] for s in sentences])
    assert ["other letters" in str(warning.message) for warning in record] == [True] * is_other


def test_surrogates_are_refused():
    with pytest.raises(ValueError, match="surrogates"):
        translate("a\ud800b")


# The tokenizer's normalisation


def test_the_tokenizer_drops_what_the_pipeline_drops():
    texts = ["The cat sat on the mat, and the dog sat on the cat."] * 3
    tokenizer = train_tokenizer(texts, texts, vocab_size=300, min_character_count=2)
    text = "\ufeffT\u200bhe\u00a0c\u00adat\u200d \u2060sat\u202e."
    assert tokenizer.normalize(text) == "The cat sat." and tokenizer.encode(text) == tokenizer.encode("The cat sat.")
    assert tokenizer.normalize("👨‍👩‍👧 می‌خواهم") == "👨‍👩‍👧 می‌خواهم", "joiners that are part of the spelling"
    generator = random.Random(0)
    odd = [
        "\u200b",
        "\u200c",
        "\u200d",
        "\ufeff",
        "\u00ad",
        "\u2066",
        "a",
        " ",
        "😀",
        "\ufe0f",
        "م",
        "\u0301",
        "日",
        "é",
    ]
    for _ in range(2000):
        text = "".join(generator.choice(odd) for _ in range(generator.randrange(9)))
        normalised = tokenizer.normalize(text)
        assert normalised == tokenizer.normalize(drop_invisible(text)) == drop_invisible(normalised), text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == normalised
    for placeholder in PLACEHOLDERS:
        assert tokenizer.normalize(f"a {placeholder} b") == f"a {placeholder} b"
        assert tokenizer.tokenize(placeholder)[-1] == f"<0x{ord(placeholder):02X}>"
    assert "\u200b" in INVISIBLE
