"""What a model folder holds: its architecture, its files, and whether each engine would run."""

import contextlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open

from lvnar_hf.decoding_options_lvnar import GENERATION_DEFAULTS
from lvnar_hf.engines import ENGINES, ONNX_ENGINES
from lvnar_hf.engines.compiled import LvnarCompiledModel
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.outputs import refuse_missing_folder
from lvnar_hf.hub.checks import list_files, read_config, read_generation_config, weight_files


def describe_model(name: str) -> dict[str, str]:
    """What a model is, for its user to read: a line under each name.

    Those of the engines and of the shortlist say "ready", or why not: no graph, one of other weights, and the like.

    Args:
        name: model folder, or Hub id, which is downloaded.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no model of this package.
    """
    is_folder = Path(refuse_missing_folder(name)).is_dir()
    folder = Path(name) if is_folder else Path(snapshot_download(name))
    config = read_config(folder)
    generation_config = read_generation_config(folder, config)
    languages = (language or "?" for language in (config.source_language, config.target_language))
    alignment = config.alignment
    if alignment == "ctc":
        alignment += f", {config.upsampling_ratio:g} cells a source token"
    target_vocab_size = config.target_vocab_size
    vocabulary = f"{config.vocab_size:,} source, {target_vocab_size or 0:,} target"
    described = {
        "model": name,
        "languages": " → ".join(languages),
        "alignment": alignment,
        "refinement steps": str(
            generation_config.get("num_refinement_steps", GENERATION_DEFAULTS[config.alignment]["num_refinement_steps"])
        ),
        "vocabulary": vocabulary if target_vocab_size else f"{config.vocab_size:,}, joint",
        "layers": f"prior {config.num_prior_layers}, posterior {config.num_posterior_encoder_layers} + "
        f"{config.num_posterior_decoder_layers}, decoder {config.num_decoder_layers}",
        "sizes": f"hidden {config.hidden_size}, intermediate {config.intermediate_size}, "
        f"{config.num_attention_heads} heads, latent {config.latent_dim}",
        "longest text": f"{config.max_position_embeddings} tokens",
    }
    with contextlib.suppress(FileNotFoundError):  # the graphs need no weights beside them
        described["parameters"] = _describe_weights(folder)
    described |= {file: f"{(folder / file).stat().st_size:,} bytes" for file in list_files(folder)}
    described |= {f"engine {engine}": _state(partial(_load, engine, folder)) for engine in ENGINES[1:]}
    if config.alignment == "ctc":
        for engine in ("onnx", "onnx-int8"):
            described[f"search {engine}"] = _state(partial(_load, engine, folder, search=True))
    return described | {"shortlist": _state(partial(Shortlist.from_pretrained, folder, config))}


def _describe_weights(folder: Path) -> str:
    """Their number and types, from the heads of the files."""
    count, types = 0, set()
    for name in weight_files(folder):
        with safe_open(folder / name, "pt") as stored:
            for weight in map(stored.get_slice, stored.keys()):
                count += math.prod(weight.get_shape())
                types.add(weight.get_dtype())
    return f"{count:,} in {', '.join(sorted(types))}"


def _load(engine: str, folder: Path, search: bool = False) -> None:
    """Fail as the engine would."""
    if engine in ONNX_ENGINES:
        LvnarOnnxModel.from_pretrained(folder, **ONNX_ENGINES[engine], search=search)
    else:
        weight_files(folder)
    if engine == "compiled":
        LvnarCompiledModel.check_device("cuda")


def _state(load: Callable[[], Any]) -> str:
    """What loading says: "ready", with its warnings, or the error."""
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            load()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return f"not ready: {error}"
    told = [str(warning.message) for warning in warned if issubclass(warning.category, UserWarning)]
    return "; ".join(["ready", *told])
