"""The systems that are compared: each described by what a process needs in order to build it."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lvnar_hf.engines.graph import FILES as ONNX_FILES
from training.distillation.teacher import end_ids

REFINEMENT_STEPS = (0, 1, 3)
NUM_BEAMS = (1, 3)
CTRANSLATE2_TYPES = ("float32", "int8")
SHORTLIST_ENGINE = "onnx int8 shortlist"
ONNX_SEARCH_ENGINE = "onnx int8 search"
RESCORER_FOLDER = "rescorer"  # in the folder of the graphs
VOCABULARY_MAP_ENGINE = "ctranslate2 int8 vmap"
COMPILED_ENGINE = "compiled"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class SystemSpec:
    """What a process needs in order to build a system.

    Attributes:
        name: as in the tables; each system has its own.
        family: "lvnar" or "autoregressive".
        model: what the weights are, for example "marian 12-1".
        engine: a key of `ENGINES`, with the number type behind it where the engine has several: the rows of one plot.
        folder: the model, in the engine's format.
        setting: refinement steps, or beams.
        search: further arguments of this model's `generate`, the rescorer by its folder; see `SearchOptions`.
        max_target_length: tokens at which an autoregressive translation is cut, `</s>` included.
        end_ids: what ends an autoregressive translation.
        forbidden: sequences of ids that an autoregressive translation must not have (`bad_words_ids`).
        remove_repetitions: as in `generate`; None: as the model's generation config says.
        tokenizer_folder: for texts; None where there are none.
        device, dtype, num_threads: of torch; CTranslate2's number type is its own.
    """

    name: str
    family: str
    model: str
    engine: str
    folder: str
    setting: int
    max_target_length: int = 0
    end_ids: tuple[int, ...] = ()
    forbidden: tuple[tuple[int, ...], ...] = ()
    search: tuple[tuple[str, Any], ...] = ()
    remove_repetitions: bool | None = None
    tokenizer_folder: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 1

    @property
    def process(self) -> str:
        """The name of its process: its own, but that what takes a minute to compile is compiled once."""
        return self.engine if self.engine == COMPILED_ENGINE else self.name


def lvnar_specs(
    folder: str, exported: str, device: str = "cpu", has_shortlist: bool = False, **common: Any
) -> list[SystemSpec]:
    """This model in every engine the package has, with each number of refinement steps.

    Args:
        folder: the model.
        exported: a folder with its configuration and ONNX graphs, or where they will be.
        device: ONNX Runtime is for the CPU alone, what is compiled for CUDA.
        has_shortlist: whether there is, or will be, a shortlist in that folder.
    """
    folders = {"eager": folder}
    if device != "cpu":
        folders[COMPILED_ENGINE] = folder
    else:
        folders |= {f"onnx {precision}": exported for precision in ONNX_FILES}
        folders |= {SHORTLIST_ENGINE: exported} if has_shortlist else {}
    return [
        _own_spec(f"{engine}, {steps} step{'s' * (steps != 1)}", engine, place, steps, device=device, **common)
        for engine, place in folders.items()
        for steps in REFINEMENT_STEPS
    ]


def _own_spec(name: str, engine: str, folder: str, num_steps: int, **others: Any) -> SystemSpec:
    return SystemSpec(f"lvnar, {name}", "lvnar", "lvnar", engine, folder, num_steps, **others)


def search_specs(
    folder: str, rescorer: str | None, is_ctc: bool, exported: Path, device: str = "cpu", **common: Any
) -> list[SystemSpec]:
    """This model with a search among candidates: in PyTorch after one step, in ONNX Runtime without a step.

    Args:
        folder: the model.
        rescorer: an autoregressive model of the same vocabulary, or None.
        is_ctc: whether it has cells, for a beam search.
        exported: a folder with its graphs, and with the rescorer's in `RESCORER_FOLDER`; or where they will be.
        device: ONNX Runtime is for the CPU alone.
    """
    searches: dict[str, dict[str, Any]] = {"16 latents": {"num_latent_candidates": 16, "latent_noise_scale": 1.0}}
    if is_ctc:
        searches["beam 20"] = {"beam_size": 20}
    if rescorer is not None:
        searches["16 latents, rescored"] = {**searches["16 latents"], "rescorer": rescorer}
        searches |= {"beam 8, rescored": {"beam_size": 8, "rescorer": rescorer}} if is_ctc else {}
    ways = [("eager, 1 step", "eager search", folder, 1, searches)]
    if is_ctc and device == "cpu":
        beams: dict[str, dict[str, Any]] = {"beam 8": {"beam_size": 8}}
        if rescorer is not None:
            place = str(exported / RESCORER_FOLDER)
            beams |= {f"beam {n}, rescored": {"beam_size": n, "rescorer": place} for n in (2, 4, 8, 16)}
        ways.append(("onnx int8, 0 steps", ONNX_SEARCH_ENGINE, str(exported), 0, beams))
    return [
        _own_spec(f"{way}, {name}", engine, place, num_steps, search=tuple(search.items()), device=device, **common)
        for way, engine, place, num_steps, of_way in ways
        for name, search in of_way.items()
    ]


def marian_name(model: PreTrainedModel) -> str:
    """For example "marian 12-1": encoder and decoder layers."""
    return f"{model.config.model_type} {model.config.encoder_layers}-{model.config.decoder_layers}"


def marian_specs(
    folder: str, converted: Path, model: PreTrainedModel, has_shortlist: bool = False, **common: Any
) -> list[SystemSpec]:
    """An autoregressive model in every engine, greedy and with three beams.

    Args:
        folder: the model.
        converted: where its conversions to CTranslate2 are, or will be, by number type.
        model: the same model, for its number of layers and its limits.
        has_shortlist: whether there is one of its vocabulary.
    """
    name = marian_name(model)
    engines = [f"ctranslate2 {kind}" for kind in CTRANSLATE2_TYPES] + [VOCABULARY_MAP_ENGINE] * has_shortlist
    folders = {"transformers": folder} | {engine: str(converted / engine) for engine in engines}
    return [
        SystemSpec(
            name=f"{name}, {engine}, beam {num_beams}",
            family="autoregressive",
            model=name,
            engine=engine,
            folder=engine_folder,
            setting=num_beams,
            max_target_length=model.config.max_position_embeddings,
            forbidden=tuple(map(tuple, getattr(model.generation_config, "bad_words_ids", None) or [])),
            end_ids=tuple(sorted(end_ids(model.generation_config))),
            **common,
        )
        for engine, engine_folder in folders.items()
        for num_beams in NUM_BEAMS
    ]


def select_systems(specs: Sequence[SystemSpec], parts: Sequence[str]) -> list[SystemSpec]:
    """The systems whose name has one of the given parts; all, if none is given.

    Raises:
        ValueError: no system has any of them, or two systems have one name.
        ImportError: CTranslate2 or a package of ONNX is missing, and a system needs it.
    """
    names = [spec.name for spec in specs]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two systems have the name {duplicates[0]}: give teachers of different sizes, or one.")
    chosen = [spec for spec in specs if not parts or any(part in spec.name for part in parts)]
    if not chosen:
        raise ValueError(f"No system has {' or '.join(map(repr, parts))} in its name; there are: {'; '.join(names)}.")
    needs_onnx = any(spec.engine.startswith("onnx") for spec in chosen)
    if needs_onnx and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise ImportError(
            f"{', '.join(missing)} is not installed: pip install 'lvnar-hf[export]'. To go without: --systems eager "
            "transformers ctranslate2"
        )
    needs_ctranslate2 = any(spec.engine.startswith("ctranslate2") for spec in chosen)
    if needs_ctranslate2 and importlib.util.find_spec("ctranslate2") is None:
        raise ImportError(
            "CTranslate2 is not installed: pip install 'lvnar-hf[distil]'. To go without it: "
            "--systems lvnar transformers"
        )
    return chosen
