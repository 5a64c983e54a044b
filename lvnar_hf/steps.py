"""A refinement as data: for each sentence and step the text, what became of each word, and the lower bound.

    output = model.generate(**batch, return_dict_in_generate=True, output_scores=True)
    for refinement in refinement_steps(output, tokenizer):
        for step in refinement["steps"]:
            print(step["bound"], [(word["text"], word["mark"]) for word in step["words"]])

Everything is made of dictionaries, lists, strings and numbers, so that it can be sent as JSON. What a step changes is
found by alignment, not position by position, so that one inserted word does not mark all that follow. Text without
spaces (Japanese) is aligned by subwords.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, TypedDict

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from lvnar_hf.decoding_options_lvnar import GENERATION_DEFAULTS
from lvnar_hf.generation_lvnar import LvnarGenerateOutput, without_repetitions
from lvnar_hf.words_lvnar import is_unspaced, split_subwords, split_words

_KINDS = {"equal": "kept", "replace": "replaced", "insert": "inserted", "delete": "removed"}


class Run(TypedDict):
    """Neighbouring words that have met one fate.

    Attributes:
        kind: kept, replaced, inserted or removed.
        before, after: their text in the translation before and in this one; "" where there is none.
        num_words: the larger number of the two sides.
    """

    kind: str
    before: str
    after: str
    num_words: int


class Word(TypedDict):
    """A word of a translation, or a piece of one where the text has no spaces; `mark`: kept, replaced or inserted."""

    text: str
    mark: str


class Step(TypedDict):
    """A translation and what it changed.

    Attributes:
        step: 0 before refinement.
        text: as the decoder gave it.
        words: its words in order. What went is in `runs`.
        runs: what became of the words of the step before, in order; of step 0, all words are kept.
        num_changed_words: 0 where it has the words of the step before; its subwords may be others.
        bound: nats a sentence, see `LvnarGenerateOutput`; None if it was not asked for.
    """

    step: int
    text: str
    words: list[Word]
    runs: list[Run]
    num_changed_words: int
    bound: float | None


class RefinementSteps(TypedDict):
    """The translations of one sentence until it stops.

    Attributes:
        steps: from 0 on.
        has_converged: whether the last step changed no token.
        output: what `generate` gives: the last one, without repetitions if they are taken out.
    """

    steps: list[Step]
    has_converged: bool
    output: str


def refinement_steps(output: LvnarGenerateOutput, tokenizer: PreTrainedTokenizerBase) -> list[RefinementSteps]:
    """What `generate` has done, sentence by sentence.

    Args:
        output: of a model, or an engine, that gives `sequences_per_step`; with `lower_bounds`, steps have them.
        tokenizer: of the model.

    Raises:
        ValueError: the engine gives the last translation alone (ONNX Runtime).
    """
    translations = translations_by_step(output, int(tokenizer.pad_token_id))
    bounds = [None] * len(translations) if output.lower_bounds is None else output.lower_bounds.tolist()
    finals = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    texts = [tokenizer.batch_decode(of_one, skip_special_tokens=True) for of_one in translations]
    unspaced = is_unspaced([text for of_one in texts for text in of_one])
    return [
        {
            "steps": mark_steps(tokenizer, of_one, of_bounds, unspaced),
            "has_converged": has_converged(of_one),
            "output": final,
        }
        for of_one, of_bounds, final in zip(translations, bounds, finals, strict=True)
    ]


def translations_by_step(output: LvnarGenerateOutput, pad_token_id: int) -> list[list[list[int]]]:
    """For each sentence its translations from step 0 to the last it took: ids without padding.

    Raises:
        ValueError: as `refinement_steps`.
    """
    if output.sequences_per_step is None or output.num_steps_taken is None:
        raise ValueError(
            f"This {type(output).__name__} has no translations of single steps: ask a model of PyTorch, compiled or "
            "not, with return_dict_in_generate=True; or call generate for each number of steps."
        )
    by_step = [sequences.tolist() for sequences in output.sequences_per_step]
    return [
        [[token_id for token_id in by_step[step][row] if token_id != pad_token_id] for step in range(num_steps + 1)]
        for row, num_steps in enumerate(output.num_steps_taken.tolist())
    ]


def kept_by_step(
    model: Any, tokenizer: PreTrainedTokenizerBase, translations: list[list[list[int]]], source_ids: list[list[int]]
) -> list[list[list[int]]]:
    """What `generate` keeps of the translations of each sentence and step: no repetitions, if the model says so."""
    removal, padding = repetition_removal(model), model.config.pad_token_id
    if not removal:
        return translations
    kept = []
    for of_one, source in zip(translations, source_ids, strict=True):
        sequences = pad_sequence([torch.tensor(ids) for ids in of_one], batch_first=True, padding_value=padding)
        sources = torch.tensor([source] * len(of_one))
        without = without_repetitions(sequences, removal, padding, sources, tokenizer)
        kept.append([[token_id for token_id in ids if token_id != padding] for ids in without.tolist()])
    return kept


def repetition_removal(model: Any) -> bool | str:
    """What `generate` does for `remove_repetitions` when it is not told."""
    default: bool | str = GENERATION_DEFAULTS[model.config.alignment]["remove_repetitions"]
    return getattr(model.generation_config, "remove_repetitions", default)


def place_of_step(translations: Sequence[Any], step: int) -> int:
    """Where what `step` refinement steps give stands among a sentence's translations, from step 0 to the last it took.

    One that alternates has left when that was found: its later steps are those of its last round.
    """
    last = len(translations) - 1
    if step <= last or translations[-1] not in translations[:-1]:
        return min(step, last)
    start = max(place for place in range(last) if translations[place] == translations[-1])
    return start + (step - start) % (last - start)


def has_converged(translations: Sequence[list[int]]) -> bool:
    """Whether the last step changed nothing."""
    return translations[-1] in translations[-2:-1]


def mark_steps(
    tokenizer: PreTrainedTokenizerBase,
    translations: Sequence[Sequence[int]],
    bounds: Sequence[float] | None,
    unspaced: bool,
) -> list[Step]:
    """The translations of one sentence, each with what it changed.

    Args:
        translations: ids of each, from step 0 on.
        bounds: as many or more, for `Step.bound`.
        unspaced: align subwords, not words.
    """
    steps: list[Step] = []
    before: list[str] = []
    for number, ids in enumerate(translations):
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        after = split_subwords(tokenizer, ids) if unspaced else split_words(text)
        marks, runs = _compare(before if number else after, after, "" if unspaced else " ")
        steps.append(
            {
                "step": number,
                "text": text,
                "words": [{"text": word, "mark": mark} for word, mark in zip(after, marks, strict=True)],
                "runs": runs,
                "num_changed_words": sum(run["num_words"] for run in runs if run["kind"] != "kept"),
                "bound": None if bounds is None else bounds[number],
            }
        )
        before = after
    return steps


def align(before: Sequence[str], after: Sequence[str], joiner: str) -> list[Run]:
    """What becomes of the words of one translation in the next, in order.

    Args:
        before, after: words, or pieces of text.
        joiner: what stands between them: a space, or nothing.
    """
    return _compare(before, after, joiner)[1]


def _compare(before: Sequence[str], after: Sequence[str], joiner: str) -> tuple[list[str], list[Run]]:
    """The kind of each word of `after`; and the runs."""
    marks: list[str] = []
    runs: list[Run] = []
    for tag, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        marks += [_KINDS[tag]] * (m - k)
        sides = joiner.join(before[i:j]), joiner.join(after[k:m])
        runs.append({"kind": _KINDS[tag], "before": sides[0], "after": sides[1], "num_words": max(j - i, m - k)})
    return marks, runs
