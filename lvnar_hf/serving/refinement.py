"""A text of any kind, refined: its translation after each step, what the step changed, what is unsure, time, bound."""

import dataclasses
import time
from typing import Any

import torch

from lvnar_hf.jobs.line_translator import LineTranslator
from lvnar_hf.pipeline_lvnar import LvnarTranslationPipeline
from lvnar_hf.segmentation_lvnar import is_unspaced
from lvnar_hf.steps import Run, align


@dataclasses.dataclass(frozen=True)
class TextStep:
    """A translation with so many refinement steps.

    Attributes:
        step: refinement steps.
        text: what `lvnar translate` gives with them.
        runs: neighbouring words that have met one fate since the step before, as `compare_words` gives them.
        seconds: from text to text, with all steps up to this one.
        bound: lower bound, nats, of all sentences together; None for an engine that computes no probabilities.
    """

    step: int
    text: str
    runs: list[Run]
    seconds: float
    bound: float | None

    @property
    def is_changed(self) -> bool:
        """Whether a word is another one than after the step before."""
        return any(run["kind"] != "kept" for run in self.runs)

    @property
    def joiner(self) -> str:
        """What stands between the runs: a space, or nothing in text without spaces."""
        return "" if any(map(is_unspaced, self.text)) else " "


def refine_text(translator: LineTranslator, text: str, max_steps: int) -> list[TextStep]:
    """The translations of a text with 0, 1, ... refinement steps, until no sentence takes one more.

    Args:
        translator: of a model of this package, with a text format.
        text: lines, and sentences in them, as `TextFormat` takes them.
        max_steps: refinement steps at most.
    """
    bounds = _lower_bounds(translator, text, max_steps)
    steps: list[TextStep] = []
    num_taken = -1
    for step in range(max_steps + 1):
        start = time.perf_counter()
        translation = dataclasses.replace(translator, num_refinement_steps=step).translate([text])
        seconds = time.perf_counter() - start
        if translation.num_steps_taken == num_taken:
            break
        num_taken = translation.num_steps_taken
        (translated,) = translation.texts
        runs = compare_words(steps[-1].text if steps else translated, translated)
        steps.append(TextStep(step, translated, runs, seconds, bounds[step] if bounds else None))
    return steps


def compare_words(before: str, after: str) -> list[Run]:
    """What becomes of the words of one text in the next. Text without spaces is compared by characters."""
    has_spaces = not any(map(is_unspaced, before + after))
    sides = [text.split(" ") if has_spaces else list(text) for text in (before, after)]
    return align(sides[0], sides[1], " " if has_spaces else "")


def uncertain_spans(translator: LineTranslator, text: str, num_refinement_steps: int) -> list[tuple[int, int]]:
    """Start and end, in the translation of a text, of the words with less confidence than the calibration's threshold.

    None without a calibration, or of an engine that computes no probabilities.
    """
    if translator.engine != "torch" or translator.model.calibration is None:
        return []
    pipeline = LvnarTranslationPipeline(translator.model, tokenizer=translator.tokenizer)
    (result,) = pipeline(text, num_refinement_steps=num_refinement_steps, truncation=True, return_confidence=True)
    return [(word["start"], word["end"]) for word in result["words"] if word["is_uncertain"]]


def _lower_bounds(translator: LineTranslator, text: str, max_steps: int) -> list[float] | None:
    """Of the sentences of a text together, after each step; None if the engine has none."""
    if translator.engine != "torch" or translator.text_format is None:
        return None
    rounds: list[torch.Tensor] = []  # (sentences, steps) of the first round, and of pieces translated anew

    def translate_sentences(sentences: list[str]) -> list[list[str]]:
        limit = translator.model.config.max_position_embeddings
        source_ids = [
            ids[: limit - 1] + ids[-1:] for ids in translator.tokenizer(sentences, verbose=False)["input_ids"]
        ]
        batch = translator.tokenizer.pad({"input_ids": source_ids}, return_tensors="pt").to(translator.model.device)
        options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
        output = translator.model.generate(
            **batch, num_refinement_steps=max_steps, tokenizer=translator.tokenizer, **options
        )
        rounds.append(output.lower_bounds)
        return [[one] for one in translator.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)]

    translator.text_format.translate([text], translate_sentences)
    if not rounds:
        return None
    sums = rounds[0].sum(0).tolist()
    return [*sums, *[sums[-1]] * (max_steps + 1 - len(sums))]
