"""Training of a tokenizer: vocabularies by byte-pair encoding, or by sentencepiece's unigram model.

This module stays here; what it makes, `LvnarTokenizer`, travels.
"""

import io
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

from .repetitions_lvnar import SPACE_MARK
from .segmentation_lvnar import Segmenter, make_segmenter
from .subwords_lvnar import BYTE_TOKENS, SPECIAL_TOKENS
from .tokenization_lvnar import LvnarTokenizer
from .vocabulary_lvnar import INVISIBLE

NORMALIZATIONS: dict[str, list[normalizers.Normalizer]] = {
    "nfc": [normalizers.NFC()],
    "nfkc": [normalizers.NFKC()],
    "none": [],
}
ALGORITHMS = ("bpe", "sentencepiece")
# Sentences that a sentencepiece model is trained on at most, drawn evenly from each side: half of them.
MAX_SENTENCEPIECE_SENTENCES = 2_000_000


def train_tokenizer(
    source_texts: Iterable[str],
    target_texts: Iterable[str],
    vocab_size: int = 8000,
    target_vocab_size: int | None = None,
    joint: bool = True,
    normalization: str = "nfc",
    min_character_count: int = 5,
    max_length: int | None = None,
    algorithm: str = "bpe",
    source_segmenter: str = "none",
    target_segmenter: str = "none",
    source_language: str | None = None,
    target_language: str | None = None,
    kytea_model: str | None = None,
) -> LvnarTokenizer:
    """Train a tokenizer on sentences; the same sentences give the same files, byte for byte.

    With "bpe" the sentences are held in memory, about twice the size of the text; with "sentencepiece" at most
    `MAX_SENTENCEPIECE_SENTENCES` of them, drawn with a fixed seed.

    Args:
        source_texts, target_texts: raw sentences; they need not be aligned.
        vocab_size: number of ids, with 3 special tokens and 256 bytes; of the source vocabulary if `joint` is False.
        target_vocab_size: the same for a target vocabulary; None: as the source. Not with `joint`.
        joint: one vocabulary from both sides together.
        normalization: "nfc", "nfkc" or "none", the Unicode form that texts are brought to; "sentencepiece" has its own,
            NMT-NFKC. But for that one, characters of no width are dropped (`vocabulary_lvnar.INVISIBLE`).
        min_character_count: a character seen less often gets no id of its own and is spelt in bytes.
        max_length: stored as `model_max_length`: the longest sequence for the model, in tokens with `</s>`.
        algorithm: "bpe", or "sentencepiece" for a unigram model trained by that library, whose ids it then gives.
        source_segmenter, target_segmenter, source_language, target_language, kytea_model: as for `LvnarTokenizer`; the
            vocabulary is learnt from segmented sentences.

    Returns:
        The tokenizer. If the text holds too few different words for the size asked for, it is smaller, with a warning.

    Raises:
        ValueError: unknown `algorithm`, `normalization` or segmenter; `target_vocab_size` with `joint`; a vocabulary
            size with no room for the characters; no text at all for "sentencepiece".
        ImportError: "sentencepiece" or a segmenter without its package; says what to install.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is one of {', '.join(NORMALIZATIONS)}, not {normalization!r}")
    if joint and target_vocab_size is not None:
        raise ValueError(f"target_vocab_size={target_vocab_size} needs joint=False: a joint vocabulary has one size")
    source = make_segmenter(source_segmenter, source_language, kytea_model)
    target = make_segmenter(target_segmenter, target_language, kytea_model)

    def train(sides: list[tuple[Segmenter, Iterable[str]]], size: int) -> Tokenizer:
        """One vocabulary, from one side or both."""
        if algorithm == "sentencepiece":
            limit = MAX_SENTENCEPIECE_SENTENCES // 2
            normalize = _sentencepiece_normalize()
            texts = [t for segmenter, side in sides for t in _segmented(_sample(side, limit), segmenter, normalize)]
            backend = convert_sentencepiece(train_sentencepiece(texts, size, min_character_count))
        else:
            normalize = _bpe_normalizer(normalization).normalize_str
            texts = [text for segmenter, side in sides for text in _segmented(side, segmenter, normalize)]
            is_segmented = any(segmenter.name != "none" for segmenter, _ in sides)
            backend = _train_bpe(texts, size, normalization, min_character_count, is_segmented)
        if backend.get_vocab_size() < size:
            warnings.warn(
                f"the text gives a vocabulary of {backend.get_vocab_size()}, not {size}: nothing left to merge",
                stacklevel=3,
            )
        return backend

    kwargs: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
    if joint:
        kwargs["tokenizer_object"] = train([(source, source_texts), (target, target_texts)], vocab_size)
    else:
        kwargs["tokenizer_object"] = train([(source, source_texts)], vocab_size)
        kwargs["target_tokenizer_object"] = train(
            [(target, target_texts)], vocab_size if target_vocab_size is None else target_vocab_size
        )
    return LvnarTokenizer(
        source_segmenter=source_segmenter,
        target_segmenter=target_segmenter,
        source_language=source_language,
        target_language=target_language,
        kytea_model=kytea_model,
        **kwargs,
    )


def _segmented(texts: Iterable[str], segmenter: Segmenter, normalize: Callable[[str], str]) -> Iterator[str]:
    """The texts as `LvnarTokenizer.segment` gives them to the vocabulary; raw where there is no segmenter."""
    if segmenter.name == "none":
        yield from texts
    else:
        for text in texts:
            yield segmenter.segment(normalize(text))


def _sample(texts: Iterable[str], size: int) -> list[str]:
    """At most `size` of the texts, each as likely as any other, the same ones each time."""
    generator = random.Random(0)
    sample: list[str] = []
    for index, text in enumerate(texts):
        if index < size:
            sample.append(text)
        elif (position := generator.randrange(index + 1)) < size:
            sample[position] = text
    return sample


def _bpe_normalizer(normalization: str) -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.Replace(SPACE_MARK, " "),
            normalizers.Replace(Regex(INVISIBLE), ""),
            *NORMALIZATIONS[normalization],
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def _decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def _post_processor() -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", SPECIAL_TOKENS.index("</s>"))]
    )


def _train_bpe(
    texts: Iterable[str], vocab_size: int, normalization: str, min_character_count: int, is_segmented: bool
) -> Tokenizer:
    """One vocabulary: ids 0-2 special tokens, 3-258 bytes, then characters in code order, then merges."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = _bpe_normalizer(normalization)
    # Words with the space before them; then whatever is no letter, mark or space is a piece of its own: with the space
    # before it where a segmenter has put one before each full stop.
    other = rf"[^\p{{L}}\p{{M}}{SPACE_MARK}]"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(f"{SPACE_MARK}?{other}" if is_segmented else other), "isolated"),
        ]
    )
    tokenizer.decoder = _decoder()

    texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    alphabet = sorted([SPACE_MARK, *_find_characters(texts, vocab_size, min_character_count)])
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
    tokenizer.post_processor = _post_processor()
    return tokenizer


def _find_characters(texts: Iterable[str], vocab_size: int, min_character_count: int) -> list[str]:
    """The characters that get an id of their own, in code order, without the space.

    Raises:
        ValueError: the vocabulary has no room for them.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    del counts[" "]
    characters = sorted(character for character, count in counts.items() if count >= min_character_count)
    minimum = len(SPECIAL_TOKENS) + len(BYTE_TOKENS) + len({SPACE_MARK, *characters})
    if vocab_size < minimum:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: {minimum} ids go to {len(SPECIAL_TOKENS)} special tokens, "
            f"{len(BYTE_TOKENS)} bytes and {len(characters) + 1} characters; ask for more, or raise "
            "min_character_count"
        )
    return characters


def train_sentencepiece(texts: list[str], vocab_size: int, min_character_count: int = 5) -> bytes:
    """A unigram model by the sentencepiece library; the same texts give the same bytes.

    Normalisation NMT-NFKC; ids as everywhere here: pad 0, eos 1, unk 2, then the bytes, then the pieces. Texts of more
    than 4,192 bytes are left out.

    Args:
        texts: sentences, segmented if they are to be.
        vocab_size, min_character_count: as for `train_tokenizer`; but the most frequent characters, which make up 98 %
            of the text, get an id however rare they are.

    Returns:
        The content of a `.model` file.

    Raises:
        ImportError: without sentencepiece.
        ValueError: no text, no room for the characters, or what else sentencepiece refuses.
    """
    sentencepiece = _import_sentencepiece()
    normalize = _sentencepiece_normalize()
    texts = [text for text in map(normalize, texts) if text]
    if not texts:
        raise ValueError("There is no text to train a sentencepiece model on.")
    characters = _find_characters(texts, vocab_size, min_character_count)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc",
            # The lowest coverage there is: the characters are chosen by their count.
            character_coverage=0.98,
            required_chars="".join(character for character in characters if character != SPACE_MARK),
            num_threads=1,  # with more of them the sums differ from run to run
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"sentencepiece makes no vocabulary of {vocab_size} from {len(texts)} texts: {error}"
        ) from error
    return model.getvalue()


def convert_sentencepiece(model: bytes) -> Tokenizer:
    """A tokenizers backend that gives the ids of a model made by `train_sentencepiece`, and `</s>` after them.

    Deviation: combining marks on one letter come in canonical order, where sentencepiece leaves them as they are.
    """
    processor = _import_sentencepiece().SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(size)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=True))
    # `Precompiled` alone looks at whole graphemes: it would leave half-width kana apart from their voicing marks and
    # drop marks after other characters. After NFKC there is little left for it but NMT's control characters and spaces.
    # NMT-NFKC keeps U+FF5E, the wave dash of Japanese, which NFKC does not: a noncharacter stands in for it.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(SPACE_MARK, " "),
            normalizers.Replace("\uff5e", "\ufdd0"),
            normalizers.NFKC(),
            normalizers.Replace("\ufdd0", "\uff5e"),
            normalizers.Precompiled(_read_field(_read_field(model, 3), 2)),  # normalizer_spec.precompiled_charsmap
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex("^ | $"), ""),
        ]
    )
    # To `Unigram` the special and byte tokens are pieces like others, which it would find in "</s>" in a sentence. So
    # the text is parted inside them, at a place where no piece of the vocabulary lies across.
    learned = [piece for piece, _ in pieces[len(SPECIAL_TOKENS) + len(BYTE_TOKENS) :]]
    patterns = []
    for token, rest in (*((token, None) for token in SPECIAL_TOKENS), ("<0x", "[0-9A-F]{2}>")):
        cuts = range(1, len(token))
        cut = next((k for k in cuts if not any(token[k - 1 : k + 1] in piece for piece in learned)), 1)
        patterns.append(f"{token[:cut]}(?={token[cut:]}{rest or ''})")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex("|".join(patterns)), "merged_with_previous"),
        ]
    )
    tokenizer.decoder = _decoder()
    tokenizer.post_processor = _post_processor()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.encode_special_tokens = True  # as text; `LvnarTokenizer` says so again, since it is not saved
    return tokenizer


def _import_sentencepiece() -> Any:
    try:
        import sentencepiece

        return sentencepiece
    except ImportError as error:
        raise ImportError(
            "algorithm='sentencepiece' needs sentencepiece for training: pip install 'lvnar-hf[train]', or without the "
            "package lvnar-hf: pip install sentencepiece"
        ) from error


def _sentencepiece_normalize() -> Callable[[str], str]:
    """Sentencepiece's own NMT-NFKC, with single spaces."""
    normalizer = _import_sentencepiece().SentencePieceNormalizer(
        rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
    )
    return normalizer.normalize


def _read_field(message: bytes, number: int) -> bytes:
    """A text, bytes or message field of a serialised protobuf message, by its number; empty if it is not there."""
    position = 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = read_varint()
        wire_type = key & 7
        if wire_type == 0:
            read_varint()
            continue
        length = {1: 8, 5: 4}[wire_type] if wire_type != 2 else read_varint()
        if key >> 3 == number:
            return message[position : position + length]
        position += length
    return b""
