"""A text of any kind, refined: its translation after each step, what the step changed, what is unsure, time, bound."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lvnar_hf.jobs.line_translator import LineTranslator, TranslatedLines
from lvnar_hf.pipeline_lvnar import LvnarTranslationPipeline
from lvnar_hf.segmentation_lvnar import is_unspaced
from lvnar_hf.steps import Run, align, kept_by_step, place_of_step, translations_by_step


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

    A model of PyTorch translates once, with all steps. ONNX Runtime translates anew for each number: its graph gives
    the last translation alone.

    Args:
        translator: of a model of this package, with a text format.
        text: lines, and sentences in them, as `TextFormat` takes them.
        max_steps: refinement steps at most.
    """
    watched = _WatchedTranslator(**vars(translator), max_steps=max_steps) if translator.engine == "torch" else None
    steps: list[TextStep] = []
    num_taken = -1
    for step in range(max_steps + 1):
        asked = dataclasses.replace(watched or translator, num_refinement_steps=step)
        start = time.perf_counter()
        translation = asked.translate([text])
        seconds, bound = time.perf_counter() - start, None
        if isinstance(asked, _WatchedTranslator):
            seconds += asked.unmeasured_seconds
            bound = asked.bound
        if translation.num_steps_taken == num_taken:
            break
        num_taken = translation.num_steps_taken
        (translated,) = translation.texts
        runs = compare_words(steps[-1].text if steps else translated, translated)
        steps.append(TextStep(step, translated, runs, seconds, bound))
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


class _WatchedBatch(NamedTuple):
    """A batch that was translated with all steps; lists by step, of each sentence up to the last one it took.

    Attributes:
        texts, bounds: of each sentence.
        seconds: from ids to texts, with all steps up to this one.
    """

    texts: list[list[str]]
    bounds: list[list[float]]
    seconds: list[float]

    def places(self, step: int) -> list[int]:
        """Where what so many steps give stands, for each sentence."""
        return [place_of_step(texts, step) for texts in self.texts]


@dataclasses.dataclass(frozen=True)
class _WatchedTranslator(LineTranslator):
    """Translates each batch once, with `max_steps`, and gives what it was after `num_refinement_steps`."""

    max_steps: int = 0
    batches: dict[tuple[tuple[int, ...], ...], _WatchedBatch] = dataclasses.field(default_factory=dict)
    rounds: list[list[_WatchedBatch]] = dataclasses.field(default_factory=list, init=False)
    spans: list[float] = dataclasses.field(default_factory=list, init=False)  # what each batch has taken now

    @property
    def unmeasured_seconds(self) -> float:
        """What the batches would have taken with these steps alone, less what they have taken now."""
        batches = [batch for of_round in self.rounds for batch in of_round]
        return sum(batch.seconds[min(self._step, len(batch.seconds) - 1)] for batch in batches) - sum(self.spans)

    @property
    def bound(self) -> float | None:
        """Lower bound of the sentences of the first round: others are pieces of them, translated anew."""
        if not self.rounds:
            return None
        places = [(batch, batch.places(self._step)) for batch in self.rounds[0]]
        return sum(of_one[place] for batch, at in places for of_one, place in zip(batch.bounds, at, strict=True))

    @property
    def _step(self) -> int:
        return int(self.num_refinement_steps or 0)

    def _translate_sentences(self, lines: Sequence[str], on_progress: Callable[[int], None]) -> TranslatedLines:
        self.rounds.append([])
        return super()._translate_sentences(lines, on_progress)

    def translate_ids(self, source_ids: list[list[int]]) -> tuple[list[str], int]:
        start = time.perf_counter()
        key = tuple(map(tuple, source_ids))
        if key not in self.batches:
            self.batches[key] = self._watch(source_ids)
        batch = self.batches[key]
        self.rounds[-1].append(batch)
        texts = [of_one[place] for of_one, place in zip(batch.texts, batch.places(self._step), strict=True)]
        self.spans.append(time.perf_counter() - start)
        return texts, sum(min(self._step, len(of_one) - 1) for of_one in batch.texts)

    def _watch(self, source_ids: list[list[int]]) -> _WatchedBatch:
        batch = self.tokenizer.pad({"input_ids": source_ids}, return_tensors="pt").to(self.model.device)
        options = {"num_refinement_steps": self.max_steps, "tokenizer": self.tokenizer, "output_scores": True}
        ends: list[float] = []  # a step ends where the posterior of the next one begins
        hook = self.model.posterior.register_forward_pre_hook(lambda *_: ends.append(time.perf_counter()))
        start = time.perf_counter()
        try:
            output = self.model.generate(**batch, **options, **self.search, return_dict_in_generate=True)
        finally:
            hook.remove()
        ends.append(time.perf_counter())
        translations = translations_by_step(output, self.model.config.pad_token_id)
        kept = kept_by_step(self.model, self.tokenizer, translations, source_ids)
        texts = [self.tokenizer.batch_decode(of_one, skip_special_tokens=True) for of_one in kept]
        seconds = (time.perf_counter() - ends[-1]) / len(ends)
        return _WatchedBatch(
            texts,
            [bounds[: len(of_one)] for bounds, of_one in zip(output.lower_bounds.tolist(), texts, strict=True)],
            [end - start + seconds for end in ends],
        )
