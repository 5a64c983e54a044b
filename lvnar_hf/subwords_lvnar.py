"""Text to ids of subwords and back, without transformers: what `LvnarTokenizer` and the commands share.

This module travels to the Hub with the model: it imports nothing but tokenizers and the standard library.
"""

import os
import threading
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from .repetitions_lvnar import find_stutter
from .segmentation_lvnar import Segmenter

# The same ids on both sides: <pad> 0, </s> 1, <unk> 2.
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
# How the tokenizers library spells the bytes of a character that is not in the vocabulary.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
# What stands for a span that must come through a translation unchanged: control characters that no text holds, each a
# byte token of its own in every vocabulary that does not normalise them away (sentencepiece's NMT rules do).
PLACEHOLDERS = tuple(map(chr, range(0x01, 0x09)))


class Lock:
    """A reentrant lock that can be copied and pickled, and is free in a process that was forked off."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()

    def __enter__(self) -> None:
        if self._process != os.getpid():  # no thread of the parent is here to free it
            self.__init__()  # type: ignore[misc]
        self._lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self._lock.release()


class SubwordsMixin:
    """Both sides of a tokenizer: a vocabulary each, or one joint one, and their segmenters.

    Attributes:
        split_special_tokens: the names of special tokens in a text are text.
        all_special_ids: of the three special tokens, and of those that were added.
    """

    _source_tokenizer: Tokenizer
    _target_tokenizer: Tokenizer
    _source_segmenter: Segmenter
    _target_segmenter: Segmenter
    _lock: Lock
    split_special_tokens: bool
    all_special_ids: list[int]

    @property
    def is_joint(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self._target_tokenizer is self._source_tokenizer

    @property
    def source_vocab_size(self) -> int:
        """Number of source ids, special tokens included."""
        return self._source_tokenizer.get_vocab_size()

    @property
    def target_vocab_size(self) -> int:
        """Number of target ids, special tokens included; the same as `len(tokenizer)` for a joint vocabulary."""
        return self._target_tokenizer.get_vocab_size()

    @property
    def target_backend_tokenizer(self) -> Tokenizer:
        """The target side of `backend_tokenizer`; the same object for a joint vocabulary."""
        return self._target_tokenizer

    @property
    def source_segmenter(self) -> str:
        """The name of the source side's segmenter, "none" if it has none."""
        return self._source_segmenter.name

    @property
    def target_segmenter(self) -> str:
        """The name of the target side's segmenter, "none" if it has none."""
        return self._target_segmenter.name

    def normalize(self, text: str, target: bool = False) -> str:
        """The text as decoding gives it back.

        U+2581, which marks a space inside the vocabulary, becomes a space; characters of no width (soft hyphen,
        zero-width space, byte order mark and the like) are dropped, if the tokenizer was trained by this version; the
        text is brought to the Unicode form chosen in training; and runs of whitespace, no-break spaces too, become one
        space, with none at either end.

        Args:
            text: any text without surrogates.
            target: apply the target side's rules; both sides have the same if `train_tokenizer` made them.
        """
        backend = self._target_tokenizer if target else self._source_tokenizer
        return str(backend.normalizer.normalize_str(text))

    def segment(self, text: str, target: bool = False) -> str:
        """The normalised text as the subwords see it: words separated by single spaces, if the side has a segmenter.

        Args:
            text: any text without surrogates.
            target: do as for the target side.

        Raises:
            ImportError, FileNotFoundError, ValueError: the segmenter lacks a package, or its model; says what to do.
        """
        segmenter = self._target_segmenter if target else self._source_segmenter
        return segmenter.segment(self.normalize(text, target))

    def encode_texts(self, texts: list[str], target: bool = False) -> list[list[int]]:
        """Ids with `</s>` of many texts: the same as `tokenizer(texts)["input_ids"]`, with much less around it.

        Args:
            texts: raw texts, as many as fit in memory with their ids.
            target: encode with the target side, as `tokenizer(text_target=texts)` does.

        Returns:
            A list of ids for each text, neither padded nor cut.
        """
        if isinstance(texts, str):
            raise ValueError(f"encode_texts takes a list of texts; given was one text: {texts[:60]!r}")
        backend = self._target_tokenizer if target else self._source_tokenizer
        segmenter = self._target_segmenter if target else self._source_segmenter
        if segmenter.name != "none" or has_added_tokens(backend):
            texts = [self.segment(text, target) for text in texts]
        try:
            with self._lock:
                # These are left from the last call; each call sets its own.
                backend.no_padding()
                backend.no_truncation()
                backend.encode_special_tokens = self.split_special_tokens
                return [encoding.ids for encoding in backend.encode_batch_fast(texts)]
        except TypeError:
            refuse_surrogates(list(texts))
            raise

    def find_repetitions(self, target_ids: list[int], source_ids: list[int]) -> list[bool]:
        """For each token of a translation, whether it only repeats the word, or piece of a word, before it.

        See `repetitions_lvnar`: what a text may rightly have twice is not one.

        Args:
            target_ids, source_ids: of the translation and its source, special tokens included.
        """
        backend = self._target_tokenizer
        pieces = [
            "" if token_id < len(SPECIAL_TOKENS) else backend.id_to_token(token_id) or "" for token_id in target_ids
        ]
        source_text = self._source_tokenizer.decode(source_ids, skip_special_tokens=True)

        def is_as_encoded(start: int, end: int) -> bool:
            # Not by `encode`, which depends on what the last call has asked for.
            text = backend.decode(target_ids[start:end], skip_special_tokens=False)
            words = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
            return [token.id for word, _ in words for token in backend.model.tokenize(word)] == target_ids[start:end]

        return find_stutter(pieces, source_text, is_as_encoded)

    def _join_subwords(self, token_ids: list[int], skip_special_tokens: bool, target: bool = True) -> str:
        """The text of ids; of special tokens their names, unless they are skipped."""
        backend = self._target_tokenizer if target else self._source_tokenizer
        segmenter = self._target_segmenter if target else self._source_segmenter
        if skip_special_tokens and has_added_tokens(backend):
            added_special_ids = set(self.all_special_ids) - set(range(len(SPECIAL_TOKENS)))
            token_ids = [token_id for token_id in token_ids if token_id not in added_special_ids]
        if segmenter.name == "none":
            return backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        # Special tokens are no words: what stands between them is joined.
        special_ids = range(len(SPECIAL_TOKENS))
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id not in special_ids]
        parts = []
        for is_special, ids in groupby(token_ids, key=lambda token_id: token_id in special_ids):
            part = backend.decode(list(ids), skip_special_tokens=False)
            parts.append(part.replace(" ", "") if is_special else segmenter.join(part))
        return "".join(parts)


def check_special_tokens(backend: Tokenizer, side: str) -> None:
    """Refuse a vocabulary that has not the special tokens at ids 0, 1 and 2.

    Raises:
        ValueError: names the side.
    """
    ids = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
    if ids != [0, 1, 2]:
        raise ValueError(
            f"the {side} vocabulary has {', '.join(SPECIAL_TOKENS)} at ids {ids}, not at 0, 1, 2: "
            "make it with train_tokenizer"
        )


def check_joint(stored: bool | None, is_joint: bool) -> None:
    """Refuse one vocabulary where the tokenizer was stored with two, and two where it was stored with one.

    Args:
        stored: `joint` of tokenizer_config.json, None if it is not there.

    Raises:
        ValueError: they differ, or the field is of another type.
    """
    if stored not in (None, True, False):
        raise ValueError(f"joint is {stored!r}; it must be true or false.")
    if stored is not None and stored != is_joint:
        found = "no target_tokenizer.json beside it" if is_joint else "a target_tokenizer.json beside it"
        raise ValueError(f"joint is {str(stored).lower()} in tokenizer_config.json, and there is {found}.")


def has_added_tokens(backend: Tokenizer) -> bool:
    """Whether there are tokens beside those of the vocabulary."""
    return backend.get_vocab_size(with_added_tokens=True) > backend.get_vocab_size(with_added_tokens=False)


def refuse_surrogates(value: Any) -> None:
    """Raise UnicodeEncodeError for the first string in nested lists, tuples and dictionaries that has a surrogate."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_surrogates(item)
