"""Input that the model cannot take is refused by name.

All that needs a look at the values of tensors is looked at together: one synchronisation with the device a batch.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import num_cells_needed, num_ctc_cells
from .losses_lvnar import IGNORED_LABEL

# Where a fault is, and what to say of it when it is anywhere.
_Check = tuple[torch.Tensor, Callable[[torch.Tensor], str]]


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse a model that would translate at random.

    Raises:
        ValueError: it, or a part of it, is in training mode.
    """
    if any(module.training for module in model.modules()):
        raise ValueError(
            "The model, or a part of it, is in training mode, where dropout makes a translation random: call "
            "model.eval() first, and model.train() afterwards. generate does not do it: other threads may use the "
            "model."
        )


def check_inputs(
    config: LvnarConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Refuse sources that the model cannot take, and labels that it cannot be trained on.

    Args:
        input_ids: (batch, source_length).
        attention_mask: (batch, source_length), 1 at valid positions; None: all but padding ids.
        labels: (batch, target_length), -100 at padding.

    Returns:
        The attention mask, int64.

    Raises:
        ValueError: for empty or ill-shaped input, ids out of the vocabulary, masks that are not right-padding, too long
            a source or target, labels that hold padding ids, a length difference that the model cannot express, or too
            few cells for a target. Says what is wrong.
    """
    attention_mask = _check_source_shapes(config, input_ids, attention_mask)
    checks = [_check_ids(input_ids, config.vocab_size, "input_ids"), _check_padding(attention_mask, "attention_mask")]
    if labels is not None:
        _check_label_shape(config, labels, input_ids)
        checks += _label_checks(config, labels, attention_mask.sum(-1))
    found = torch.stack([faults.any() for faults, _ in checks]).tolist()
    for is_found, (faults, describe) in zip(found, checks, strict=True):
        if is_found:
            raise ValueError(describe(faults))
    return attention_mask


def _check_source_shapes(
    config: LvnarConfig, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise ValueError(f"input_ids has the shape {tuple(input_ids.shape)}; it must be (batch, length), not empty.")
    if input_ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"The source has {input_ids.shape[1]} tokens; the model takes at most "
            f"max_position_embeddings={config.max_position_embeddings}. Truncate or split it."
        )
    if attention_mask is None:
        attention_mask = input_ids != config.pad_token_id
    elif attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
            "they must be equal."
        )
    return attention_mask.long()


def _check_label_shape(config: LvnarConfig, labels: torch.Tensor, input_ids: torch.Tensor) -> None:
    if labels.dim() != 2 or labels.shape[0] != input_ids.shape[0] or labels.shape[1] == 0:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}; they must be (batch, length), not empty, with the "
            f"batch of input_ids, {input_ids.shape[0]}."
        )
    if labels.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"The target has {labels.shape[1]} tokens; the model takes at most "
            f"max_position_embeddings={config.max_position_embeddings}."
        )


def _label_checks(config: LvnarConfig, labels: torch.Tensor, source_lengths: torch.Tensor) -> list[_Check]:
    """Of labels (batch, target_length) for sources of these lengths, (batch,)."""
    target_mask = labels != IGNORED_LABEL
    message = (
        f"labels hold the padding id {config.pad_token_id}; padding must be {IGNORED_LABEL} there, as transformers' "
        "DataCollatorForSeq2Seq makes it."
    )
    return [
        _check_ids(labels.masked_fill(~target_mask, 0), config.decoder_vocab_size, "labels"),
        (labels == config.pad_token_id, lambda faults: message),
        _check_padding(target_mask.long(), "labels (valid where not -100)"),
        _check_cells(config, labels, source_lengths)
        if config.alignment == "ctc"
        else _check_lengths(config, target_mask.sum(-1), source_lengths),
    ]


def _check_ids(ids: torch.Tensor, vocab_size: int, name: str) -> _Check:
    def describe(faults: torch.Tensor) -> str:
        return f"{name} holds the id {int(ids[faults][0])}; the vocabulary has the ids 0 to {vocab_size - 1}."

    return (ids < 0) | (ids >= vocab_size), describe


def _check_padding(mask: torch.Tensor, name: str) -> _Check:
    def describe(faults: torch.Tensor) -> str:
        return (
            f"{name}: sentence {int(faults.nonzero()[0])} of the batch has no valid token at its start, or padding "
            "before a valid token. Every sentence needs a token, and padding goes to the right."
        )

    return (mask[:, 0] == 0) | (mask[:, 1:] > mask[:, :-1]).any(-1), describe


def _check_cells(config: LvnarConfig, labels: torch.Tensor, source_lengths: torch.Tensor) -> _Check:
    needed, cells = num_cells_needed(labels), num_ctc_cells(source_lengths, config.upsampling_ratio)

    def describe(faults: torch.Tensor) -> str:
        row = int((needed - cells).argmax())
        return (
            f"Sentence {row} of the batch needs {int(needed[row])} cells, its tokens and one between equal "
            f"neighbours; with upsampling_ratio={config.upsampling_ratio} its source has {int(cells[row])}. Leave "
            "such pairs out of the data."
        )

    return needed > cells, describe


def _check_lengths(config: LvnarConfig, target_lengths: torch.Tensor, source_lengths: torch.Tensor) -> _Check:
    differences = (target_lengths - source_lengths).abs()

    def describe(faults: torch.Tensor) -> str:
        return (
            f"A target differs from its source by {int(differences.max())} tokens; the length predictor covers at most "
            f"max_length_offset={config.max_length_offset}. Leave such pairs out of the data."
        )

    return differences > config.max_length_offset, describe
