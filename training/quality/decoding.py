"""Texts to translations, in batches of sentences alike in length; with every refinement step, or by any model.

A sentence is translated once, not once per step. `generate` gives the translations of all steps, and a
sentence that has stopped keeps its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lvnar_hf.decoding import decode_batches, sorted_batches
from lvnar_hf.files.text import one_line
from lvnar_hf.steps import has_converged, kept_by_step, place_of_step, translations_by_step


def translate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 64,
    **generate_arguments: Any,
) -> list[str]:
    """Translations by any sequence-to-sequence model, in the order of the texts; empty texts stay empty.

    A text longer than the model takes is cut at its limit.

    Args:
        generate_arguments: go to `generate`, for example `num_refinement_steps`.
    """
    if model.config.model_type == "lvnar":
        generate_arguments = {"tokenizer": tokenizer, **generate_arguments}
    encoded, batches = _encode(model, tokenizer, texts, batch_size)

    def translate(rows: list[int]) -> list[str]:
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
        return tokenizer.batch_decode(model.generate(**batch, **generate_arguments), skip_special_tokens=True)

    hypotheses = decode_batches(translate, batches)
    return [hypotheses.get(row, "") for row in range(len(texts))]


def _encode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the texts, cut at the model's limit; and those that are not blank in batches, the shortest first."""
    limit = model.config.max_position_embeddings
    encoded = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if texts else []
    rows = [row for row, text in enumerate(texts) if text.strip()]
    return encoded, sorted_batches([len(ids) for ids in encoded], batch_size, rows)


@dataclass
class Refinement:
    """The translations of one sentence.

    Attributes:
        source_ids: (source_length,), with `</s>`.
        target_ids: num_steps_taken + 1 translations, from step 0 on: as the decoder gave them, without padding.
        texts: num_steps_taken + 1 texts as `generate` gives them at this step: without repetitions, if the model's
            generation config says so.
        has_converged: whether the last step changed nothing.
        kept_ids: num_steps_taken + 1 translations, those of `texts`.
    """

    source_ids: list[int]
    target_ids: list[list[int]]
    texts: list[str]
    has_converged: bool
    kept_ids: list[list[int]] = field(default_factory=list)

    @property
    def num_steps_taken(self) -> int:
        """Refinement steps, the one that changed nothing included."""
        return len(self.target_ids) - 1

    @property
    def num_changes(self) -> int:
        """Steps that changed the translation."""
        return self.num_steps_taken - self.has_converged

    def ids_at(self, step: int) -> list[int]:
        """The translation after a step, as the decoder gave it."""
        return self.target_ids[place_of_step(self.target_ids, step)]

    def text_at(self, step: int) -> str:
        """The text after a step."""
        return self.texts[place_of_step(self.target_ids, step)]


def refine_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_steps: int,
    batch_size: int = 64,
) -> list[Refinement]:
    """Translate each text, and refine it until it stops or `max_steps` are taken; the order is kept.

    A text longer than the model takes is cut at its limit.

    Args:
        texts: none of them blank.
        batch_size: sentences translated at once.
    """
    encoded, batches = _encode(model, tokenizer, texts, batch_size)
    with tqdm(total=len(texts), desc="translating", unit="sentence") as progress:

        def refine(rows: list[int]) -> list[Refinement]:
            progress.update(len(rows))
            return _refine_batch(model, tokenizer, [encoded[row] for row in rows], max_steps)

        return list(decode_batches(refine, batches).values())


def _refine_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source_ids: list[list[int]], max_steps: int
) -> list[Refinement]:
    batch = tokenizer.pad({"input_ids": source_ids}, return_tensors="pt").to(model.device)
    output: Any = model.generate(**batch, num_refinement_steps=max_steps, return_dict_in_generate=True)
    translations = translations_by_step(output, model.config.pad_token_id)
    refinements = []
    for source, of_one, kept in zip(
        source_ids, translations, kept_by_step(model, tokenizer, translations, source_ids), strict=True
    ):
        texts = tokenizer.batch_decode(kept, skip_special_tokens=True)
        lines = list(map(one_line, texts))  # a line each, as score.py writes them
        refinements.append(Refinement(source, of_one, lines, has_converged(of_one), kept))
    return refinements
