"""What a model repository must hold, read from its files alone: none of its code runs here, and nothing is unpickled.

What is unusual: the shapes that the weights must have come from a model built without memory (torch's meta device), and
the code beside the weights must be this package's own modules, byte for byte. Files and fields pass by lists of those
that are allowed, not of those that are known to be bad: what a later transformers reads is refused here until it is
listed. So a repository that passes may be loaded with `trust_remote_code=True` as safely as with the package.
"""

import inspect
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig

from lvnar_hf.confidence_lvnar import FILE as CALIBRATION_FILE
from lvnar_hf.confidence_lvnar import Calibration
from lvnar_hf.configuration_lvnar import LvnarConfig
from lvnar_hf.decoding_options_lvnar import GENERATION_DEFAULTS, OWN_OPTIONS, DecodingOptions
from lvnar_hf.engines.graph import FILES as ONNX_FILES
from lvnar_hf.engines.search import CELL_FILES
from lvnar_hf.engines.shortlist import FILE as SHORTLIST_FILE
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import refuse_stale
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration
from lvnar_hf.soundness_lvnar import (
    check_generation_fields,
    check_shapes,
    is_finite,
    read_json_object,
    shapes_of,
    stored_shapes,
)
from lvnar_hf.tokenization_lvnar import LvnarTokenizer
from lvnar_hf.trust_lvnar import CONFIG_AUTO_MAP, CUSTOM_PIPELINES, TOKENIZER_AUTO_MAP, shard_names

PACKAGE_FOLDER = Path(__file__).parents[1]
# The modules that a user needs who has not the package, all of them flat beside the weights.
TRAVELLING_MODULES = tuple(sorted(path.name for path in PACKAGE_FOLDER.glob("*_lvnar.py")))
WEIGHTS = "model.safetensors"
SHARDS_INDEX = "model.safetensors.index.json"
REQUIRED_FILES = (
    *("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *TRAVELLING_MODULES,
)
# Those that may be there too, as full names or as patterns; and the KyTea model that tokenizer_config.json names.
_OPTIONAL_FILES = (
    *map(re.escape, (".gitattributes", "LICENSE", SHARDS_INDEX, CALIBRATION_FILE, SHORTLIST_FILE)),
    *map(re.escape, (*ONNX_FILES.values(), *CELL_FILES.values())),
    *map(re.escape, LvnarTokenizer.vocab_files_names.values()),
    r"model(-\d{5}-of-\d{5})?\.safetensors",
    r"results/([\w-][\w.-]*/)*[\w-][\w.-]*\.(csv|json|jsonl|md|png|svg|tsv|txt)",
)
_FILES = re.compile("|".join([*map(re.escape, REQUIRED_FILES), *_OPTIONAL_FILES]))
_KYTEA_ENDING = ".mod"
_CALIBRATE = "python training/calibrate.py --model {} --overwrite, in a checkout of lvnar-hf"

# The fields of the JSON files, as the supported versions of transformers write them.
_CONFIG_FIELDS = {
    *(set(inspect.signature(LvnarConfig.__init__).parameters) - {"self", "kwargs"}),
    *("architectures", "auto_map", "custom_pipelines", "dtype", "model_type", "torch_dtype", "transformers_version"),
}
_GENERATION_FIELDS = {
    *OWN_OPTIONS,
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "use_cache"),
}
_TOKENIZER_FIELDS = {
    *("auto_map", "backend", "clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length"),
    *("model_input_names", "padding_side", "split_special_tokens", "tokenizer_class", "truncation_side"),
    *("bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token"),
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
    *("source_segmenter", "target_segmenter", "source_language", "target_language", "kytea_model"),
    "joint",
}
_ALLOWED_FIELDS = {
    "config.json": _CONFIG_FIELDS,
    "generation_config.json": _GENERATION_FIELDS,
    "tokenizer_config.json": _TOKENIZER_FIELDS,
    SHARDS_INDEX: {"metadata", "weight_map"},
}


def check_repository(folder: str | Path) -> None:
    """Refuse a folder that is no whole, sound repository of this package's model.

    Args:
        folder: with weights, configuration, tokenizer, card and the modules that travel.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: links and file names that lead elsewhere; files and fields that a repository has no place for;
            modules that are not this package's; a configuration with impossible fields; weights that are missing,
            unknown, of another shape or not finite; a vocabulary that does not match its embedding. Names file and
            field or tensor.
    """
    folder = Path(folder)
    refuse_links(folder, list_files(folder))
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; `lvnar publish` makes a whole repository.")
    refuse_unknown(folder)
    for name in TRAVELLING_MODULES:
        if (folder / name).read_bytes() != (PACKAGE_FOLDER / name).read_bytes():
            raise ValueError(f"{folder / name} differs from the module of this package: assemble the repository anew.")
    config_file = folder / "config.json"
    fields = read_json_object(config_file)
    for name, expected in (("auto_map", CONFIG_AUTO_MAP), ("custom_pipelines", CUSTOM_PIPELINES)):
        if fields.get(name) != expected:
            raise ValueError(f"{config_file}: {name} is {fields.get(name)!r}; it must be {expected}.")
    check_model_files(folder)
    tokenizer_map = read_json_object(folder / "tokenizer_config.json").get("auto_map")
    if tokenizer_map != TOKENIZER_AUTO_MAP:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: auto_map is {tokenizer_map!r}; it must be {TOKENIZER_AUTO_MAP}."
        )


def check_model_files(folder: Path) -> None:
    """Refuse a model folder whose parts are unsound or do not fit together, calibration and shortlist too.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    config = read_config(folder)
    read_generation_config(folder, config)
    check_weights(folder, config)
    check_tokenizer(folder, config)
    if (folder / SHORTLIST_FILE).is_file():
        Shortlist.load(folder / SHORTLIST_FILE, config)
    if (folder / CALIBRATION_FILE).is_file():
        calibration = Calibration.load(folder / CALIBRATION_FILE)
        refuse_stale(folder / CALIBRATION_FILE, calibration.weights_fingerprint, folder, _CALIBRATE.format(folder))


def list_files(folder: Path) -> list[str]:
    """All files under a folder, as a repository names them, and links to folders, which a repository has none of."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse files of a folder that are links out of it; and links to folders, pipes and devices.

    The Hub's cache has links in its folder of a commit, to files that are beside it: these stay within the model's.

    Args:
        names: of the files; those that are not there are left to others.

    Raises:
        ValueError: names the file.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        root = root.parents[1]
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{path} is, or lies behind, a link that leaves the folder, to {path.resolve()}: copy it.")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file.")


def check_file_names(names: Iterable[str]) -> None:
    """Refuse names in a repository that lead out of it.

    Raises:
        ValueError: names the file.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
            raise ValueError(f"The file name {name!r} leads out of the repository, or may on some systems.")


def refuse_unknown(folder: Path) -> None:
    """Refuse files that a model repository has no place for, and fields of its JSON files, by name.

    Raises:
        ValueError: names the file, and the field.
    """
    names = list_files(folder)
    check_file_names(names)
    stored_model = read_json_object(folder / "tokenizer_config.json").get("kytea_model")
    for name in names:
        is_kytea_model = name == stored_model and "/" not in name and name.endswith(_KYTEA_ENDING)
        if not _FILES.fullmatch(name) and not is_kytea_model:
            raise ValueError(
                f"{folder / name} has no place in a model repository, which has weights in safetensors, this package's "
                f"modules and graphs, {', '.join(REQUIRED_FILES[:5])}, {CALIBRATION_FILE}, {SHORTLIST_FILE}, a KyTea "
                f"model that ends in {_KYTEA_ENDING}, and text and pictures in results/. Remove it."
            )
    for name, allowed in _ALLOWED_FIELDS.items():
        if name in names and (unknown := sorted(read_json_object(folder / name).keys() - allowed)):
            raise ValueError(
                f"{folder / name}: a model repository has no {', '.join(unknown[:5])} there. Remove it; if the model "
                "is newer than this package, bring the package up to date."
            )


def read_config(folder: Path) -> LvnarConfig:
    """The configuration of a model folder.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    file = folder / "config.json"
    fields = read_json_object(file)
    if fields.get("model_type") != LvnarConfig.model_type:
        raise ValueError(f"{file}: model_type is {fields.get('model_type')!r}; it must be {LvnarConfig.model_type!r}.")
    try:
        config = LvnarConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    if config.dtype is not None and not isinstance(config.dtype, torch.dtype):
        raise ValueError(f"{file}: dtype is {config.dtype!r}; it must be the name of a type of torch.")
    return config


def read_generation_config(folder: Path, config: LvnarConfig) -> dict[str, Any]:
    """The fields of generation_config.json; what they ask of this model is checked again by `generate`.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    file = folder / "generation_config.json"
    fields = check_generation_fields(file, GENERATION_DEFAULTS[config.alignment])
    own = {name: value for name, value in fields.items() if name in DecodingOptions.__dataclass_fields__}
    try:
        DecodingOptions(**{**GENERATION_DEFAULTS[config.alignment], **own})
        GenerationConfig(**fields)
    except Exception as error:  # of many kinds, for a field of the wrong type
        raise ValueError(f"{file}: {error}") from error
    return fields


def weight_files(folder: Path) -> list[str]:
    """The names of the files with weights, one or several.

    Raises:
        FileNotFoundError: there are none in safetensors, or a shard is missing.
        ValueError: the index of the shards is unsound.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    index_file = folder / SHARDS_INDEX
    if not index_file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {WEIGHTS} and no {SHARDS_INDEX}. Weights in another format are not loaded: store them "
            "with model.save_pretrained(folder), which writes safetensors."
        )
    names = shard_names(index_file)
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}, which {SHARDS_INDEX} names.")
    return names


def check_weights(folder: Path, config: LvnarConfig) -> None:
    """Refuse weights that are not exactly those of the configuration, in name and shape, or are not finite.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    files = [folder / name for name in weight_files(folder)]
    shapes = stored_shapes(files)
    stacks = ("prior", "posterior_encoder", "posterior_decoder", "decoder")
    num_layers = sum(getattr(config, f"num_{stack}_layers") for stack in stacks)
    if num_layers > len(shapes):  # before so many are built
        raise ValueError(f"config.json asks for {num_layers} layers; the weights are {len(shapes)} tensors.")
    with torch.device("meta"):
        needed = shapes_of(LvnarForConditionalGeneration(config).state_dict())
    check_shapes(shapes, needed)
    for file in files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  (it is no dictionary)
                if not is_finite(stored.get_tensor(name)):
                    raise ValueError(f"{file}: the weight {name} has values that are not finite.")


def check_tokenizer(folder: Path, config: LvnarConfig) -> None:
    """Refuse a tokenizer that does not load, names files elsewhere, or has not one id for each row of an embedding.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    file = folder / "tokenizer_config.json"
    fields = read_json_object(file)
    if fields.get("tokenizer_class") != LvnarTokenizer.__name__:
        raise ValueError(f"{file}: tokenizer_class is {fields.get('tokenizer_class')!r}; it must be LvnarTokenizer.")
    for name in LvnarTokenizer.vocab_files_names:
        if name in fields:  # some versions of transformers would open it, wherever it is
            raise ValueError(f"{file}: {name} is {fields[name]!r}; a repository's files have fixed names.")
    stored_model = fields.get("kytea_model")
    if stored_model is not None and (
        not isinstance(stored_model, str) or PurePosixPath(stored_model).name != stored_model
    ):
        raise ValueError(f"{file}: kytea_model is {stored_model!r}; it must be a file name, not a path.")
    read_json_object(folder / "tokenizer.json")
    target_file = folder / LvnarTokenizer.vocab_files_names["target_tokenizer_file"]
    if target_file.is_file():
        read_json_object(target_file)
    elif config.target_vocab_size is not None:
        raise FileNotFoundError(f"{folder} has no {target_file.name}, and config.json has a target_vocab_size.")
    tokenizer = LvnarTokenizer.from_pretrained(folder)
    sides = (
        ("source", "vocab_size", config.vocab_size, tokenizer.backend_tokenizer),
        ("target", "target_vocab_size", config.target_vocab_size, tokenizer.target_backend_tokenizer),
    )
    for side, field, size, backend in sides:
        ids = backend.get_vocab().values()
        if size is None:
            size = config.vocab_size
        if max(ids) >= size:
            raise ValueError(
                f"{folder}: the {side} vocabulary has {len(ids)} entries with ids up to {max(ids)}; its embedding has "
                f"{size} rows ({field} of config.json)."
            )
