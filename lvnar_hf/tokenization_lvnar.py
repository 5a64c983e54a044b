"""Text to ids and back, with one joint vocabulary or with one for the source and one for the target.

What is unusual: nothing is ever unknown, because a character outside the vocabulary becomes its UTF-8 bytes; the text
"</s>" in a sentence is four characters and never the special token; and `decode` reads target ids, because that is what
a translation model gives. Where a side has a word segmenter, text goes in and comes out raw all the same: normalised,
segmented, then split into subwords; and joined again after decoding.

This module travels to the Hub with the model: it imports nothing but tokenizers, transformers and the standard library.
"""

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from .names_lvnar import FILE as TRANSLATED_WORDS_FILE
from .names_lvnar import read_translated_words, write_translated_words
from .repetitions_lvnar import find_stutter  # noqa: F401  (imported by subwords_lvnar: transformers 4 looks here)
from .segmentation_lvnar import make_segmenter
from .soundness_lvnar import read_json_object  # noqa: F401  (imported by vocabulary_lvnar)
from .subwords_lvnar import (
    SPECIAL_TOKENS,
    Lock,
    SubwordsMixin,
    check_joint,
    check_special_tokens,
    has_added_tokens,
    refuse_surrogates,
)
from .vocabulary_lvnar import check_vocabulary_file

# The tokenizers, by `id`, that this thread has switched to their target side.
_ON_TARGET_SIDE: ContextVar[frozenset[int]] = ContextVar("on_target_side", default=frozenset())


class LvnarTokenizer(SubwordsMixin, PreTrainedTokenizerFast):
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
        translated_words_file: path of a list of words that are no names (`names_lvnar`), one a line, in small letters;
            None: nothing is taken for a name. It is the attribute `translated_words`.
        joint: whether both sides have one vocabulary; false is stored with two, so that a folder that has lost the
            target's file does not pass for a joint one. None: as it is.
        kwargs: those of `PreTrainedTokenizerFast`: `tokenizer_file` or `tokenizer_object` for the source (or joint)
            vocabulary, `model_max_length` in tokens.

    Raises:
        ValueError: a vocabulary that has not `<pad>`, `</s>` and `<unk>` at ids 0, 1 and 2; an unknown segmenter; a
            `model_max_length` that is not a number; a target vocabulary that is missing, or one too many.
    """

    vocab_files_names = {
        "tokenizer_file": "tokenizer.json",
        "target_tokenizer_file": "target_tokenizer.json",
        "translated_words_file": TRANSLATED_WORDS_FILE,
    }
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    slow_tokenizer_class = None

    translated_words: frozenset[str] | None

    def __init__(
        self,
        *,
        target_tokenizer_file: str | None = None,
        target_tokenizer_object: Tokenizer | None = None,
        translated_words_file: str | None = None,
        source_segmenter: str = "none",
        target_segmenter: str = "none",
        source_language: str | None = None,
        target_language: str | None = None,
        kytea_model: str | None = None,
        joint: bool | None = None,
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
        self._lock = Lock()
        folder = kwargs.get("name_or_path")
        self._source_segmenter = make_segmenter(source_segmenter, source_language, kytea_model, folder)
        self._target_segmenter = make_segmenter(target_segmenter, target_language, kytea_model, folder)
        # What is handed on is stored with the tokenizer.
        segmenters = {"source_segmenter": source_segmenter, "target_segmenter": target_segmenter}
        kwargs.update({name: value for name, value in segmenters.items() if value != "none"})
        options = {"source_language": source_language, "target_language": target_language, "kytea_model": kytea_model}
        kwargs.update({name: value for name, value in options.items() if value is not None})
        is_joint = target_tokenizer_file is None and target_tokenizer_object is None
        check_joint(joint, is_joint)
        if not is_joint:
            kwargs["joint"] = False
        for vocabulary_file in (kwargs.get("tokenizer_file"), target_tokenizer_file):
            if vocabulary_file is not None:
                check_vocabulary_file(vocabulary_file)
        super().__init__(**kwargs)
        if not isinstance(self.model_max_length, (int, float)):
            raise ValueError(f"model_max_length is {self.model_max_length!r}; it must be a number of tokens.")
        self.source_language, self.target_language, self.kytea_model = source_language, target_language, kytea_model
        self.translated_words = None if translated_words_file is None else read_translated_words(translated_words_file)
        if target_tokenizer_object is not None:
            self._target_tokenizer = target_tokenizer_object
        elif target_tokenizer_file is not None:
            self._target_tokenizer = Tokenizer.from_file(target_tokenizer_file)
        else:
            self._target_tokenizer = self._source_tokenizer
        for side, backend in (("source", self._source_tokenizer), ("target", self._target_tokenizer)):
            check_special_tokens(backend, side)
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
            refuse_surrogates([args, kwargs])
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
            refuse_surrogates([text, text_pair])
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
        if is_split_into_words or (segmenter.name == "none" and not has_added_tokens(self._tokenizer)):
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
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._join_subwords(token_ids, bool(skip_special_tokens), not use_source_tokenizer)

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
        target_file, words_file = (
            Path(save_directory, prefix + self.vocab_files_names[name])
            for name in ("target_tokenizer_file", "translated_words_file")
        )
        # Left there from an earlier save, they would be of this one.
        target_file.unlink(missing_ok=True)
        words_file.unlink(missing_ok=True)
        if not self.is_joint:
            self._target_tokenizer.save(str(target_file))
            file_names = (*file_names, str(target_file))
        if self.translated_words is not None:
            write_translated_words(self.translated_words, words_file)
            file_names = (*file_names, str(words_file))
        return file_names
