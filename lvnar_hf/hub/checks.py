"""What a model repository must hold, read from its files alone: none of its code runs here, and nothing is unpickled.

What is unusual: the shapes that the weights must have come from a model built without memory (torch's meta device), and
the code beside the weights must be this package's own modules, byte for byte. So a repository that passes may be loaded
with `trust_remote_code=True` as safely as with the package.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from lvnar_hf.configuration_lvnar import CUSTOM_PIPELINES, LvnarConfig
from lvnar_hf.engines.onnx_export import FILES as ONNX_FILES
from lvnar_hf.engines.shortlist import FILE as SHORTLIST_FILE
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.generation_lvnar import GENERATION_DEFAULTS, DecodingOptions
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration, is_finite
from lvnar_hf.soundness_lvnar import check_generation_fields, read_json_object
from lvnar_hf.tokenization_lvnar import LvnarTokenizer

# The modules that a user needs who has not the package, all of them flat beside the weights.
TRAVELLING_MODULES = (
    "configuration_lvnar.py",
    "ctc_lvnar.py",
    "generation_lvnar.py",
    "inputs_lvnar.py",
    "layers_lvnar.py",
    "length_lvnar.py",
    "losses_lvnar.py",
    "modeling_lvnar.py",
    "parts_lvnar.py",
    "pipeline_lvnar.py",
    "refinement_lvnar.py",
    "repetitions_lvnar.py",
    "segmentation_lvnar.py",
    "sentences_lvnar.py",
    "soundness_lvnar.py",
    "text_lvnar.py",
    "tokenization_lvnar.py",
    "vocabulary_lvnar.py",
)
PACKAGE_FOLDER = Path(__file__).parents[1]
# Where transformers looks for the classes; in a tokenizer's entry, the second place is for another kind of tokenizer.
CONFIG_AUTO_MAP = {
    "AutoConfig": "configuration_lvnar.LvnarConfig",
    "AutoModelForSeq2SeqLM": "modeling_lvnar.LvnarForConditionalGeneration",
}
TOKENIZER_AUTO_MAP = {"AutoTokenizer": ["tokenization_lvnar.LvnarTokenizer", None]}
WEIGHTS = "model.safetensors"
SHARDS_INDEX = "model.safetensors.index.json"
REQUIRED_FILES = (
    *("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *TRAVELLING_MODULES,
)
# What Python, torch, Keras and Flax unpickle or may run when it is loaded.
REFUSED_SUFFIXES = (
    ".bin",
    ".ckpt",
    ".h5",
    ".joblib",
    ".keras",
    ".msgpack",
    ".npy",
    ".npz",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
)


def check_repository(folder: str | Path) -> None:
    """Refuse a folder that is no whole, sound repository of this package's model.

    Args:
        folder: with weights, configuration, tokenizer, card and the modules that travel.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: file names that lead elsewhere, formats that are unpickled, code and graphs that are not this
            package's; a configuration with unknown or impossible fields; weights that are missing, unknown, of another
            shape or not finite; a vocabulary that does not match its embedding. Names file and field or tensor.
    """
    folder = Path(folder)
    check_file_names(list_files(folder))
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; `lvnar publish` makes a whole repository.")
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
    """Refuse a model folder whose configuration, weights, tokenizer or shortlist are unsound or do not fit together.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    config = read_config(folder)
    read_generation_config(folder, config)
    check_weights(folder, config)
    check_tokenizer(folder, config)
    if (folder / SHORTLIST_FILE).is_file():
        Shortlist.load(folder / SHORTLIST_FILE, config)


def list_files(folder: Path) -> list[str]:
    """All files under a folder, as a repository names them."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def check_file_names(names: Iterable[str]) -> None:
    """Refuse names in a repository that lead out of it, or whose files are unpickled, or run.

    Raises:
        ValueError: names the file.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
            raise ValueError(f"The file name {name!r} leads out of the repository, or may on some systems.")
        if path.suffix.lower() in REFUSED_SUFFIXES:
            raise ValueError(
                f"{name}: files that are unpickled, or may run code, when they are loaded have no place in the "
                "repository. Store weights with model.save_pretrained(folder), which writes safetensors."
            )
        if path.suffix == ".py" and name not in TRAVELLING_MODULES:
            raise ValueError(f"{name} is no module of this package; code of another origin is refused.")
        if (path.parts[:1] == ("onnx",) or path.suffix == ".onnx") and name not in ONNX_FILES.values():
            raise ValueError(f"{name} is no graph of this package, which has all in {', '.join(ONNX_FILES.values())}.")


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
    weight_map = read_json_object(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_file}: weight_map must name the file of each tensor.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index_file} names the file {name!r}; it must be a safetensors file in the same folder.")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}, which {SHARDS_INDEX} names.")
    return names


def check_weights(folder: Path, config: LvnarConfig) -> None:
    """Refuse weights that are not exactly those of the configuration, in name and shape, or are not finite.

    Raises:
        FileNotFoundError, ValueError: as `check_repository`.
    """
    files: dict[str, str] = {}  # tensor name to file name
    for file_name in weight_files(folder):
        for name in _tensors(folder / file_name):
            if name in files:
                raise ValueError(f"The weight {name} is in {files[name]} and in {file_name}.")
            files[name] = file_name
    num_layers = (
        config.num_prior_layers
        + config.num_posterior_encoder_layers
        + config.num_posterior_decoder_layers
        + config.num_decoder_layers
    )
    if num_layers > len(files):  # before so many are built
        raise ValueError(f"config.json asks for {num_layers} layers; the weights are {len(files)} tensors.")
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in LvnarForConditionalGeneration(config).state_dict().items()}
    missing, unknown = sorted(shapes.keys() - files.keys()), sorted(files.keys() - shapes.keys())
    if missing or unknown:
        raise ValueError(f"{folder}: the weights {missing[:5]} are missing, and {unknown[:5]} are unknown.")
    for file_name in sorted(set(files.values())):
        for name, tensor in _tensors(folder / file_name, shapes).items():
            if not is_finite(tensor):
                raise ValueError(f"{folder / file_name}: the weight {name} has values that are not finite.")


def _tensors(file: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """The tensors of a safetensors file; without `shapes` their names alone, with them refused if they differ."""
    try:
        with safe_open(file, "pt") as stored:
            names = list(stored.keys())
            if shapes is None:
                return dict.fromkeys(names)
            for name in names:
                shape = tuple(stored.get_slice(name).get_shape())
                if shape != shapes[name]:
                    raise ValueError(f"{file}: the weight {name} is {shape}; by config.json it must be {shapes[name]}.")
            return {name: stored.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from error


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
    tokenizer = LvnarTokenizer.from_pretrained(folder)
    if config.target_vocab_size is not None and tokenizer.is_joint:
        raise FileNotFoundError(f"{folder} has no {target_file.name}, and config.json has a target_vocab_size.")
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
