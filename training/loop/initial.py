"""Initial weights from other models: layers of one for other languages, embeddings of the teacher.

Layers that can translate learn another pair of languages, related to their own or not, in a fraction of the steps
(Kocmi & Bojar, 2018, "Trivial transfer learning", arXiv 1809.00357).
"""

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.loading import load_model

# What depends on the vocabulary, in this package's models and in Marian's.
_OF_VOCABULARY = re.compile(
    r"(source_embedding|target_embedding|output_proj|.*\.shared|.*\.embed_tokens|lm_head)\.weight|final_logits_bias"
)


@torch.no_grad()
def copy_layers(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Put the layers of another model, for any languages, in the place of a model's own; its embeddings stay.

    Args:
        model: whose weights change.
        folder: of a model of the same kind and sizes, or its Hub id.

    Returns:
        The other model.

    Raises:
        ValueError: it has other layers.
    """
    other = load_model(folder, dtype="float32")
    ours, theirs = (
        {name: weight for name, weight in one.state_dict().items() if not _OF_VOCABULARY.fullmatch(name)}
        for one in (model, other)
    )
    shapes, other_shapes = ({name: weight.shape for name, weight in one.items()} for one in (ours, theirs))
    if differing := sorted(name for name, _ in shapes.items() ^ other_shapes.items()):
        raise ValueError(
            f"initial_layers: {folder} has other layers than the recipe asks for: {differing[0]}, and "
            f"{len(set(differing)) - 1} more weights."
        )
    model.load_state_dict(theirs, strict=False)
    return other


@torch.no_grad()
def copy_embeddings(
    model: LvnarForConditionalGeneration, folder: str, known: LvnarForConditionalGeneration | None = None
) -> None:
    """Put the embeddings of a teacher in the place of a model's own, at the place and scale of those it knows.

    Args:
        model: whose weights change.
        folder: of a sequence-to-sequence model with the same tokenizer, or its Hub id.
        known: whose embeddings the layers of `model` know; by default, the model itself. The new ones get their mean
            and their mean distance from it; those of padding, end of sentence and the unknown word are taken from it.

    Raises:
        ValueError: the teacher's embeddings have other shapes, or it has two vocabularies and the model one.
    """
    known = model if known is None else known
    teacher = load_model(folder, dtype="float32")
    for side, part in (("source", teacher.get_encoder()), ("target", teacher.get_decoder())):
        ours = getattr(model, f"{side}_embedding", None)
        weight = part.get_input_embeddings().weight
        if ours is None:  # one vocabulary for both
            if not torch.equal(weight, teacher.get_encoder().get_input_embeddings().weight):
                raise ValueError(f"initial_embeddings: {folder} has two vocabularies, and the model one.")
            continue
        if weight.shape != ours.weight.shape:
            raise ValueError(
                f"initial_embeddings: those of the {side} in {folder} are {tuple(weight.shape)}, and the model's "
                f"{tuple(ours.weight.shape)}."
            )
        embedding: Any = getattr(known, f"{side}_embedding", known.source_embedding)
        like = embedding.weight
        centred, mean = weight - weight.mean(0), like.mean(0)
        moved = mean + centred * ((like - mean).norm(dim=-1).mean() / centred.norm(dim=-1).mean())
        for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
            moved[getattr(model.config, name)] = like[getattr(known.config, name)]
        ours.weight.copy_(moved)
