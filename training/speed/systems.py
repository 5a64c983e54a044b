"""What is timed: every system behind one interface, token ids to token ids.

A system is described (`SystemSpec`) apart from being built (`build_system`), since each is built in a process of its
own. A new engine is a class with the interface `System`, a line in `ENGINES`, and its specs in specs.py.

The autoregressive baselines are as fast as their users would make them: key-value cache, no gradient, all threads;
CTranslate2 with all threads on a batch, or one on it or on each part of it, whichever was faster; beam search that ends
when `num_beams` translations are finished, CTranslate2's rule, in transformers too; where this model has a shortlist,
the same lists for CTranslate2, as its vocabulary map.
"""

import contextlib
import ctypes
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.engines.compiled import CAPTURE_CALLS, LvnarCompiledModel
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.loading import load_model, load_search
from training.speed.specs import COMPILED_ENGINE, SystemSpec

CALIBRATION_SENTENCES = 32  # at most, of a batch on which CTranslate2's two ways are compared
CALIBRATION_CALLS = 5  # of one sentence, in each way


class System:
    """Translates token ids.

    Attributes:
        num_refinements: refinement steps taken so far, summed over sentences; 0 for an autoregressive model.
        description: what it has chosen by itself, for the record.
    """

    num_refinements = 0

    def __init__(self) -> None:
        self.description: dict[str, Any] = {}

    def prepare(self, batches: list[list[list[int]]]) -> None:
        """What a user would set up once for batches of this size, and what is to be known of them; it is not timed."""

    def translate(self, batch: list[list[int]]) -> list[list[int]]:
        """Sources with `</s>`, sorted by length, to translations with `</s>`, without padding.

        An autoregressive translation that was cut has no `</s>`.
        """
        raise NotImplementedError


def _pad(batch: list[list[int]], padding: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (batch, longest), int64."""
    longest = max(map(len, batch))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in batch])
    lengths = torch.tensor([[len(row)] for row in batch])
    mask = (torch.arange(longest) < lengths).long()
    return ids.to(device), mask.to(device)


def _load(spec: SystemSpec) -> PreTrainedModel:
    return load_model(spec.folder, dtype=getattr(torch, spec.dtype)).eval().to(spec.device)


class LvnarSystem(System):
    """This package's `generate`."""

    def __init__(self, spec: SystemSpec, model: Any, **options: Any):
        super().__init__()
        self.model, self.options = model, {"num_refinement_steps": spec.setting, **options}
        if spec.remove_repetitions is not None:
            self.options["remove_repetitions"] = spec.remove_repetitions

    def translate(self, batch: list[list[int]]) -> list[list[int]]:
        padding = self.model.config.pad_token_id
        input_ids, attention_mask = _pad(batch, padding, self.model.device)
        output = self.model.generate(input_ids, attention_mask=attention_mask, **self.options)
        sequences = output if isinstance(output, torch.Tensor) else self._count(output)
        return [[token for token in row if token != padding] for row in sequences.tolist()]

    def _count(self, output: Any) -> torch.Tensor:
        """The translations; what else there is in the result is noted."""
        self.num_refinements += int(output.num_steps_taken.sum())
        return output.sequences


class EagerLvnar(LvnarSystem):
    """By PyTorch; with a search, the steps of the candidate that takes most are counted."""

    def __init__(self, spec: SystemSpec):
        super().__init__(spec, _load(spec), **load_search(dict(spec.search), spec.device))
        if not spec.search:
            self.model.posterior.register_forward_hook(self._count_rows)

    def _count_rows(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        self.num_refinements += len(inputs[0])


@functools.cache
def _compiled_model(folder: str, dtype: str, device: str) -> tuple[LvnarCompiledModel, float]:
    """The model, compiled, and the seconds that this took; one for all numbers of refinement steps."""
    model = LvnarCompiledModel.from_pretrained(folder, getattr(torch, dtype), device)
    return model, model.warm_up()


class CompiledLvnar(LvnarSystem):
    """Compiled by torch."""

    def __init__(self, spec: SystemSpec):
        model, seconds = _compiled_model(spec.folder, spec.dtype, spec.device)
        super().__init__(spec, model, return_dict_in_generate=True)
        self.description["compilation_s"] = seconds

    def prepare(self, batches: list[list[list[int]]]) -> None:
        for batch in batches:  # graphs of these shapes
            for _ in range(CAPTURE_CALLS):
                self.translate(batch)


class OnnxLvnar(LvnarSystem):
    """In ONNX Runtime, float32 or int8, with a shortlist or without, or with a search."""

    def __init__(self, spec: SystemSpec):
        _, precision, *rest = spec.engine.split()
        options = {"shortlist": "shortlist" in rest, "search": bool(spec.search)}
        model = LvnarOnnxModel.from_pretrained(spec.folder, precision, spec.num_threads, **options)
        search = load_search(dict(spec.search), precision=precision, num_threads=spec.num_threads)
        super().__init__(spec, model, return_dict_in_generate=True, **search)
        self.num_positions = torch.zeros(2, dtype=torch.int64)

    def prepare(self, batches: list[list[list[int]]]) -> None:
        num_refinements = self.num_refinements
        for batch in batches:  # the first large one opens a graph for single threads, and each shape takes its memory
            self.translate(batch)
        self.num_refinements = num_refinements
        key, shortlist, config = str(len(batches[0])), self.model.shortlist, self.model.config
        if shortlist is None or key in self.description.setdefault("tokens_tried", {}):
            return
        numbers: list[int] = []
        for batch in batches:
            tried = shortlist.candidates_of(*_pad(batch, config.pad_token_id, self.model.device), config)
            numbers += (tried != config.pad_token_id).sum(-1).tolist()
        self.description["tokens_tried"][key] = {
            "mean": statistics.mean(numbers),
            "lowest": min(numbers),
            "highest": max(numbers),
        }

    def _count(self, output: Any) -> torch.Tensor:
        if self.model.shortlist is not None:
            self.num_positions += output.num_positions
            num_all, num_whole = self.num_positions.tolist()
            self.description["whole_vocabulary_share"] = num_whole / num_all
        return super()._count(output)


def _up_to_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """A translation up to its `</s>`, or all of it."""
    return row[: next((index + 1 for index, token in enumerate(row) if token in ends), len(row))]


class TransformersMarian(System):
    """transformers' `generate`, with the key-value cache."""

    def __init__(self, spec: SystemSpec):
        super().__init__()
        self.model, self.ends = _load(spec), spec.end_ids
        self.model.generation_config.update(
            num_beams=spec.setting,
            early_stopping=spec.setting > 1,
            max_new_tokens=spec.max_target_length,
            max_length=None,
            forced_eos_token_id=None,
            do_sample=False,
            use_cache=True,
        )

    def translate(self, batch: list[list[int]]) -> list[list[int]]:
        input_ids, attention_mask = _pad(batch, self.model.config.pad_token_id, self.model.device)
        rows = self.model.generate(input_ids, attention_mask=attention_mask).tolist()
        return [_up_to_end(row[1:], self.ends) for row in rows]


class CTranslate2Marian(System):
    """CTranslate2, float32 or int8, with a vocabulary map or without.

    A batch has all threads (`intra_threads`), or one on the whole of it if it is one sentence, and on each of as many
    parts otherwise (`inter_threads`): whichever way is faster on the batch in the middle, 32 of its sentences at most.
    Only the translator in use is held, but for that trial.
    """

    def __init__(self, spec: SystemSpec):
        super().__init__()
        self.spec = spec
        _, self.compute_type, *rest = spec.engine.split()
        self.has_vocabulary_map = bool(rest)
        self.device = torch.device(spec.device)
        self.fastest: dict[int, tuple[int, int]] = {}  # by batch size, up to CALIBRATION_SENTENCES
        self.description["inter_and_intra_threads"] = {}
        self.way = (0, 0)  # workers and threads of each, of the translator that is held
        self.translator: Any = None
        self._hold((1, spec.num_threads))

    def _hold(self, way: tuple[int, int]) -> None:
        """Have a translator with so many workers, each with so many threads."""
        if way == self.way:
            return
        self.translator = None  # the old one goes before the new one comes
        with contextlib.suppress(OSError, AttributeError, TypeError):  # another system's library
            # glibc would keep its memory, which would count as that of the new one.
            ctypes.CDLL(None).malloc_trim(0)
        self.way, self.translator = way, self._make_translator(way)

    def _make_translator(self, way: tuple[int, int]) -> Any:
        import ctranslate2

        num_workers, num_threads = way
        return ctranslate2.Translator(
            self.spec.folder,
            device=self.device.type,
            device_index=self.device.index or 0,
            compute_type=self.compute_type,
            inter_threads=num_workers,
            intra_threads=num_threads if self.device.type == "cpu" else 0,
        )

    def _ways(self, batch_size: int) -> list[tuple[int, int]]:
        num_threads = self.spec.num_threads
        if self.device.type != "cpu" or num_threads == 1:
            return [(1, num_threads)]
        return [(1, num_threads), (1, 1) if batch_size == 1 else (num_threads, 1)]

    def _find_fastest(self, batch: list[list[int]]) -> tuple[int, int]:
        """The way in which the batch is translated fastest, by the median of calls that take turns."""
        ways = self._ways(len(batch))
        if len(ways) == 1:
            return ways[0]
        translators = {way: self._make_translator(way) for way in ways}
        seconds: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
        for number in range(1 + (CALIBRATION_CALLS if len(batch) == 1 else 1)):
            for way in ways:
                self.way, self.translator = way, translators[way]
                start = time.perf_counter()
                self.translate(batch if number else batch[:1])
                if number:  # the first one warms up
                    seconds[way].append(time.perf_counter() - start)
        self.way = (0, 0)  # none is held on to: their memory would count
        return min(ways, key=lambda way: statistics.median(seconds[way]))

    def prepare(self, batches: list[list[list[int]]]) -> None:
        batch = batches[len(batches) // 2][:CALIBRATION_SENTENCES]
        if len(batch) not in self.fastest:
            self.fastest[len(batch)] = self._find_fastest(batch)
        self._hold(self.fastest[len(batch)])
        self.description["inter_and_intra_threads"][str(len(batches[0]))] = list(self.way)

    def translate(self, batch: list[list[int]]) -> list[list[int]]:
        results = self.translator.translate_batch(
            [[str(token) for token in row] for row in batch],
            max_batch_size=-(-len(batch) // self.way[0]),
            beam_size=self.spec.setting,
            max_input_length=0,
            max_decoding_length=self.spec.max_target_length,
            end_token=list(self.spec.end_ids),
            suppress_sequences=[[str(token) for token in sequence] for sequence in self.spec.forbidden] or None,
            use_vmap=self.has_vocabulary_map,
            return_end_token=True,
        )
        return [[int(token) for token in result.hypotheses[0]] for result in results]


ENGINES: dict[str, Callable[[SystemSpec], System]] = {
    "eager": EagerLvnar,
    COMPILED_ENGINE: CompiledLvnar,
    "onnx": OnnxLvnar,
    "transformers": TransformersMarian,
    "ctranslate2": CTranslate2Marian,
}


def build_system(spec: SystemSpec) -> System:
    """The system itself, on its device."""
    return ENGINES[spec.engine.split()[0]](spec)
