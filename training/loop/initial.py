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

# A weight of a stack's layer, and one of those that what the layer adds is multiplied by, in this package's models.
_OF_LAYER = re.compile(r"(.*\.layers)\.\d+\..*")
_LAST_PRODUCT = re.compile(r"(.*_attention\.output_proj|.*\.feed_forward\.3)\.(weight|bias)")
# What depends on the vocabulary, in this package's models and in Marian's.
_OF_VOCABULARY = re.compile(
    r"(source_embedding|target_embedding|output_proj|.*\.shared|.*\.embed_tokens|lm_head)\.weight|final_logits_bias"
)


@torch.no_grad()
def copy_layers(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Put the layers of another model, for any languages, in the place of a model's own; its embeddings stay.

    A model of this package may have more layers, or fewer: it takes the first of each stack, and those that it has
    beyond begin by adding nothing, so that a deeper model begins as the other one.

    Args:
        model: whose weights change.
        folder: of a model of the same kind and width, or its Hub id.

    Returns:
        The other model.

    Raises:
        ValueError: it has layers of another kind or width; or another number of them, where they cannot add nothing.
    """
    other = load_model(folder, dtype="float32")
    ours, theirs = (
        {name: weight for name, weight in one.state_dict().items() if not _OF_VOCABULARY.fullmatch(name)}
        for one in (model, other)
    )
    if isinstance(model, LvnarForConditionalGeneration):
        stacks = [{match[1] for name in one if (match := _OF_LAYER.fullmatch(name))} for one in (ours, theirs)]

        def is_beyond(name: str) -> bool:
            match = _OF_LAYER.fullmatch(name)
            return match is not None and all(match[1] in names for names in stacks)

        theirs = {name: weight for name, weight in theirs.items() if name in ours or not is_beyond(name)}
        for name, weight in ours.items():
            if name not in theirs and is_beyond(name):
                theirs[name] = torch.zeros_like(weight) if _LAST_PRODUCT.fullmatch(name) else weight
    shapes, other_shapes = ({name: weight.shape for name, weight in one.items()} for one in (ours, theirs))
    if differing := sorted(name for name, _ in shapes.items() ^ other_shapes.items()):
        raise ValueError(
            f"initial_layers: {folder} has other layers than the recipe asks for: {differing[0]}, and "
            f"{len(set(differing)) - 1} more weights."
        )
    model.load_state_dict(theirs, strict=False)
    return other


def _embedding(model: PreTrainedModel, side: str) -> torch.nn.Embedding:
    """Of the source or the target."""
    if isinstance(model, LvnarForConditionalGeneration):
        embedding: Any = getattr(model, f"{side}_embedding", model.source_embedding)
    else:
        part: Any = model.get_encoder() if side == "source" else model.get_decoder()
        embedding = part.get_input_embeddings()
    return embedding


@torch.no_grad()
def copy_embeddings(
    model: LvnarForConditionalGeneration, folder: str, known: LvnarForConditionalGeneration | None = None
) -> None:
    """Put the embeddings of another model in the place of a model's own, at the place and scale of those it knows.

    Args:
        model: whose weights change.
        folder: of a teacher or a model of this package with the same tokenizer, or its Hub id.
        known: whose embeddings the layers of `model` know; by default, the model itself. The new ones get their mean
            and their mean distance from it; those of padding, end of sentence and the unknown word are taken from it.

    Raises:
        ValueError: the other's embeddings have other shapes, or it has two vocabularies and the model one.
    """
    known = model if known is None else known
    other = load_model(folder, dtype="float32")
    for side in ("source", "target"):
        ours = getattr(model, f"{side}_embedding", None)
        weight = _embedding(other, side).weight
        if ours is None:  # one vocabulary for both
            if not torch.equal(weight, _embedding(other, "source").weight):
                raise ValueError(f"initial_embeddings: {folder} has two vocabularies, and the model one.")
            continue
        if weight.shape != ours.weight.shape:
            raise ValueError(
                f"initial_embeddings: those of the {side} in {folder} are {tuple(weight.shape)}, and the model's "
                f"{tuple(ours.weight.shape)}."
            )
        like = _embedding(known, side).weight
        centred, mean = weight - weight.mean(0), like.mean(0)
        moved = mean + centred * ((like - mean).norm(dim=-1).mean() / centred.norm(dim=-1).mean())
        for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
            moved[getattr(model.config, name)] = like[getattr(known.config, name)]
        ours.weight.copy_(moved)
