"""Beam search by any sequence-to-sequence model of transformers, through the library itself or through CTranslate2.

Where the engines differ, with the same settings:
- CTranslate2 ends the search of a sentence when `num_beams` hypotheses are finished, which is `early_stopping=True` of
  transformers, or, with `length_penalty` 0, when the best one is; transformers' own default goes on while a better one
  seems possible.
- Where a generation config forbids tokens (`bad_words_ids`), CTranslate2 shares their probability among the others,
  which is `renormalize_logits=True` of transformers.
- Sums of floats are taken in another order, which decides between hypotheses that are equally good.
"""

import copy
import importlib.metadata
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from lvnar_hf.decoding import make_batches
from lvnar_hf.files.fingerprints import folder_fingerprint
from lvnar_hf.jobs.processes import worker_devices
from training.distillation.ctranslate2_model import EngineError, convert_to_ctranslate2, why_not_ctranslate2
from training.distillation.teacher import Teacher, end_ids, load_teacher

ENGINES = ("auto", "ctranslate2", "transformers")


@dataclass(frozen=True)
class SearchSettings:
    """What is asked of either engine.

    Attributes:
        num_beams: hypotheses of the beam search; 1 is greedy.
        length_penalty: a hypothesis' log probability is divided by its length (tokens with `</s>`) to this power.
        max_target_length: tokens at which a translation is cut, `</s>` included.
        max_batch_tokens: padded source tokens translated at once.
    """

    num_beams: int
    length_penalty: float
    max_target_length: int
    max_batch_tokens: int

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_target_length", "max_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class StudentSettings:
    """A student whose candidates the teacher chooses from, see `student.StudentEngine`.

    Attributes:
        folder: of the model.
        beam_size, num_refinement_steps: of its search.
        least_log_prob: nats a token by the teacher; where the best candidate has less, the teacher translates.
    """

    folder: str
    beam_size: int = 16
    num_refinement_steps: int = 1
    least_log_prob: float = -0.8

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder}, of the student.")
        if self.beam_size < 2:
            raise ValueError(f"student_beam_size is {self.beam_size}; it must be at least 2.")
        if self.least_log_prob > 0:
            raise ValueError(
                f"student_least_log_prob is {self.least_log_prob}; no probability is over 1, so at most 0."
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the folder's files."""
        return folder_fingerprint(Path(self.folder))


@dataclass(frozen=True)
class TeacherOutput:
    """One translation: its token ids without `</s>`, and whether the limit came before `</s>` did."""

    ids: list[int]
    is_cut: bool


class TeacherEngine(Protocol):
    """Translates token ids.

    Attributes:
        name: "ctranslate2" or "transformers".
        description: version, number type and device, for the record.
    """

    name: str
    description: dict[str, Any]

    def translate(
        self, source_ids: Sequence[list[int]], on_progress: Callable[[int], None] = ...
    ) -> list[TeacherOutput]:
        """Translations in the order of the sources.

        Args:
            source_ids: with `</s>`; neighbours are translated together, so sort them by length.
            on_progress: is called with the number of source tokens that were translated since its last call.
        """
        ...


class TransformersEngine:
    """`generate` with the key-value cache.

    Args:
        teacher: its model is moved to `device`.
        settings: of the beam search; what they do not name is the model's own generation config's, for example
            `early_stopping`.
        compute_type: float32 (or default), float16 or bfloat16.
        device: of torch.

    Raises:
        ValueError: for another compute type.
    """

    name = "transformers"

    def __init__(
        self,
        teacher: Teacher,
        settings: SearchSettings,
        compute_type: str = "default",
        device: torch.device | str = "cpu",
    ):
        types = {"default": torch.float32, "float32": torch.float32}
        types |= {"float16": torch.float16, "bfloat16": torch.bfloat16}
        if compute_type not in types:
            raise ValueError(
                f"compute_type is {compute_type}; the engine transformers has {', '.join(types)}. Other types need "
                "--engine ctranslate2 (pip install ctranslate2)."
            )
        self.teacher, self.settings, self.device = teacher, settings, torch.device(device)
        self.model = teacher.model.to(device=self.device, dtype=types[compute_type])
        self.generation_config = self._make_generation_config()
        self._end_ids = end_ids(self.generation_config)
        self.description = {
            "engine": self.name,
            "version": importlib.metadata.version("transformers"),
            "torch_version": torch.__version__,
            "compute_type": str(types[compute_type]).removeprefix("torch."),
            "device": str(self.device),
            "early_stopping": self.generation_config.early_stopping or False,
        }

    def _make_generation_config(self) -> GenerationConfig:
        config = copy.deepcopy(self.model.generation_config)
        config.update(
            num_beams=self.settings.num_beams,
            length_penalty=self.settings.length_penalty if self.settings.num_beams > 1 else 1.0,
            max_length=self.settings.max_target_length + 1,  # with the token that the decoder starts from
            forced_eos_token_id=None,  # else a cut translation would look finished
            do_sample=False,
            num_return_sequences=1,
            use_cache=True,
        )
        return config

    @torch.no_grad()
    def translate(
        self, source_ids: Sequence[list[int]], on_progress: Callable[[int], None] = lambda tokens: None
    ) -> list[TeacherOutput]:
        """See `TeacherEngine`."""
        outputs = []
        for batch in make_batches([len(ids) for ids in source_ids], self.settings.max_batch_tokens):
            rows = [source_ids[index] for index in batch]
            inputs = self.teacher.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
            sequences = self.model.generate(
                input_ids=inputs["input_ids"].to(self.device),
                attention_mask=inputs["attention_mask"].to(self.device),
                generation_config=self.generation_config,
            )
            outputs += [self._to_output(row) for row in sequences.tolist()]
            on_progress(sum(map(len, rows)))
        return outputs

    def _to_output(self, row: list[int]) -> TeacherOutput:
        """The ids between the decoder's start token and the first `</s>`."""
        row = row[1:]
        end = next((index for index, token in enumerate(row) if token in self._end_ids), None)
        return TeacherOutput(row[:end], is_cut=end is None)


class CTranslate2Engine:
    """CTranslate2's beam search, on the CPU or a GPU.

    On the CPU as many batches are translated at once as torch has threads, each on one thread; on a GPU one.

    Args:
        teacher: is converted, a few seconds; the converted files are gone when this returns.
        settings: of the beam search.
        compute_type: CTranslate2's: default (float32), int8, float16, ...
        device: "cpu" or "cuda", with an index.

    Raises:
        EngineError: why this teacher cannot be translated with by CTranslate2.
        ValueError: for a compute type that the device has not.
    """

    name = "ctranslate2"

    def __init__(
        self,
        teacher: Teacher,
        settings: SearchSettings,
        compute_type: str = "default",
        device: torch.device | str = "cpu",
    ):
        if (reason := why_not_ctranslate2(teacher)) is not None:
            raise EngineError(reason)
        import ctranslate2

        device = torch.device(device)
        supported = {"default", "auto", *ctranslate2.get_supported_compute_types(device.type, device.index or 0)}
        if compute_type not in supported:
            raise ValueError(f"compute_type is {compute_type}; CTranslate2 on {device} has {sorted(supported)}.")
        self.settings = settings
        self._end_ids = end_ids(teacher.model.generation_config)
        forbidden = getattr(teacher.model.generation_config, "bad_words_ids", None) or []
        self._forbidden = [[str(token) for token in sequence] for sequence in forbidden]
        num_threads = torch.get_num_threads() if device.type == "cpu" else 1
        with tempfile.TemporaryDirectory(prefix="ctranslate2-") as folder:
            convert_to_ctranslate2(teacher.model, folder)
            self.translator = ctranslate2.Translator(
                folder,
                device=device.type,
                device_index=device.index or 0,
                compute_type=compute_type,
                inter_threads=num_threads,
                intra_threads=1,
            )
        if device.type == "cpu":
            torch.set_num_threads(num_threads)  # the translator has set its own number for torch too
        self.description = {
            "engine": self.name,
            "version": ctranslate2.__version__,
            "compute_type": self.translator.compute_type,
            "device": str(device),
            "early_stopping": True,
        }

    def translate(
        self, source_ids: Sequence[list[int]], on_progress: Callable[[int], None] = lambda tokens: None
    ) -> list[TeacherOutput]:
        """See `TeacherEngine`."""
        settings = self.settings
        waiting = []
        for batch in make_batches([len(ids) for ids in source_ids], settings.max_batch_tokens):
            waiting.append(
                self.translator.translate_batch(
                    [[str(token) for token in source_ids[index]] for index in batch],
                    beam_size=settings.num_beams,
                    length_penalty=settings.length_penalty,
                    max_input_length=0,
                    max_decoding_length=settings.max_target_length,
                    min_decoding_length=0,
                    end_token=sorted(self._end_ids),
                    return_end_token=True,
                    suppress_sequences=self._forbidden or None,
                    asynchronous=True,
                )
            )
        outputs, position = [], 0
        for results in waiting:
            for result in results:
                outputs.append(self._to_output([int(token) for token in result.result().hypotheses[0]]))
            on_progress(sum(map(len, source_ids[position : len(outputs)])))
            position = len(outputs)
        return outputs

    def _to_output(self, ids: list[int]) -> TeacherOutput:
        """The ids before `</s>`, which comes last if at all."""
        is_cut = not ids or ids[-1] not in self._end_ids
        return TeacherOutput(ids if is_cut else ids[:-1], is_cut)


def choose_engine(name: str, teacher: Teacher) -> str:
    """ "ctranslate2" or "transformers"; `auto` is the first if it can be used.

    Raises:
        EngineError: why the engine that was asked for cannot be used.
        ValueError: for another name.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; it must be one of {ENGINES}.")
    if name == "transformers":
        return name
    reason = why_not_ctranslate2(teacher)
    if name == "ctranslate2" and reason is not None:
        raise EngineError(reason)
    return "ctranslate2" if reason is None else "transformers"


def make_engine(
    name: str,
    teacher: Teacher,
    settings: SearchSettings,
    compute_type: str,
    device: torch.device | str,
    student: StudentSettings | None = None,
) -> TeacherEngine:
    """The engine of that name, one of those that `choose_engine` returns; with a student, that of both."""
    engine = CTranslate2Engine if name == "ctranslate2" else TransformersEngine
    own = engine(teacher, settings, compute_type, device)
    if student is None:
        return own
    from training.distillation.student import StudentEngine  # which imports this module

    return StudentEngine(own, teacher, student, settings.max_batch_tokens, device)


def load_engine(
    name: str,
    teacher: tuple[Any, ...],
    settings: SearchSettings,
    compute_type: str,
    student: StudentSettings | None,
    threads: int | None,
    device: str,
) -> TeacherEngine:
    """That of `make_engine`, for a process that has no teacher yet.

    Args:
        teacher: goes to `load_teacher`.
        threads: of this process; None: as many as it may use.
        device: "": a GPU if there is one.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    device = device or worker_devices(None, 1)[0]
    return make_engine(name, load_teacher(*teacher), settings, compute_type, device, student)
