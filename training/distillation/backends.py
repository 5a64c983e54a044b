"""Beam search by any sequence-to-sequence model of transformers, through the library itself or through CTranslate2.

What is unusual: CTranslate2 gets ids for tokens. Its vocabularies are the strings "0", "1", ..., so any tokenizer does,
one joint vocabulary or two, and the only text it sees is ours.

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
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import lvnar_hf  # noqa: F401  (registers the tokenizer)
from lvnar_hf.decoding import make_batches
from lvnar_hf.files.fingerprints import folder_fingerprint

ENGINES = ("auto", "ctranslate2", "transformers")
# Model types whose translations the tests compare between the engines.
CONVERTIBLE = ("marian", "t5")
# Settings of a generation config that CTranslate2 is not told, and the values that mean "not used".
UNSUPPORTED_GENERATION = {
    "begin_suppress_tokens": (None,),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "force_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
}


@dataclass
class Teacher:
    """A model that translates, its tokenizer, and what identifies both.

    Attributes:
        name: folder or Hub id, as given.
        fingerprint: of the weights and configuration: SHA-256 of a folder's files, or the Hub's commit.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    def check_target_length(self, max_target_length: int) -> None:
        """Raise ValueError if the decoder has not so many positions."""
        limit = self.max_source_length
        if limit is not None and max_target_length > limit:
            raise ValueError(f"max_target_length is {max_target_length}, but {self.name} has {limit} positions.")

    @property
    def max_source_length(self) -> int | None:
        """Longest source in tokens with `</s>`; None if the model has no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)


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


def load_teacher(name: str, revision: str | None = None) -> Teacher:
    """Model (float32, in evaluation mode), tokenizer and fingerprint.

    Raises:
        OSError: no such model, as transformers says it.
    """
    # Only what is given: transformers 4.57 knows no revision None.
    where = {} if revision is None else {"revision": revision}
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32, **where).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    commit = getattr(model.config, "_commit_hash", None)
    fingerprint = folder_fingerprint(Path(name)) if Path(name).is_dir() else str(commit)
    return Teacher(name, model, tokenizer, fingerprint)


def end_ids(config: GenerationConfig) -> set[int]:
    """The ids that end a translation."""
    return set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])


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


class EngineError(ValueError):
    """An engine that cannot be used here; the message says why and what to do."""


def why_not_ctranslate2(teacher: Teacher) -> str | None:
    """None if CTranslate2 can do this teacher's beam search; else the reason, with what to do."""
    model_type = teacher.model.config.model_type
    if importlib.util.find_spec("ctranslate2") is None:
        return "The engine ctranslate2 is not installed: pip install ctranslate2, or choose --engine transformers."
    if model_type not in CONVERTIBLE:
        return (
            f"The engine ctranslate2 is used for the model types {', '.join(CONVERTIBLE)}, and {teacher.name} is a "
            f"{model_type}: choose --engine transformers."
        )
    config = teacher.model.generation_config
    used = [name for name, off in UNSUPPORTED_GENERATION.items() if getattr(config, name, None) not in off]
    if used:
        return (
            f"The engine ctranslate2 is not given {', '.join(used)} of the generation config of {teacher.name}: choose "
            "--engine transformers."
        )
    return None


class _IdTokenizer:
    """What CTranslate2's loaders ask a tokenizer for, answered in ids."""

    def __init__(self, config: Any):
        self.eos_token, self.pad_token = str(config.eos_token_id), str(config.pad_token_id)
        self.bos_token = self.unk_token = self.pad_token

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return str(token_id)


def convert_to_ctranslate2(
    model: PreTrainedModel, folder: str, quantization: str | None = None, vocabulary_map: Path | None = None
) -> None:
    """Write a model in CTranslate2's format whose tokens are its ids as strings: "0", "1", ...

    With `quantization`, for example "int8", the weights are stored so; else as they are. With `vocabulary_map`, a file
    in CTranslate2's format of these tokens, the model has it for `use_vmap`.

    CTranslate2's own converter of Marian takes the last row of the vocabulary for <pad> and starts decoding from zeros.
    Here the start is the embedding of `decoder_start_token_id`, wherever it is and whatever training made of it.
    """
    from ctranslate2.converters import transformers as converters

    if quantization is not None:
        model = copy.deepcopy(model)  # it is quantised in place
    config = model.config
    loader = converters._MODEL_LOADERS[type(config).__name__]
    tokenizer = _IdTokenizer(config)
    # The loaders write into the configuration.
    config_before = copy.deepcopy(config)
    with torch.no_grad():
        if config.model_type == "marian":
            config.normalize_before, config.normalize_embedding = False, False
            bart_loader = converters.BartLoader()
            spec = bart_loader.get_model_spec(model)
            bart_loader.set_config(spec.config, model, tokenizer)
        else:
            spec = loader.get_model_spec(model)
            loader.set_config(spec.config, model, tokenizer)
            # transformers 5 scales the outputs of any T5 that was not saved with untied embeddings, and ties them all.
            is_scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
            spec.decoder.scale_outputs = np.float32(config.d_model**-0.5 if is_scaled else 1.0)
    model.config = config_before
    (source_size,) = spec.get_source_vocabulary_size()
    spec.register_source_vocabulary([str(index) for index in range(source_size)])
    spec.register_target_vocabulary([str(index) for index in range(spec.get_target_vocabulary_size())])
    if vocabulary_map is not None:
        spec.register_vocabulary_mapping(str(vocabulary_map))
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(folder)


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
    name: str, teacher: Teacher, settings: SearchSettings, compute_type: str, device: torch.device | str
) -> TeacherEngine:
    """The engine of that name, one of those that `choose_engine` returns."""
    engine = CTranslate2Engine if name == "ctranslate2" else TransformersEngine
    return engine(teacher, settings, compute_type, device)
