"""Text to ids and back, with one joint vocabulary or with one for the source and one for the target.

What is unusual: nothing is ever unknown, because a character outside the vocabulary becomes its UTF-8 bytes; the text
"</s>" in a sentence is four characters and never the special token; and `decode` reads target ids, because that is what
a translation model gives.

This module travels to the Hub with the model: it imports nothing but tokenizers, transformers and the standard library.
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import BatchEncoding, PreTrainedTokenizerFast

# The same ids on both sides: <pad> 0, </s> 1, <unk> 2.
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
# How the tokenizers library spells the bytes of a character that is not in the vocabulary.
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
# How the vocabulary spells a space.
SPACE_MARK = "\u2581"
NORMALIZATIONS: dict[str, list[normalizers.Normalizer]] = {
    "nfc": [normalizers.NFC()],
    "nfkc": [normalizers.NFKC()],
    "none": [],
}


class LvnarTokenizer(PreTrainedTokenizerFast):
    """Byte-fallback BPE tokenizer for translation; `train_tokenizer` makes one.

    `tokenizer(source_texts, text_target=target_texts)` gives `input_ids` and `attention_mask` from the source
    vocabulary and `labels` from the target vocabulary. Each sequence ends with `</s>`.

    With two vocabularies `vocab_size`, `len`, `get_vocab`, `tokenize` and the conversions between ids and tokens speak
    of the source, `decode` and `batch_decode` of the target. `decode(ids, use_source_tokenizer=True)` decodes source
    ids, as with Marian; `target_vocab_size` and `target_backend_tokenizer` give the rest of the target side.

    `decode(encode(text), skip_special_tokens=True)` equals `normalize(text)` for any text. A text with surrogates is no
    text: encoding it raises UnicodeEncodeError, a ValueError.

    Args:
        target_tokenizer_file: path of the target vocabulary, or None for a joint vocabulary.
        target_tokenizer_object: the target vocabulary itself, instead of its file.
        kwargs: those of `PreTrainedTokenizerFast`: `tokenizer_file` or `tokenizer_object` for the source (or joint)
            vocabulary, `model_max_length` in tokens.

    Raises:
        ValueError: a vocabulary that has not `<pad>`, `</s>` and `<unk>` at ids 0, 1 and 2.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": "target_tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "right"
    slow_tokenizer_class = None
    _tokenizer: Any  # the backend of the current side; swapped for `text_target`

    def __init__(
        self,
        *,
        target_tokenizer_file: str | None = None,
        target_tokenizer_object: Tokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("pad_token", SPECIAL_TOKENS[0])
        kwargs.setdefault("eos_token", SPECIAL_TOKENS[1])
        kwargs.setdefault("unk_token", SPECIAL_TOKENS[2])
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(**kwargs)
        self._source_tokenizer: Tokenizer = self.backend_tokenizer
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
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Keep the files as they are; transformers 5 would rebuild the backend from the bare vocabulary."""
        return kwargs

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

    def normalize(self, text: str, target: bool = False) -> str:
        """The text as decoding gives it back.

        U+2581, which marks a space inside the vocabulary, becomes a space; the text is brought to the Unicode form
        chosen in training; and runs of whitespace become one space, with none at either end.

        Args:
            text: any text without surrogates.
            target: apply the target side's rules; both sides have the same if `train_tokenizer` made them.
        """
        backend = self._target_tokenizer if target else self._source_tokenizer
        return str(backend.normalizer.normalize_str(text))

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError:
            _refuse_surrogates([args, kwargs])
            raise
        finally:
            if not self._in_target_context_manager:
                self._switch_to_input_mode()

    def _encode_plus(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return super()._encode_plus(*args, **kwargs)
        except TypeError:
            _refuse_surrogates([args, kwargs])
            raise

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._source_tokenizer

    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self._target_tokenizer

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
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return backend.decode(token_ids, skip_special_tokens=bool(skip_special_tokens))

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        self._switch_to_input_mode()
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


def _refuse_surrogates(value: Any) -> None:
    """Raise UnicodeEncodeError for the first string in nested lists, tuples and dictionaries that has a surrogate."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_surrogates(item)


def train_tokenizer(
    source_texts: Iterable[str],
    target_texts: Iterable[str],
    vocab_size: int = 8000,
    target_vocab_size: int | None = None,
    joint: bool = True,
    normalization: str = "nfc",
    min_character_count: int = 5,
    max_length: int | None = None,
) -> LvnarTokenizer:
    """Train a tokenizer on sentences; the same sentences give the same files, byte for byte.

    The sentences are held in memory, about twice the size of the text.

    Args:
        source_texts, target_texts: sentences; they need not be aligned.
        vocab_size: number of ids, with 3 special tokens and 256 bytes; of the source vocabulary if `joint` is False.
        target_vocab_size: the same for a target vocabulary; None: as the source. Not with `joint`.
        joint: one vocabulary from both sides together.
        normalization: "nfc", "nfkc" or "none", the Unicode form that texts are brought to.
        min_character_count: a character seen less often gets no id of its own and is spelt in bytes.
        max_length: stored as `model_max_length`: the longest sequence for the model, in tokens with `</s>`.

    Returns:
        The tokenizer. If the text holds too few different words for the size asked for, it is smaller, with a warning.

    Raises:
        ValueError: unknown `normalization`; `target_vocab_size` with `joint`; a vocabulary size with no room for the
            characters.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is one of {', '.join(NORMALIZATIONS)}, not {normalization!r}")
    kwargs: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
    if joint:
        if target_vocab_size is not None:
            raise ValueError(
                f"target_vocab_size={target_vocab_size} needs joint=False: a joint vocabulary has one size"
            )
        texts = [*source_texts, *target_texts]
        kwargs["tokenizer_object"] = _train_backend(texts, vocab_size, normalization, min_character_count)
    else:
        target_size = vocab_size if target_vocab_size is None else target_vocab_size
        kwargs["tokenizer_object"] = _train_backend(source_texts, vocab_size, normalization, min_character_count)
        kwargs["target_tokenizer_object"] = _train_backend(
            target_texts, target_size, normalization, min_character_count
        )
    return LvnarTokenizer(**kwargs)


def _train_backend(texts: Iterable[str], vocab_size: int, normalization: str, min_character_count: int) -> Tokenizer:
    """One vocabulary: ids 0-2 special tokens, 3-258 bytes, then characters in code order, then merges."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(SPACE_MARK, " "),
            *NORMALIZATIONS[normalization],
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    # Words with the space before them; then whatever is no letter, mark or space is a piece of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(rf"[^\p{{L}}\p{{M}}{SPACE_MARK}]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )

    texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    del counts[" "]
    alphabet = sorted([SPACE_MARK, *(character for character, count in counts.items() if count >= min_character_count)])
    minimum = len(SPECIAL_TOKENS) + len(BYTE_TOKENS) + len(alphabet)
    if vocab_size < minimum:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: {minimum} ids go to {len(SPECIAL_TOKENS)} special tokens, "
            f"{len(BYTE_TOKENS)} bytes and {len(alphabet)} characters; ask for more, or raise min_character_count"
        )
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(BYTE_TOKENS),
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train_from_iterator(texts, trainer)

    # The bytes are ordinary vocabulary: as special tokens they would be dropped in decoding.
    serialized = json.loads(tokenizer.to_str())
    learned = sorted(serialized["model"]["vocab"], key=serialized["model"]["vocab"].__getitem__)
    tokens = [*SPECIAL_TOKENS, *BYTE_TOKENS, *learned[len(SPECIAL_TOKENS) :]]
    serialized["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer.from_str(json.dumps(serialized))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    if tokenizer.get_vocab_size() < vocab_size:
        warnings.warn(
            f"the text gives a vocabulary of {tokenizer.get_vocab_size()}, not {vocab_size}: nothing left to merge",
            stacklevel=3,
        )
    return tokenizer
