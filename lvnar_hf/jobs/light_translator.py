"""A translator from a model folder that needs neither torch nor transformers, which take seconds to import.

What is unusual: it is for what is plain alone, an engine of ONNX Runtime on the CPU and a folder whose files hold
nothing but what this package writes. For anything else there is None, and transformers is asked, which takes more and
has the messages. What it does itself is what the engine and the tokenizer for transformers do, by the same modules:
`engines/graph.py`, `subwords_lvnar.py`, `sizes_lvnar.py`, `decoding_options_lvnar.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lvnar_hf.decoding_options_lvnar import GENERATION_DEFAULTS, OWN_OPTIONS, DecodingOptions, stored_refinement_steps
from lvnar_hf.engines import ONNX_ENGINES
from lvnar_hf.engines.graph import FILES, Graph
from lvnar_hf.engines.search import CELL_FILES, GraphSearch, is_for_graphs
from lvnar_hf.engines.tried_tokens import FILE as SHORTLIST_FILE
from lvnar_hf.engines.tried_tokens import load_tried_tokens, refuse_stale_shortlist
from lvnar_hf.files.fingerprints import refuse_stale
from lvnar_hf.jobs.line_translator import LineTranslator, folder_state, text_format_for
from lvnar_hf.loading import load_search
from lvnar_hf.names_lvnar import FILE as TRANSLATED_WORDS_FILE
from lvnar_hf.names_lvnar import read_translated_words
from lvnar_hf.search_options_lvnar import SearchOptions
from lvnar_hf.segmentation_lvnar import make_segmenter
from lvnar_hf.sizes_lvnar import check_sizes
from lvnar_hf.soundness_lvnar import read_json_object
from lvnar_hf.subwords_lvnar import (
    SPECIAL_TOKENS,
    Lock,
    SubwordsMixin,
    check_joint,
    check_special_tokens,
    has_added_tokens,
)
from lvnar_hf.trust_lvnar import CONFIG_AUTO_MAP, CUSTOM_PIPELINES, TOKENIZER_AUTO_MAP
from lvnar_hf.vocabulary_lvnar import check_vocabulary_file

# Fields of the JSON files that say nothing to a translator, and their values as this package writes them.
_TYPES = (None, "float32", "float16", "bfloat16")
_CONFIG_VALUES: dict[str, tuple[Any, ...]] = {
    "architectures": (["LvnarForConditionalGeneration"],),
    "auto_map": (CONFIG_AUTO_MAP,),
    "custom_pipelines": (CUSTOM_PIPELINES,),
    "dtype": _TYPES,
    "torch_dtype": _TYPES,
    "model_type": ("lvnar",),
    "pad_token_id": (0,),
}
_CONFIG_FIELDS = {
    *("vocab_size", "target_vocab_size", "tie_word_embeddings", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_prior_layers", "num_posterior_encoder_layers", "num_posterior_decoder_layers"),
    *("num_decoder_layers", "latent_dim", "alignment", "upsampling_ratio", "blank_penalty", "carries_source_states"),
    *("max_length_offset", "max_position_embeddings", "dropout", "attention_dropout", "pad_token_id", "eos_token_id"),
    *("unk_token_id", "is_encoder_decoder", "source_language", "target_language"),
}
_GENERATION_VALUES: dict[str, tuple[Any, ...]] = {
    "pad_token_id": (0,),
    "eos_token_id": (1,),
    "use_cache": (True, False),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_confidences"), (None, False)),
}
_GENERATION_FIELDS = {"num_refinement_steps", "remove_repetitions", "max_length"}
_TOKENIZER_VALUES: dict[str, tuple[Any, ...]] = {
    "auto_map": (TOKENIZER_AUTO_MAP,),
    "backend": ("tokenizers",),
    "clean_up_tokenization_spaces": (False,),
    "extra_special_tokens": ({}, []),
    "is_local": (True, False),
    "local_files_only": (True, False),
    "model_input_names": (["input_ids", "attention_mask"],),
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "split_special_tokens": (True,),
    "tokenizer_class": ("LvnarTokenizer",),
    **{name: (token,) for name, token in zip(("pad_token", "eos_token", "unk_token"), SPECIAL_TOKENS, strict=True)},
}
_TOKENIZER_FIELDS = {
    *("model_max_length", "source_segmenter", "target_segmenter", "source_language", "target_language", "kytea_model"),
    "joint",
}
# What transformers would read too.
_OTHER_TOKENIZER_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer.model")


class _UnusualError(ValueError):
    """A folder is not plain enough."""


def _read_plain(file: Path, values: Mapping[str, tuple[Any, ...]], others: set[str]) -> dict[str, Any]:
    """The fields of a JSON file, if each has one of these values or one of these names.

    Raises:
        OSError, ValueError: there is no such file, or it is not plain.
    """
    fields = read_json_object(file)
    for name, value in fields.items():
        if name in values:
            is_plain = any(type(value) is type(one) and value == one for one in values[name])
        else:
            is_plain = name in others or (name == "transformers_version" and isinstance(value, str))
        if not is_plain:
            raise _UnusualError(f"{file}: {name}")
    return fields


class LightTokenizer(SubwordsMixin):
    """What a `LineTranslator` asks a tokenizer for.

    Args:
        folder: of the model.

    Raises:
        OSError, ValueError: a file is missing, is not plain, or is damaged.
    """

    all_special_ids = list(range(len(SPECIAL_TOKENS)))
    split_special_tokens = True

    def __init__(self, folder: Path):
        fields = _read_plain(folder / "tokenizer_config.json", _TOKENIZER_VALUES, _TOKENIZER_FIELDS)
        if any((folder / name).exists() for name in _OTHER_TOKENIZER_FILES):
            raise _UnusualError(f"{folder}: tokens from further files")
        if type(fields.get("model_max_length")) is not int:
            raise _UnusualError("model_max_length")
        self._lock = Lock()
        self.source_language, target_language = fields.get("source_language"), fields.get("target_language")
        kytea_model = fields.get("kytea_model")
        of_sides = (("source_segmenter", self.source_language), ("target_segmenter", target_language))
        self._source_segmenter, self._target_segmenter = (
            make_segmenter(fields.get(name, "none"), language, kytea_model, str(folder)) for name, language in of_sides
        )
        self._source_tokenizer = self._target_tokenizer = _load_vocabulary(folder / "tokenizer.json", "source")
        target_file = folder / "target_tokenizer.json"
        check_joint(fields.get("joint"), not target_file.exists())
        if target_file.exists():
            self._target_tokenizer = _load_vocabulary(target_file, "target")
        words_file = folder / TRANSLATED_WORDS_FILE
        self.translated_words = read_translated_words(words_file) if words_file.exists() else None

    def __call__(
        self, texts: str | Sequence[str], truncation: bool = False, max_length: int | None = None, verbose: bool = True
    ) -> dict[str, Any]:
        """The `input_ids` of a text, or of several; cut to `max_length` if `truncation` is asked for."""
        encoded = self.encode_texts([texts] if isinstance(texts, str) else list(texts))
        if truncation and max_length is not None:
            encoded = [ids[: max_length - 1] + ids[-1:] if len(ids) > max_length else ids for ids in encoded]
        return {"input_ids": encoded[0] if isinstance(texts, str) else encoded}

    def tokenize(self, text: str) -> list[str]:
        """The subwords of a text."""
        return [str(self._source_tokenizer.id_to_token(number)) for number in self.encode_texts([text])[0][:-1]]

    def batch_decode(self, sequences: Sequence[list[int]], skip_special_tokens: bool = True) -> list[str]:
        """The texts of translations."""
        return [self._join_subwords(ids, skip_special_tokens) for ids in sequences]


def _load_vocabulary(file: Path, side: str) -> Tokenizer:
    fields = check_vocabulary_file(file)
    if fields.get("padding") is not None or fields.get("truncation") is not None:
        raise _UnusualError(f"{file}: padding or truncation")
    try:
        backend = Tokenizer.from_file(str(file))
        backend.decode(backend.encode("a").ids)
    except BaseException as error:
        # The tokenizers library raises Exception itself, or panics, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{file} is unsound: {error}") from error
    check_special_tokens(backend, side)
    if has_added_tokens(backend):
        raise _UnusualError(f"{file}: added tokens")
    return backend


@dataclass(frozen=True)
class LightModel:
    """A graph with what it is asked for when no option is given.

    Attributes:
        config: has the fields of `LvnarConfig`.
        options: as the model's own generation_config.json has them, with what a search is asked for.
        search: for that.
    """

    config: Any
    options: DecodingOptions
    graph: Graph
    search: GraphSearch | None = None


class LightTranslator(LineTranslator):
    """Translates lines by a `LightModel` and a `LightTokenizer`."""

    def _generate(self, source_ids: list[list[int]]) -> tuple[list[list[int]], int]:
        model, num_steps = self.model, int(self.num_refinement_steps or 0)
        lengths = np.array(list(map(len, source_ids)))
        attention_mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        input_ids = np.full(attention_mask.shape, model.config.pad_token_id, dtype=np.int64)
        input_ids[attention_mask == 1] = np.concatenate(source_ids)
        if model.search is not None:
            options = replace(model.options, num_refinement_steps=num_steps)
            found, steps_taken = model.search.translate(input_ids, attention_mask, options)
            rows = [of_sentence.rows[0] for of_sentence in found]
        else:
            output = model.graph.translate(input_ids, attention_mask, num_steps, model.options.max_length)
            rows = [row[row != model.config.pad_token_id].tolist() for row in output.rows]
            steps_taken = output.num_steps_taken
        if model.options.remove_repetitions:
            found = map(self.tokenizer.find_repetitions, rows, source_ids)
            rows = [
                [i for i, is_one in zip(*pair, strict=True) if not is_one] for pair in zip(rows, found, strict=True)
            ]
        return rows, num_steps * len(rows) if num_steps < 2 else int(steps_taken.sum())


def load_light_translator(
    name: str,
    engine: str,
    num_refinement_steps: int | None,
    max_batch_tokens: int,
    device: str,
    preserve_format: bool,
    search: Mapping[str, Any] | None,
    *,
    num_threads: int,
    with_fingerprint: bool = True,
) -> LightTranslator | None:
    """The translator of `load_translator` without torch, if it can be had; None says that only that one has it.

    Args:
        name, engine, num_refinement_steps, max_batch_tokens, device, preserve_format, search: as there.
        num_threads: of ONNX Runtime.
        with_fingerprint: find it, which reads all files.
    """
    engine = "onnx-int8" if engine == "auto" else engine
    folder = Path(name)
    asked = {option: value for option, value in (search or {}).items() if value is not None}
    if engine not in ONNX_ENGINES or device != "cpu" or not folder.is_dir() or max_batch_tokens < 1:
        return None
    if asked and not is_for_graphs(asked):
        return None
    try:
        model = _load_model(folder, num_threads, **ONNX_ENGINES[engine], search=asked)
        if num_refinement_steps is None:
            num_refinement_steps = stored_refinement_steps(model.config, model.options)
        DecodingOptions(num_refinement_steps=num_refinement_steps, remove_repetitions=False)
        tokenizer = LightTokenizer(folder)
        sizes = tokenizer.source_vocab_size, tokenizer.target_vocab_size
        if sizes[0] > model.config.vocab_size or sizes[1] > model.config.decoder_vocab_size:
            return None
        text_format = text_format_for(model.config, tokenizer) if preserve_format else None
        folders = [folder, *([Path(asked["rescorer"])] if "rescorer" in asked else [])]
        states = [folder_state(one, with_graphs=True) for one in folders if with_fingerprint]
    except (ImportError, OSError, RecursionError, TypeError, ValueError, AttributeError):
        return None  # transformers' way has the message, or can do it
    return LightTranslator(
        engine, model, tokenizer, "".join(states), num_refinement_steps, max_batch_tokens, text_format
    )


def _load_model(
    folder: Path, num_threads: int, precision: str, shortlist: bool = False, search: Mapping[str, Any] | None = None
) -> LightModel:
    fields = _read_plain(folder / "config.json", _CONFIG_VALUES, _CONFIG_FIELDS)
    config = SimpleNamespace(**fields)
    check_sizes(config)
    config.decoder_vocab_size = config.vocab_size if config.target_vocab_size is None else config.target_vocab_size
    own = _read_plain(folder / "generation_config.json", _GENERATION_VALUES, _GENERATION_FIELDS)
    own = GENERATION_DEFAULTS[config.alignment] | {name: own[name] for name in OWN_OPTIONS if name in own}
    options = DecodingOptions(**own)
    if options.max_length is None or options.remove_repetitions == "tokens":
        raise _UnusualError("generation_config.json")
    file = folder / FILES[precision]
    if not file.is_file():
        raise FileNotFoundError(file)
    tried = None
    if shortlist:
        tried = load_tried_tokens(folder / SHORTLIST_FILE, config)
        refuse_stale_shortlist(folder / SHORTLIST_FILE, folder)
    graph = Graph(config, file, num_threads, tried)
    refuse_stale(file, graph.made_from, folder, f"lvnar export --model {folder} --overwrite")
    if not search:
        return LightModel(config, options, graph)
    cells_file = folder / CELL_FILES[precision]
    if not cells_file.is_file():
        raise FileNotFoundError(cells_file)
    graph_search = GraphSearch(graph, cells_file, num_threads)
    refuse_stale(cells_file, graph_search.sessions.made_from, folder, f"lvnar export --model {folder} --search")
    options.search = SearchOptions(**load_search(search, precision=precision, num_threads=num_threads))
    options.search.check(config)
    return LightModel(config, options, graph, graph_search)
