"""Text to ids and back, with one joint vocabulary or with one for the source and one for the target.

What is unusual: nothing is ever unknown, because a character outside the vocabulary becomes its UTF-8 bytes; the text
"</s>" in a sentence is four characters and never the special token; and `decode` reads target ids, because that is what
a translation model gives. Where a side has a word segmenter, text goes in and comes out raw all the same: normalised,
segmented, then split into subwords; and joined again after decoding.

This module travels to the Hub with the model: it imports nothing but tokenizers, transformers and the standard library.
"""

import os
import threading
from contextvars import ContextVar
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from .repetitions_lvnar import find_stutter
from .segmentation_lvnar import make_segmenter
from .soundness_lvnar import read_json_object  # noqa: F401  (imported by vocabulary_lvnar: transformers 4 looks here)
from .vocabulary_lvnar import check_vocabulary_file

# The same ids on both sides: <pad> 0, </s> 1, <unk> 2.
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
# How the tokenizers library spells the bytes of a character that is not in the vocabulary.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
# What stands for a span that must come through a translation unchanged: control characters that no text holds, each a
# byte token of its own in every vocabulary that does not normalise them away (sentencepiece's NMT rules do).
PLACEHOLDERS = tuple(map(chr, range(0x01, 0x09)))


# The tokenizers, by `id`, that this thread has switched to their target side.
_ON_TARGET_SIDE: ContextVar[frozenset[int]] = ContextVar("on_target_side", default=frozenset())


class _Lock:
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


class LvnarTokenizer(PreTrainedTokenizerFast):
    """Byte-fallback subword tokenizer for translation; `train_tokenizer` makes one.

    `tokenizer(source_texts, text_target=target_texts)` gives `input_ids` and `attention_mask` from the source
    vocabulary and `labels` from the target vocabulary. Each sequence ends with `</s>`.

    With two vocabularies `vocab_size`, `len`, `get_vocab`, `tokenize` and the conversions between ids and tokens speak
    of the source, `decode` and `batch_decode` of the target. `decode(ids, use_source_tokenizer=True)` decodes source
    ids, as with Marian; `target_vocab_size` and `target_backend_tokenizer` give the rest of the target side.

    A side with a word segmenter takes and gives raw text too. Words given with `is_split_into_words=True` are taken as
    they are, and offsets count in the segmented text, `segment(text)`.

    `decode(encode(text), skip_special_tokens=True)` equals `normalize(text)` for any text, with the segmenters `none`,
    `fugashi` and `kytea`; with `moses` it is what Moses' detokenizer makes of the words. A text with surrogates is no
    text: encoding it raises UnicodeEncodeError, a ValueError.

    Several threads may use one tokenizer: truncation, padding and the like are states of the tokenizers library, so
    encoding has a lock, and the side for `text_target` is the thread's own. Tokens that are added, special or not, are
    found in text, on the source side or in the joint vocabulary; offsets then count in the normalised text.

    Args:
        target_tokenizer_file: path of the target vocabulary, or None for a joint vocabulary.
        target_tokenizer_object: the target vocabulary itself, instead of its file.
        source_segmenter, target_segmenter: what finds the words of a side before they are split into subwords, and
            joins them after decoding: none, moses, fugashi or kytea; stored in tokenizer_config.json if it is not none.
            The package for it is imported at the first text, and ImportError then says what to install.
        source_language, target_language: codes, for `moses`; None: English.
        kytea_model: for `kytea`: path of its model file; a file of that name in the tokenizer's folder serves too.
        kwargs: those of `PreTrainedTokenizerFast`: `tokenizer_file` or `tokenizer_object` for the source (or joint)
            vocabulary, `model_max_length` in tokens.

    Raises:
        ValueError: a vocabulary that has not `<pad>`, `</s>` and `<unk>` at ids 0, 1 and 2; an unknown segmenter; a
            `model_max_length` that is not a number.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": "target_tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    slow_tokenizer_class = None

    def __init__(
        self,
        *,
        target_tokenizer_file: str | None = None,
        target_tokenizer_object: Tokenizer | None = None,
        source_segmenter: str = "none",
        target_segmenter: str = "none",
        source_language: str | None = None,
        target_language: str | None = None,
        kytea_model: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("pad_token", SPECIAL_TOKENS[0])
        kwargs.setdefault("eos_token", SPECIAL_TOKENS[1])
        kwargs.setdefault("unk_token", SPECIAL_TOKENS[2])
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        kwargs.setdefault("split_special_tokens", True)
        for name in ("clean_up_tokenization_spaces", "split_special_tokens"):
            if type(kwargs[name]) is not bool:
                raise ValueError(f"{name} is {kwargs[name]!r}; it must be true or false.")
        self._lock = _Lock()
        folder = kwargs.get("name_or_path")
        self._source_segmenter = make_segmenter(source_segmenter, source_language, kytea_model, folder)
        self._target_segmenter = make_segmenter(target_segmenter, target_language, kytea_model, folder)
        # What is handed on is stored with the tokenizer.
        segmenters = {"source_segmenter": source_segmenter, "target_segmenter": target_segmenter}
        kwargs.update({name: value for name, value in segmenters.items() if value != "none"})
        options = {"source_language": source_language, "target_language": target_language, "kytea_model": kytea_model}
        kwargs.update({name: value for name, value in options.items() if value is not None})
        for vocabulary_file in (kwargs.get("tokenizer_file"), target_tokenizer_file):
            if vocabulary_file is not None:
                check_vocabulary_file(vocabulary_file)
        super().__init__(**kwargs)
        if not isinstance(self.model_max_length, (int, float)):
            raise ValueError(f"model_max_length is {self.model_max_length!r}; it must be a number of tokens.")
        self.source_language, self.target_language, self.kytea_model = source_language, target_language, kytea_model
        if target_tokenizer_object is not None:
            self._target_tokenizer = target_tokenizer_object
        elif target_tokenizer_file is not None:
            self._target_tokenizer = Tokenizer.from_file(target_tokenizer_file)
        else:
            self._target_tokenizer = self._source_tokenizer
        for side, backend in (("source", self._source_tokenizer), ("target", self._target_tokenizer)):
            ids = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
            if ids != [0, 1, 2]:
                raise ValueError(
                    f"the {side} vocabulary has {', '.join(SPECIAL_TOKENS)} at ids {ids}, not at 0, 1, 2: "
                    "make it with train_tokenizer"
                )
            backend.encode_special_tokens = self.split_special_tokens

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "LvnarTokenizer":
        """As in transformers; files that cannot be read, or not be used, raise ValueError."""
        try:
            tokenizer = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            for backend in (tokenizer._source_tokenizer, tokenizer._target_tokenizer):
                backend.no_padding()
                backend.no_truncation()
                backend.decode(backend.encode("a").ids)
        except (ImportError, OSError, ValueError):
            raise
        except BaseException as error:
            # The tokenizers library raises Exception itself, or panics, which is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                f"The tokenizer's files in {pretrained_model_name_or_path} are unsound: {error}"
            ) from error
        return tokenizer

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Keep the files as they are; transformers 5 would rebuild the backend from the bare vocabulary."""
        return kwargs

    @property
    def _tokenizer(self) -> Any:
        """The backend of the current side."""
        return self._target_tokenizer if self._is_target_side else self._source_tokenizer

    @_tokenizer.setter
    def _tokenizer(self, backend: Tokenizer) -> None:
        self._source_tokenizer = backend

    @property
    def _is_target_side(self) -> bool:
        return id(self) in _ON_TARGET_SIDE.get()

    @property
    def is_joint(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self._target_tokenizer is self._source_tokenizer

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
        if segmenter.name != "none" or _has_added_tokens(backend):
            texts = [self.segment(text, target) for text in texts]
        try:
            with self._lock:
                # These are left from the last call; each call sets its own.
                backend.no_padding()
                backend.no_truncation()
                backend.encode_special_tokens = self.split_special_tokens
                return [encoding.ids for encoding in backend.encode_batch_fast(texts)]
        except TypeError:
            _refuse_surrogates(list(texts))
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

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        # To the backend what is added is not special: of special tokens, as of the first three, the text is text.
        built_in = [token for token in new_tokens if str(token) in SPECIAL_TOKENS]
        others = [AddedToken(token) if isinstance(token, str) else token for token in new_tokens]
        added = [
            # Normalised: else what stands around it would lose its spaces.
            AddedToken(
                t.content, single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=True, special=False
            )
            for t in others
            if t.content not in SPECIAL_TOKENS
        ]
        number = super()._add_tokens(built_in, special_tokens) if built_in else 0
        if added:
            number += self._tokenizer.add_tokens(added)
            pre_tokenizer = self._tokenizer.pre_tokenizer
            if isinstance(pre_tokenizer, pre_tokenizers.Sequence):
                pre_tokenizer = pre_tokenizer[0]
            if isinstance(pre_tokenizer, pre_tokenizers.Metaspace):
                pre_tokenizer.prepend_scheme = "first"  # a space at the start of the text, not after each added token
        return number

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            with self._lock:
                return super().__call__(*args, **kwargs)
        except TypeError:
            _refuse_surrogates([args, kwargs])
            raise
        finally:
            if not self._in_target_context_manager:
                self._switch_to_input_mode()

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        # transformers 4 comes here with one text, and goes on to the next method; 5 with any number.
        if not hasattr(PreTrainedTokenizerFast, "_batch_encode_plus"):
            is_split = kwargs.get("is_split_into_words", False)
            text, text_pair = self._segment_all(text, is_split), self._segment_all(text_pair, is_split)
        try:
            with self._lock:
                return super()._encode_plus(text, text_pair, *args, **kwargs)
        except TypeError:
            _refuse_surrogates([text, text_pair])
            raise

    def _batch_encode_plus(self, batch_text_or_text_pairs: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        texts = self._segment_all(batch_text_or_text_pairs, kwargs.get("is_split_into_words", False))
        with self._lock:
            return super()._batch_encode_plus(texts, *args, **kwargs)  # type: ignore[misc]

    def _segment_all(self, texts: Any, is_split_into_words: bool) -> Any:
        """The current side's segmentation of a text, or of texts in nested lists and tuples; the rest as it is.

        With added tokens the vocabulary takes normalised text alone: `_add_tokens` says why.
        """
        segmenter = self._target_segmenter if self._is_target_side else self._source_segmenter
        if is_split_into_words or (segmenter.name == "none" and not _has_added_tokens(self._tokenizer)):
            return texts
        if isinstance(texts, str):
            return self.segment(texts, self._is_target_side)
        if isinstance(texts, (list, tuple)):
            return type(texts)(self._segment_all(text, False) for text in texts)
        return texts

    def _switch_to_input_mode(self) -> None:
        _ON_TARGET_SIDE.set(_ON_TARGET_SIDE.get() - {id(self)})

    def _switch_to_target_mode(self) -> None:
        _ON_TARGET_SIDE.set(_ON_TARGET_SIDE.get() | {id(self)})

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool | None = False,
        clean_up_tokenization_spaces: bool | None = None,
        use_source_tokenizer: bool = False,
        **kwargs: Any,
    ) -> str:
        # No clean-up, as in transformers 5.23 for any BPE: it would take spaces out of " ." that the text has.
        backend = self._source_tokenizer if use_source_tokenizer else self._target_tokenizer
        segmenter = self._source_segmenter if use_source_tokenizer else self._target_segmenter
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        if skip_special_tokens and _has_added_tokens(backend):
            added_special_ids = set(self.all_special_ids) - set(range(len(SPECIAL_TOKENS)))
            token_ids = [token_id for token_id in token_ids if token_id not in added_special_ids]
        if segmenter.name == "none":
            return backend.decode(token_ids, skip_special_tokens=bool(skip_special_tokens))
        # Special tokens are no words: what stands between them is joined.
        special_ids = range(len(SPECIAL_TOKENS))
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id not in special_ids]
        parts = []
        for is_special, ids in groupby(token_ids, key=lambda token_id: token_id in special_ids):
            part = backend.decode(list(ids), skip_special_tokens=False)
            parts.append(part.replace(" ", "") if is_special else segmenter.join(part))
        return "".join(parts)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        self._switch_to_input_mode()
        with self._lock:
            for backend in (self._source_tokenizer, self._target_tokenizer):
                # What the last call asked for is no part of the vocabulary.
                backend.no_padding()
                backend.no_truncation()
            file_names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target_file = Path(save_directory, prefix + self.vocab_files_names["target_tokenizer_file"])
        if self.is_joint:
            # Left there from an earlier save, it would make two vocabularies of this one.
            target_file.unlink(missing_ok=True)
            return file_names
        self._target_tokenizer.save(str(target_file))
        return (*file_names, str(target_file))


def _has_added_tokens(backend: Tokenizer) -> bool:
    return backend.get_vocab_size(with_added_tokens=True) > backend.get_vocab_size(with_added_tokens=False)


def _refuse_surrogates(value: Any) -> None:
    """Raise UnicodeEncodeError for the first string in nested lists, tuples and dictionaries that has a surrogate."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_surrogates(item)
