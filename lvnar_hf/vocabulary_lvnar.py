"""What a tokenizer.json may hold: the parts that `train_tokenizer` makes, in sizes that are in proportion.

What is unusual: the file is read as JSON before the tokenizers library sees it. What that library takes can fill the
memory, run for ever or end the process: padding to billions of tokens, replacements that double a text again and again,
patterns that backtrack. So this is a list of what is allowed, patterns to the letter.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import base64
import re
import struct
from pathlib import Path
from typing import Any

from .soundness_lvnar import read_json_object

# Characters of no width, as a regular expression: soft hyphen, zero-width space, marks of direction, word joiner,
# invisible operators, byte order mark; and joiners, except inside scripts and emoji that are written with them.
_JOINED = "\u0590-\u1cff\u2190-\u21ff\u231a-\u23ff\u2600-\u27bf\u2934-\u2935\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff"
_JOINERS = "[\u200c\u200d]+"
INVISIBLE = (
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]+"
    f"|(?<![{_JOINED}\u200c\u200d]){_JOINERS}|(?<![\u200c\u200d]){_JOINERS}(?![{_JOINED}\u200c\u200d])"
)

_MARK = "\u2581"  # stands for a space
_REPLACED_PATTERNS = (INVISIBLE, r"\s+", " {2,}", "^ | $")
# Between words of pieces; and, of a unigram vocabulary, where its special and byte tokens are parted.
_SPLIT_PATTERN = re.compile(
    rf"(?:{_MARK}\?)?\[\^\\p\{{L\}}\\p\{{M\}}{_MARK}\]|[</>0-9a-z]+\(\?=[</>0-9a-z]+(?:\[0-9A-F\]\{{2\}}>)?\)"
    rf"(?:\|[</>0-9a-z]+\(\?=[</>0-9a-z]*(?:\[0-9A-F\]\{{2\}}>)?\)){{0,7}}"
)
_MOST_PARTS = 8  # of a sequence; a replacement doubles a text at most
_MOST_TOKENS = 2**21
_LONGEST_TOKEN = 1000  # characters
_LONGEST_CHARSMAP = 2**21  # bytes; sentencepiece's has 240,000
_LONGEST_REPLACED = 256  # bytes that one character becomes by such a map
_LONGEST_PADDED = 2**16  # tokens

_NORMALIZERS = ("Replace", "NFC", "NFKC", "Strip", "Precompiled")
_PRE_TOKENIZERS = ("Metaspace", "Split")
_DECODERS = ("Replace", "ByteFallback", "Fuse", "Strip")
_MODEL_FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "BPE": {
        "dropout": (None,),  # it would make encoding random
        "unk_token": ("<unk>",),
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "fuse_unk": (False,),
        "byte_fallback": (True,),
        "ignore_merges": (False, None),
    },
    "Unigram": {"unk_id": (2,), "byte_fallback": (True,)},
}
_SEQUENCE_A, _SEQUENCE_B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
_END = {"SpecialToken": {"id": "</s>", "type_id": 0}}


def check_vocabulary_file(file: str | Path) -> dict[str, Any]:
    """The fields of a tokenizer.json; one with parts that `train_tokenizer` does not make is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file and the part.
    """
    fields = read_json_object(file)
    try:
        _check_lengths(fields)
        _check_model(fields.get("model"))
        _check_added_tokens(fields.get("added_tokens", []))
        for part in _parts(fields, "normalizer", "normalizers", _NORMALIZERS):
            _check_normalizer(part)
        for part in _parts(fields, "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS):
            _check_pre_tokenizer(part)
        for part in _parts(fields, "decoder", "decoders", _DECODERS):
            _check_decoder(part)
        _check_post_processor(fields.get("post_processor"))
    except ValueError as error:
        raise ValueError(f"{file}: {error} Tokenizers for this model are made by train_tokenizer.") from error
    return fields


def _refuse_unless(condition: bool, field: str, value: Any) -> None:
    if not condition:
        shown = repr(value)
        raise ValueError(f"{field} is {shown[:80]}{'...' * (len(shown) > 80)}, which this package does not make.")


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _check_lengths(fields: dict[str, Any]) -> None:
    padding, truncation = fields.get("padding"), fields.get("truncation")
    if padding is not None:
        _refuse_unless(isinstance(padding, dict), "padding", padding)
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else 0
        _refuse_unless(_is_count(fixed, _LONGEST_PADDED), "padding", padding)
        _refuse_unless(_is_count(padding.get("pad_to_multiple_of") or 0, _LONGEST_PADDED), "padding", padding)
    if truncation is not None:
        _refuse_unless(isinstance(truncation, dict), "truncation", truncation)
        longest, stride = truncation.get("max_length"), truncation.get("stride", 0)
        _refuse_unless(_is_count(longest, 2**31) and _is_count(stride, max(0, longest - 2)), "truncation", truncation)


def _check_model(model: Any) -> None:
    _refuse_unless(isinstance(model, dict), "model", model)
    kind = model.get("type")
    _refuse_unless(isinstance(kind, str) and kind in _MODEL_FIELDS, "model.type", kind)
    _refuse_unless(
        model.keys() <= {"type", "vocab", "merges", *_MODEL_FIELDS[kind]}, "the list of model's fields", list(model)
    )
    for name, allowed in _MODEL_FIELDS[kind].items():
        value = model.get(name)
        is_allowed = any(type(value) is type(one) and value == one for one in allowed)
        _refuse_unless(is_allowed, f"model.{name}", value)
    vocab = model.get("vocab")
    if kind == "BPE":
        _refuse_unless(isinstance(vocab, dict), "model.vocab", vocab)
        ids, tokens = list(vocab.values()), vocab.keys()
        is_dense = all(type(i) is int for i in ids) and sorted(ids) == list(range(len(ids)))
        _refuse_unless(is_dense, "the list of model.vocab's ids", ids[:5])
        merges = model.get("merges")
        _refuse_unless(isinstance(merges, list) and len(merges) <= _MOST_TOKENS, "model.merges", merges)
    else:
        _refuse_unless(isinstance(vocab, list), "model.vocab", vocab)
        is_sound = all(isinstance(e, list) and len(e) == 2 and isinstance(e[1], (int, float)) for e in vocab)
        _refuse_unless(is_sound, "model.vocab", vocab)
        tokens = [entry[0] for entry in vocab]
    _refuse_unless(3 <= len(vocab) <= _MOST_TOKENS, "the size of model.vocab", len(vocab))
    for token in tokens:
        _refuse_unless(isinstance(token, str) and len(token) <= _LONGEST_TOKEN, "a token of model.vocab", token)


def _check_added_tokens(tokens: Any) -> None:
    _refuse_unless(isinstance(tokens, list) and len(tokens) <= _MOST_TOKENS, "added_tokens", tokens)
    for token in tokens:
        _refuse_unless(isinstance(token, dict), "added_tokens", token)
        content = token.get("content")
        _refuse_unless(isinstance(content, str) and 0 < len(content) <= _LONGEST_TOKEN, "added_tokens", token)
        _refuse_unless(_is_count(token.get("id"), _MOST_TOKENS), "added_tokens", token)


def _parts(fields: dict[str, Any], name: str, list_name: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    part: Any = fields.get(name)
    _refuse_unless(isinstance(part, dict), name, part)
    parts: Any = part.get(list_name) if part.get("type") == "Sequence" else [part]
    _refuse_unless(isinstance(parts, list) and len(parts) <= _MOST_PARTS, name, parts)
    for one in parts:
        _refuse_unless(isinstance(one, dict) and one.get("type") in kinds, name, one)
    return parts


def _check_normalizer(part: dict[str, Any]) -> None:
    if part["type"] == "Precompiled":
        charsmap: Any = part.get("precompiled_charsmap")
        is_short = isinstance(charsmap, str) and len(charsmap) <= _LONGEST_CHARSMAP
        _refuse_unless(is_short, "normalizer.precompiled_charsmap", charsmap)
        try:
            content = base64.b64decode(charsmap, validate=True)
            (trie_size,) = struct.unpack_from("<I", content)
        except (ValueError, struct.error) as error:
            raise ValueError("normalizer.precompiled_charsmap is no map of characters.") from error
        _refuse_unless(4 + trie_size < len(content), "normalizer.precompiled_charsmap, its trie's size", trie_size)
        longest = max(map(len, content[4 + trie_size :].split(b"\0")))
        _refuse_unless(longest <= _LONGEST_REPLACED, "normalizer.precompiled_charsmap, its longest text", longest)
    elif part["type"] == "Replace":
        _check_replacement("normalizer", part)


def _check_replacement(field: str, part: dict[str, Any]) -> None:
    pattern: Any = part.get("pattern")
    content = part.get("content")
    _refuse_unless(isinstance(content, str) and len(content) <= 1, f"{field}.content", content)
    _refuse_unless(isinstance(pattern, dict) and len(pattern) == 1, f"{field}.pattern", pattern)
    text = pattern.get("String")
    is_character = isinstance(text, str) and len(text) == 1
    _refuse_unless(is_character or pattern.get("Regex") in _REPLACED_PATTERNS, f"{field}.pattern", pattern)


def _check_pre_tokenizer(part: dict[str, Any]) -> None:
    if part["type"] == "Metaspace":
        _refuse_unless(part.get("replacement") == _MARK, "pre_tokenizer.replacement", part.get("replacement"))
    else:
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) and len(pattern) == 1 else None
        is_own = isinstance(regex, str) and len(regex) < 200 and _SPLIT_PATTERN.fullmatch(regex) is not None
        _refuse_unless(is_own, "pre_tokenizer.pattern", pattern)


def _check_decoder(part: dict[str, Any]) -> None:
    if part["type"] == "Replace":
        _check_replacement("decoder", part)
    elif part["type"] == "Strip":
        is_sound = part.get("content") == " " and all(_is_count(part.get(n), 1) for n in ("start", "stop"))
        _refuse_unless(is_sound, "decoder", part)


def _check_post_processor(part: Any) -> None:
    expected = {
        "type": "TemplateProcessing",
        "single": [_SEQUENCE_A, _END],
        "pair": [_SEQUENCE_A, _SEQUENCE_B, _END],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    _refuse_unless(part == expected, "post_processor", part)
