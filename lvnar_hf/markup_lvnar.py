"""What in a line must not change, and what is marked in it: addresses, templates, code, formulas, Markdown, tags.

What is unusual: a line is handed on with a mask, one character, for each of these. The words of a link, or between two
signs of emphasis, are a part of their sentence that is translated by itself.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import re
from typing import NamedTuple

from .sentences_lvnar import BLOCK, MARK, SENTENCE_ENDS, SPAN, has_words

_URL_REST = (
    r"""(?:[^\s<>"'`(){}\u3000-\u30ff\uff00-\uffef]|\([^\s<>()]{0,200}\)|\{[^\s{}]{0,100}\})*"""
    r"""(?:[^\s<>"'`(){}\[\].,;:!?…\u3000-\u30ff\uff00-\uffef]|\([^\s<>()]{0,200}\)|\{[^\s{}]{0,100}\})"""
)
_EMOJI = (
    "(?:[\U0001f000-\U0001faff\u231a-\u23ff\u2600-\u27bf\u2b00-\u2bff]"
    "|[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2934\u2935\u3030\u303d\u3297\u3299]\ufe0f)"
    "[\ufe0e\ufe0f]?[\U0001f3fb-\U0001f3ff]?[\U000e0020-\U000e007f]*"
)
# A "<" that compares is followed by words too: without a value, an attribute has to be known.
_ATTRIBUTES = (
    r"""(?:\s+(?:[\w:@.*#-]{1,60}\s*=\s*(?:"[^"<>]{0,1000}"|'[^'<>]{0,1000}'|[^\s"'=<>`]{1,1000})"""
    r"""|(?:disabled|checked|hidden|required|selected|readonly|multiple|controls|autoplay|loop|async|defer)\b)){0,50}"""
)
# Of file names; what is a word too is left out.
_ENDINGS = (
    "avi|bak|bash|bat|bib|bin|bmp|bz2|cfg|conf|cpp|css|csv|db|deb|dll|docx?|env|epub|exe|gif|gz|hpp|html?|ics|ini|"
    "ipynb|iso|jar|java|jpe?g|json|jsonl|jsx?|kt|lock|log|lua|md|mkv|mov|mp[34]|odt|onnx|pdf|php|png|pptx?|ps1|pyc?|"
    "rar|rpm|rst|rtf|safetensors|sh|sql|svg|swift|tar|tex|tgz|tiff?|toml|tsv|tsx?|txt|wav|webp|xlsx?|xml|ya?ml|zip"
)
# A target in brackets: (https://a.b "title"), ( <a b> ); and the words of a link, which may hold others in brackets.
_TARGET = (
    r"""\(\s*(?:<[^<>\n]{0,1000}>|(?:[^\s()<>]|\([^\s()]{0,200}\)){0,1000})"""
    r"""(?:\s+(?:"[^"\n]{0,300}"|'[^'\n]{0,300}'))?\s*\)"""
)
_LABEL = r"(?:[^\[\]\n]|\[[^\[\]\n]{0,200}\]){0,500}"
_MARKED = rf"""
        !?(?<![\w\]])\[(?P<label>{_LABEL})\](?:{_TARGET}|\[[^\[\]\n]{{0,100}}\])                # links, images
      | (?<![\w*_~=])(?P<sign>(?P<letter>[*_])(?P=letter){{0,2}}(?!(?P=letter))|~~(?!~)|==(?!=))(?!\s)
        (?P<emphasised>[^\n]{{1,300}}?)(?<!\s)(?<!(?P=letter))(?P=sign)(?![\w*_~=])
      | <(?P<tag>a|abbr|b|big|cite|del|em|font|i|ins|mark|q|s|small|span|strong|sub|sup|u)(?![\w:.-]){_ATTRIBUTES}\s*>
        (?P<tagged>(?:(?!</?(?P=tag)\b)[^\n]){{1,1000}}?)</(?P=tag)>
      | (?:\x1b\[[0-9;]{{0,20}}m){{1,4}}(?P<coloured>[^\x1b\n]{{1,1000}})\x1b\[0?m             # of a terminal
"""
_PARTS = ("label", "emphasised", "tagged", "coloured")
_PROTECTED = rf"""
    (?P<span>
        (?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)                            # code
      | <(?P<raw>code|kbd|samp|var|pre|script|style|math|svg)(?![\w:.-]){_ATTRIBUTES}\s*>[^\n]{{0,2000}}?</(?P=raw)>
      | (?<![\w$])\$\$[^$\n]{{1,500}}\$\$(?!\$) | (?<!\\)\\\([^\n]{{1,500}}?\\\) | (?<!\\)\\\[[^\n]{{1,500}}?\\\]
      | (?<![\w$])\$(?![\s$])[^$\n]{{0,300}}(?<![\s\\$])\$(?![\w$])                            # formulas
      | <[A-Za-z][A-Za-z0-9+.-]{{1,20}}:[^\s<>]{{1,1000}}>
      | (?<![A-Za-z0-9+.-])(?:[A-Za-z][A-Za-z0-9+.-]{{1,20}}://|www\.|mailto:){_URL_REST}
      | (?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+%-]{{1,64}}@[A-Za-z0-9-]{{1,63}}(?:\.[A-Za-z0-9-]{{1,63}}){{1,5}}
      | (?<![A-Za-z0-9_.@-])(?:[A-Za-z0-9][A-Za-z0-9-]{{0,62}}\.){{1,5}}
        (?:com|org|net|edu|gov|int|io|dev|app|info|eu|de|fr|jp|ch|nl|pl|ru|cn|br|uk|co|ly)(?![A-Za-z0-9-])
        (?:[/?\#]{_URL_REST})?                                                              # a domain by itself
      | \{{\{{[^{{}}]{{1,200}}\}}\}} | \{{%[^{{}}]{{1,200}}%\}} | [$%\#]?\{{[^{{}}\s]{{0,100}}\}}   # templates
      | \{{\s*\w{{1,60}}\s*,\s*(?:plural|select|selectordinal|number|date|time)\b
        (?:[^{{}}]|\{{(?:[^{{}}]|\{{[^{{}}]{{0,100}}\}}){{0,200}}\}}){{0,400}}\}}                       # ICU messages
      | %[A-Za-z_]\w{{0,50}}% | (?<![\w$])\$[A-Za-z_]\w{{0,50}}                                # variables
      | (?<!\S)--[A-Za-z][\w-]{{0,50}}(?:=\S{{1,100}})?                                       # options
      | (?<![\w.~/])(?:(?:\.{{1,2}}|~)(?:/[\w.+-]{{1,100}}){{1,20}}|(?:/[\w.+-]{{1,100}}){{2,20}})/?(?<![.,;:])  # paths
      | \b[A-Za-z]:\\[\w.+\\-]{{0,200}}(?<![.,;:])
      | (?<![\w./@-])(?:[\w.+-]{{1,60}}/){{0,10}}[\w+-][\w.+-]{{0,60}}\.(?i:{_ENDINGS})(?![\w/-])(?!\.\w)     # files
      | (?<![\w.])[A-Za-z_]\w{{0,50}}(?:(?:\.|::)[A-Za-z_]\w{{0,50}}){{0,5}}\(\)                 # functions
      | (?<!\w)(?:[A-Za-z0-9]{{1,50}}(?:_[A-Za-z0-9]{{1,50}}){{1,10}}|__[a-z][a-z0-9_]{{0,50}}__)(?!\w) # identifiers
      | %%
      | %\(\w{{1,50}}\)[-+0\#]*\d{{0,4}}(?:\.\d{{1,4}})?[sdiufFeEgGxXoc]
      | (?<![\d%])%(?:\d\$)?[-+0\#]*\d{{0,4}}(?:\.\d{{1,4}})?(?:hh?|ll?|z)?[sdiufFeEgGxXoc@](?![A-Za-z])
      | (?<![A-Za-z0-9_@./])@[A-Za-z0-9_](?:[A-Za-z0-9_.-]{{0,60}}[A-Za-z0-9_])?
        (?:@[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,100}}[A-Za-z0-9])?)?
      | (?<![\w&\#/])\#\w(?:[\w-]{{0,60}}\w)?
    ) | (?P<citation>
        \[\^?\d{{1,3}}\](?![(\[])| \[\^[\w-]{{1,50}}\] | ^\s{{0,3}}\[[^\[\]\n]{{1,100}}\]:(?=\s)
    ) | (?P<marked>{_MARKED}) | (?P<block>
        </?(?:p|br|hr|div|li|[uod]l|d[td]|t[dhr]|table|h[1-6]|title|section|article|blockquote|option|label|button)
        (?![A-Za-z0-9-])[^<>]{{0,1000}}>
    ) | (?P<mark>
        <!--[^\n]{{0,1000}}?--> | </?[A-Za-z][\w:.-]{{0,60}}{_ATTRIBUTES}\s*/?> | <%[^\n]{{0,200}}?%>
      | &(?:[A-Za-z][A-Za-z0-9]{{1,31}}|\#\d{{1,7}}|\#[xX][0-9A-Fa-f]{{1,6}});
      | (?<![\w:]):(?:[+-]1|[a-z0-9_+-]{{0,60}}[a-z][a-z0-9_+-]{{0,60}}):(?!\w)
      | (?<!\S)(?:[:;=][-^o']?[)(DPp|*/\\]+|<3+|\^_?\^)(?![^\s.,;:!?])                       # :-)
      | (?:[0-9\#*]\ufe0f?\u20e3|{_EMOJI}(?:\u200d{_EMOJI})*)+
      | \x1b(?:\[[0-9;:?]{{0,50}}[ -/]{{0,3}}[@-~]|\][^\x07\x1b\n]{{0,500}}(?:\x07|\x1b\\))      # of a terminal
      | [\x00-\x08\x0e-\x1b\x7f]+
    )"""
# Letters of other scripts than the Latin one, as far as they have blocks of their own; a run of their words.
_FOREIGN = (
    "\u0370-\u1cff\u1f00-\u1fff\u2c00-\u2c5f\u2c80-\u2dff\u3005-\u3007\u3041-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf"
    "\ua4d0-\ua6ff\ua800-\uab2f\uab70-\ud7ff\uf900-\ufaff\ufb13-\ufdff\ufe70-\ufefc\uff66-\uffdc"
    "\U00010000-\U0001cfff\U0001e000-\U0001efff\U00020000-\U0003ffff"
)
_FOREIGN_WORD = rf"[{_FOREIGN}][{_FOREIGN}\u0300-\u036f\u200c\u200d]*"
_FOREIGN_WORDS = rf"(?P<foreign>{_FOREIGN_WORD}(?:[ '’.,;:\u3001\u3002\u30fb-]{{1,3}}{_FOREIGN_WORD})*)"
_ANY_SOURCE = re.compile(_PROTECTED, re.VERBOSE)
_LATIN_SOURCE = re.compile(f"{_PROTECTED}|{_FOREIGN_WORDS}".replace("[ '’", r"[\ '’"), re.VERBOSE)
# A text without any of these holds nothing that is protected or marked.
_SIGNS = re.compile(
    "[`:;@{}%#$/<&=^*_~\\[\\\\\x00-\x08\x0e-\x1b\x7f\u00a9-\u00ae\u0370-\uffff\U00010000-\U0010ffff]"
    "|www|--|\\.[A-Za-z]|\\(\\)"
)


class Marked(NamedTuple):
    """A part of a sentence and the signs around it: `[`, the words, and `](https://a.b)`."""

    before: str
    text: str
    after: str


def mask_line(line: str, is_latin: bool) -> tuple[str, list[str | Marked]]:
    """The line with a mask for each thing that is protected or marked, and these things in their order.

    Args:
        is_latin: the language is written in Latin letters, so that other letters are left as they are.
    """
    things: list[str | Marked] = []
    return (_mask(line, _LATIN_SOURCE if is_latin else _ANY_SOURCE, things) if _SIGNS.search(line) else line), things


def without_protected(text: str) -> str:
    """The text without what is protected or marked whatever the language."""
    return _ANY_SOURCE.sub("", text) if _SIGNS.search(text) else text


def _mask(line: str, pattern: re.Pattern[str], things: list[str | Marked]) -> str:
    def mask(match: re.Match[str]) -> str:
        if match["marked"] is None:
            things.append(match[0])
            return MARK if match["mark"] or match["citation"] else BLOCK if match["block"] else SPAN
        start, end = next(match.span(name) for name in _PARTS if match[name] is not None)
        marked = Marked(line[match.start() : start], line[start:end], line[end : match.end()])
        if not has_words(marked.text):
            things.append(match[0])
            return SPAN
        if marked.text.rstrip()[-1] not in SENTENCE_ENDS:
            things.append(marked)
            return SPAN
        things.append(marked.before)  # whole sentences
        masked = _mask(marked.text, pattern, things)
        things.append(marked.after)
        return f"{MARK}{masked}{MARK}"

    return pattern.sub(mask, line)
