"""Sizes: those that a model may have, how many cells it has for a source, and the parts that a batch is translated in.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

ALIGNMENTS = ("length", "ctc")

# A damaged configuration is refused before it fills the memory.
_MAX_LAYERS = 1000  # of one part
_MAX_WEIGHTS = 2**33
_MAX_UPSAMPLING_RATIO = 16
_MAX_BLANK_PENALTY = 100.0


def check_sizes(config: Any, booleans: Iterable[str] = ()) -> None:
    """Refuse sizes that cannot be, or cannot be combined.

    Args:
        config: has the fields of `LvnarConfig`.
        booleans: further fields that are true or false, where they are.

    Raises:
        ValueError: names the field.
    """
    at_least_one = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_prior_layers"),
        *("num_posterior_encoder_layers", "num_posterior_decoder_layers", "num_decoder_layers", "latent_dim"),
        *("max_length_offset", "max_position_embeddings"),
    )
    for name in at_least_one:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if name.endswith("_layers") and value > _MAX_LAYERS:
            raise ValueError(f"{name} is {value}; it must be at most {_MAX_LAYERS}.")
    if config.target_vocab_size is not None and (
        type(config.target_vocab_size) is not int or config.target_vocab_size < 1
    ):
        raise ValueError(
            f"target_vocab_size is {config.target_vocab_size!r}; it must be a whole number of at least 1, or None if "
            "joint."
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size is {config.hidden_size} and num_attention_heads is {config.num_attention_heads}; "
            "the heads must divide the hidden size."
        )
    if config.hidden_size % 2:
        raise ValueError(
            f"hidden_size is {config.hidden_size}; sinusoidal positions need an even number (sine and cosine halves)."
        )
    if config.alignment not in ALIGNMENTS:
        raise ValueError(f"alignment is {config.alignment!r}; it must be one of {', '.join(ALIGNMENTS)}.")
    if type(config.upsampling_ratio) not in (int, float) or not 1.0 <= config.upsampling_ratio <= _MAX_UPSAMPLING_RATIO:
        raise ValueError(
            f"upsampling_ratio is {config.upsampling_ratio!r}; it must be a number from 1 to {_MAX_UPSAMPLING_RATIO}."
        )
    if type(config.blank_penalty) not in (int, float) or not 0.0 <= config.blank_penalty <= _MAX_BLANK_PENALTY:
        raise ValueError(
            f"blank_penalty is {config.blank_penalty!r}; it must be a number from 0 to {_MAX_BLANK_PENALTY:g}."
        )
    for name in sorted({*booleans, "carries_source_states", "tie_word_embeddings", "is_encoder_decoder"}):
        if type(value := getattr(config, name, False)) is not bool:
            raise ValueError(f"{name} is {value!r}; it must be true or false.")
    if config.max_length_offset >= config.max_position_embeddings:
        raise ValueError(
            f"max_length_offset is {config.max_length_offset} and max_position_embeddings is "
            f"{config.max_position_embeddings}; the offset must be the smaller."
        )
    for name in ("source_language", "target_language"):
        language = getattr(config, name)
        if language is not None and not (isinstance(language, str) and language):
            raise ValueError(f"{name} is {language!r}; it must be a code, for example en, or None.")
    for name in ("dropout", "attention_dropout"):
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0.0 <= value < 1.0:
            raise ValueError(f"{name} is {value!r}; it must be a number in [0, 1).")
    special_ids = {name: getattr(config, name) for name in ("pad_token_id", "eos_token_id", "unk_token_id")}
    for size_name in ("vocab_size", "target_vocab_size"):
        size = getattr(config, size_name)
        for id_name, special_id in special_ids.items():
            if size is not None and (type(special_id) is not int or not 0 <= special_id < size):
                raise ValueError(
                    f"{id_name} is {special_id} and {size_name} is {size}; the id must be in the vocabulary."
                )
    num_layers = sum(getattr(config, name) for name in at_least_one if name.endswith("_layers"))
    rows = config.vocab_size + (config.target_vocab_size or 0) + config.latent_dim + config.max_length_offset
    num_weights = config.hidden_size * (rows + num_layers * (config.intermediate_size + config.hidden_size))
    if num_weights > _MAX_WEIGHTS:  # the model has some more
        raise ValueError(
            f"The sizes ask for {num_weights:,} weights and more; {_MAX_WEIGHTS:,} are the limit. hidden_size is "
            f"{config.hidden_size}, intermediate_size {config.intermediate_size}, vocab_size {config.vocab_size}, "
            f"target_vocab_size {config.target_vocab_size}, latent_dim {config.latent_dim}, max_length_offset "
            f"{config.max_length_offset}."
        )
    if len(set(special_ids.values())) < len(special_ids):
        raise ValueError(f"The special tokens must have different ids; given: {special_ids}.")


def num_cells_of(source_length: int, upsampling_ratio: float) -> int:
    """T = ⌈r · |x|⌉, the cells of a source with alignment "ctc"; a product is whole if it is but for rounding."""
    return math.ceil(source_length * upsampling_ratio - 1e-6)


def parts_by_length(
    config: Any, lengths: Sequence[int], max_positions: int, most_added: int = 0
) -> tuple[list[int], list[int]]:
    """A batch in parts of sentences alike in length, so that one long sentence does not pad all others.

    Args:
        config: has `alignment` and `upsampling_ratio`.
        lengths: of the sources, tokens.
        max_positions: of a part, padding included: source tokens, or cells of alignment "ctc". A longer sentence is a
            part of its own.
        most_added: positions that each sentence is counted longer.

    Returns:
        The order of the sentences, shortest first; and the sizes of the parts.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ratio = config.upsampling_ratio if config.alignment == "ctc" else 1.0
    sizes = [0]
    for row in order:  # the last one of a part is its longest
        if sizes[-1] and (sizes[-1] + 1) * (num_cells_of(lengths[row], ratio) + most_added) > max_positions:
            sizes.append(0)
        sizes[-1] += 1
    return order, sizes
