"""Many lines translated in batches of a token budget, by PyTorch, compiled or not, or by ONNX Runtime."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.decoding import make_batches
from lvnar_hf.decoding_options_lvnar import stored_refinement_steps
from lvnar_hf.engines import ENGINES, ONNX_ENGINES
from lvnar_hf.engines.search import is_for_graphs
from lvnar_hf.files.atomic import hash_file
from lvnar_hf.files.fingerprints import StaleError, folder_fingerprint
from lvnar_hf.files.outputs import refuse_missing_folder
from lvnar_hf.loading import load_model, load_search, load_tokenizer
from lvnar_hf.text_lvnar import TextFormat

if TYPE_CHECKING:
    import torch

# Of a line, so many characters are looked at: more than fit any model, and few enough to tokenize in a second.
MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class TranslatedLines:
    """Translations in the order of the lines, "" for blank ones.

    Attributes:
        num_blank: lines that were blank.
        num_sentences: what the model has translated: lines, or the sentences in them.
        num_cut: sentences that were cut.
        num_steps_taken: of all sentences together.
    """

    texts: list[str]
    num_blank: int
    num_sentences: int
    num_cut: int
    num_steps_taken: int


@dataclass(frozen=True)
class LineTranslator:
    """Translates lines.

    Attributes:
        engine: one of ENGINES, but "auto".
        model: has `generate` and `config`.
        fingerprint: of all files that the translations depend on, or the Hub's commit; "" if it was not asked for.
        num_refinement_steps: None for a model without.
        max_batch_tokens: of a batch, padding included.
        text_format: takes lines apart and puts them together again; None: a line is a sentence.
        search: further arguments of `generate`; see `SearchOptions`.
    """

    engine: str
    model: Any
    tokenizer: Any
    fingerprint: str
    num_refinement_steps: int | None
    max_batch_tokens: int
    text_format: TextFormat | None = None
    search: Mapping[str, Any] = field(default_factory=dict)

    def translate(
        self, lines: Sequence[str], on_progress: Callable[[int], None] = lambda lines: None
    ) -> TranslatedLines:
        """Translations in the order of the lines; a sentence that is longer than the model takes is cut at its limit.

        Args:
            on_progress: is called with the number of lines that were translated since its last call.
        """
        if self.text_format is None:
            return self._translate_sentences(lines, on_progress)
        rounds: list[TranslatedLines] = []
        num_reported = 0

        def translate_sentences(sentences: list[str]) -> list[list[str]]:
            num_done = 0

            def report(sentences_more: int) -> None:
                nonlocal num_done, num_reported
                num_done += sentences_more
                num_lines = len(lines) * num_done // len(sentences) - num_reported
                if num_lines > 0:  # in a second round, over pieces, the lines are counted already
                    num_reported += num_lines
                    on_progress(num_lines)

            rounds.append(self._translate_sentences(sentences, report))
            return [[text] for text in rounds[-1].texts]

        texts = [text for (text,) in self.text_format.translate(lines, translate_sentences)]
        on_progress(len(lines) - num_reported)
        num_blank = sum(not line.strip() for line in lines)
        sums = (sum(getattr(one, name) for one in rounds) for name in ("num_sentences", "num_cut", "num_steps_taken"))
        return TranslatedLines(texts, num_blank, *sums)

    def _translate_sentences(self, lines: Sequence[str], on_progress: Callable[[int], None]) -> TranslatedLines:
        encoded, num_cut = self._encode(lines)
        order = sorted((i for i in range(len(lines)) if lines[i].strip()), key=lambda i: -len(encoded[i]))
        texts, num_steps_taken = [""] * len(lines), 0
        for batch in make_batches([len(encoded[i]) for i in order], self.max_batch_tokens):
            rows = order[batch.start : batch.stop]
            decoded, steps = self.translate_ids([encoded[i] for i in rows])
            for row, text in zip(rows, decoded, strict=True):
                texts[row] = text
            num_steps_taken += steps
            on_progress(len(rows))
        num_blank = len(lines) - len(order)
        on_progress(num_blank)
        return TranslatedLines(texts, num_blank, len(order), num_cut, num_steps_taken)

    def _encode(self, lines: Sequence[str]) -> tuple[list[list[int]], int]:
        """Ids of each line, cut at the model's limit, and how many were cut."""
        texts = [line[:MAX_CHARACTERS] for line in lines]
        encoded = self.tokenizer(texts, verbose=False)["input_ids"]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        num_cut = 0
        for row, (line, text) in enumerate(zip(lines, texts, strict=True)):
            is_too_long = limit is not None and len(encoded[row]) > limit
            if is_too_long:
                encoded[row] = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            num_cut += is_too_long or len(text) < len(line)
        return encoded, num_cut

    def translate_ids(self, source_ids: list[list[int]]) -> tuple[list[str], int]:
        """Translations of one batch of sentences, and the refinement steps they took together."""
        sequences, num_steps_taken = self._generate(source_ids)
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=True), num_steps_taken

    def _generate(self, source_ids: list[list[int]]) -> tuple["torch.Tensor | list[list[int]]", int]:
        """The tokens of the translations (sentences, longest), and the steps."""
        batch = self.tokenizer.pad({"input_ids": source_ids}, return_tensors="pt").to(self.model.device)
        num_steps = self.num_refinement_steps
        if num_steps is None:
            return self.model.generate(**batch), 0
        options = {"num_refinement_steps": num_steps, "tokenizer": self.tokenizer, **self.search}
        if num_steps < 2:  # each sentence takes as many
            return self.model.generate(**batch, **options), num_steps * len(source_ids)
        output = self.model.generate(**batch, **options, return_dict_in_generate=True)
        return output.sequences, int(output.num_steps_taken.sum())


def load_translator(
    name: str,
    engine: str = "torch",
    num_refinement_steps: int | None = None,
    max_batch_tokens: int = 512,
    device: "torch.device | str" = "cpu",
    preserve_format: bool = False,
    search: Mapping[str, Any] | None = None,
) -> LineTranslator:
    """A model with its engine; "auto" takes the fastest: on the CPU the graph in int8 if there is one, else PyTorch.

    Args:
        name: model folder or Hub id; of any sequence-to-sequence model for the engine "torch".
        num_refinement_steps: None: the model's own.
        preserve_format: translate the sentences of a line one by one, and keep what is around and between them; see
            `TextFormat`.
        search: as of `load_search`; with it, "auto" is PyTorch where there are no graphs for it.

    Raises:
        ValueError: for another engine, an engine that is not for this device or does not search, or a budget below 1.
        FileNotFoundError: the graph or the shortlist that was asked for is not there; says how to make it.
        ImportError: onnxruntime is asked for, and is missing.
    """
    import torch

    from lvnar_hf.engines.compiled import LvnarCompiledModel
    from lvnar_hf.engines.onnx import LvnarOnnxModel

    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}.")
    refuse_missing_folder(name)
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens is {max_batch_tokens}; it must be at least 1.")
    is_cpu = torch.device(device).type == "cpu"
    if engine in ONNX_ENGINES and not is_cpu:
        raise ValueError(f"The engine {engine} runs on the CPU, not on {device}: choose torch or auto.")
    search = {name: value for name, value in (search or {}).items() if value is not None}
    if search and engine == "compiled":
        raise ValueError(f"The engine {engine} gives one translation: a search needs another one.")
    if search and engine in ONNX_ENGINES and not is_for_graphs(search):
        raise ValueError(f"The engine {engine} searches by beam_size alone: {', '.join(search)} need torch or auto.")
    model: Any = None
    arguments: dict[str, Any] = {}
    load_graphs = partial(load_search, search, num_threads=torch.get_num_threads())
    if engine == "auto":
        engine = "torch"
        if is_cpu and (not search or is_for_graphs(search)):
            try:
                model = LvnarOnnxModel.from_pretrained(name, precision="int8", search=bool(search))
                arguments, engine = load_graphs(precision="int8"), "onnx-int8"
            except StaleError as error:
                warnings.warn(f"{error} PyTorch translates instead.", stacklevel=2)
                model = None
            except (ImportError, OSError):  # no onnxruntime, or no graph
                model = None
    elif engine in ONNX_ENGINES:
        model = LvnarOnnxModel.from_pretrained(name, **ONNX_ENGINES[engine], search=bool(search))
        arguments = load_graphs(precision=ONNX_ENGINES[engine]["precision"])
    elif engine == "compiled":
        model = LvnarCompiledModel.from_pretrained(name, device=device)
    if model is None:
        model = load_model(name, dtype=torch.float32).eval().to(device)
        arguments = load_search(search, device)
    if model.config.model_type == "lvnar" and num_refinement_steps is None:
        num_refinement_steps = stored_refinement_steps(model.config, model.generation_config)
    tokenizer = load_tokenizer(name)
    if arguments and model.config.model_type != "lvnar":
        raise ValueError(f"A search among candidates is for models of type lvnar; {name} is {model.config.model_type}.")
    fingerprint = _fingerprint(name, model, with_graphs=engine in ONNX_ENGINES)
    if "rescorer" in search:
        fingerprint += _fingerprint(search["rescorer"], arguments["rescorer"], with_graphs=engine in ONNX_ENGINES)
    text_format = text_format_for(model.config, tokenizer) if preserve_format else None
    return LineTranslator(
        engine, model, tokenizer, fingerprint, num_refinement_steps, max_batch_tokens, text_format, arguments
    )


def text_format_for(config: Any, tokenizer: Any) -> TextFormat:
    """The `TextFormat` of a model and its tokenizer."""
    languages = (getattr(holder, "source_language", None) for holder in (config, tokenizer))
    return TextFormat(tokenizer, getattr(config, "max_position_embeddings", None), next(filter(None, languages), None))


def _fingerprint(name: str, model: Any, with_graphs: bool) -> str:
    folder = Path(name)
    return folder_state(folder, with_graphs) if folder.is_dir() else str(getattr(model.config, "_commit_hash", None))


def folder_state(folder: Path, with_graphs: bool) -> str:
    """A fingerprint of all files in a model folder that translations depend on."""
    digest = hashlib.sha256(folder_fingerprint(folder).encode())
    for file in sorted(folder.glob("onnx/*")) if with_graphs else []:
        digest.update(hash_file(file).encode())
    return digest.hexdigest()
