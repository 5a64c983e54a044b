"""The texts of a page of HTML, translated; its markup stays character by character.

What is unusual: a text runs through the tags inside a sentence (<b>, <a>), which are shown to the translator as control
characters; it keeps those as marks (`TextFormat`), so that a sentence is translated whole.
"""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

# Inside these a text goes on; all other tags end it.
_INLINE = frozenset(
    {"a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "del", "dfn", "em", "font", "i", "img", "ins", "label"}
    | {"mark", "q", "s", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "wbr"}
)
# What is between these and their end is no text; the first may stand inside a sentence.
_KEPT_INLINE = frozenset({"code", "kbd", "samp", "var"})
_KEPT = _KEPT_INLINE | {"script", "style", "svg", "math", "pre", "textarea", "template", "noscript", "iframe"}
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)

# A tag inside a text: its number in these signs, between two others. HTML has no control characters.
_DIGITS = "\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19"
_OPEN, _CLOSE = "\x0e", "\x0f"
_CODE = re.compile(f"{_OPEN}([{_DIGITS}]+){_CLOSE}")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
# A tag that never ends: what follows is no text. (Python's parser takes quadratic time to find that out.)
_UNFINISHED = re.compile("<[A-Za-z/!?][^>]*$")
_SPACE = re.compile(r"[ \t\n\r\f]+")


class _Parts(HTMLParser):
    """Where text, tags inside a text, and everything else begin in the source."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", source))]
        self.starts: list[tuple[int, str]] = []
        self._kept: list[str] = []  # an element that is kept whole, and those of its name in it
        self._kept_kind = "markup"
        self.feed(source)
        self.close()

    def _begin(self, kind: str) -> None:
        line, column = self.getpos()
        self.starts.append((self._line_starts[line - 1] + column, self._kept_kind if self._kept else kind))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        is_marked = attributes.get("translate") == "no" or "notranslate" in (attributes.get("class") or "").split()
        self._begin("tag" if tag in _INLINE | _KEPT_INLINE else "markup")
        if not self._kept and (tag in _KEPT or is_marked) and tag not in _VOID:
            self._kept, self._kept_kind = [tag], self.starts[-1][1]
        elif tag in self._kept:
            self._kept.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin("tag" if tag in _INLINE else "markup")

    def handle_endtag(self, tag: str) -> None:
        self._begin("tag" if tag in _INLINE else "markup")
        if self._kept and self._kept[-1] == tag:
            self._kept.pop()

    def handle_data(self, data: str) -> None:
        self._begin("text")

    def _begin_markup(self, *_: Any, **__: Any) -> None:
        self._begin("markup")

    handle_comment = handle_decl = handle_pi = unknown_decl = _begin_markup


def translate_html(source: str, translate: Callable[[list[str]], list[str]]) -> str:
    """A page, or a part of one, with its texts translated.

    Attributes, comments, scripts, styles, code, preformatted text, and elements with translate="no" or the class
    "notranslate" stay as they are. White space in a text is what HTML makes of it: a space.

    Args:
        translate: gives the translations of the texts, all of the page at once.
    """
    last_end = source.rfind(">") + 1
    unfinished = _UNFINISHED.search(source, last_end)
    num_parsed = unfinished.start() if unfinished else len(source)
    starts = [(0, "markup"), *_Parts(source[:num_parsed]).starts, (num_parsed, "markup")]
    ends = [*(start for start, _ in starts[1:]), len(source)]
    pieces: list[list[tuple[str, str]]] = [[]]  # text and tags inside it, between pieces of markup
    for (start, kind), end in zip(starts, ends, strict=True):
        is_markup = kind == "markup"
        if bool(pieces[-1]) and is_markup != (pieces[-1][0][1] == "markup"):
            pieces.append([])
        pieces[-1].append((source[start:end], kind))
    texts: list[str] = []
    tags: list[list[str]] = []
    for piece in pieces:
        if piece and piece[0][1] != "markup":
            of_piece = [part for part, kind in piece if kind == "tag"]
            numbers = iter(range(len(of_piece)))
            texts.append(
                "".join(
                    _encode(next(numbers)) if kind == "tag" else _CONTROLS.sub("", _SPACE.sub(" ", html.unescape(part)))
                    for part, kind in piece
                )
            )
            tags.append(of_piece)
    translations = iter(zip(translate(texts) if texts else [], tags, strict=True))
    return "".join(
        _decode(*next(translations)) if piece and piece[0][1] != "markup" else "".join(part for part, _ in piece)
        for piece in pieces
    )


def _encode(number: int) -> str:
    return _OPEN + "".join(_DIGITS[int(digit)] for digit in str(number)) + _CLOSE


def _decode(text: str, tags: list[str]) -> str:
    def tag_of(match: re.Match[str]) -> str:
        return tags[int("".join(str(_DIGITS.index(sign)) for sign in match[1]))]

    return _CODE.sub(tag_of, html.escape(text, quote=False))
