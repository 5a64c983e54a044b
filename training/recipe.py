"""A recipe: one YAML file that describes an experiment, in the sections data, tokenizer, model and training.

Each entry script reads the sections it needs; a flag on the command line goes before the file.
"""

import dataclasses
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from lvnar_hf import LvnarConfig


@dataclass
class DataArguments:
    """Section `data`: line-aligned text files, plain or .gz; several files of one side are read one after another."""

    train_source_files: list[str] = field(default_factory=list, metadata={"help": "training text, source side"})
    train_target_files: list[str] = field(default_factory=list, metadata={"help": "training text, target side"})
    valid_source_files: list[str] = field(default_factory=list, metadata={"help": "validation text, source side"})
    valid_target_files: list[str] = field(default_factory=list, metadata={"help": "validation text, target side"})
    max_sentence_length: int = field(
        default=60, metadata={"help": "longest side of a training pair, in tokens; longer pairs are left out"}
    )


@dataclass
class TokenizerArguments:
    """Section `tokenizer`: how the vocabulary is made; it goes to `tokenizer_folder` of section `model`."""

    vocab_size: int = field(default=8000, metadata={"help": "ids of the joint, or else of the source vocabulary"})
    target_vocab_size: int | None = field(
        default=None, metadata={"help": "ids of the target vocabulary with --joint false; vocab_size if not given"}
    )
    joint: bool = field(default=True, metadata={"help": "one vocabulary for both sides"})
    normalization: str = field(default="nfc", metadata={"help": "Unicode form: nfc, nfkc or none"})
    min_character_count: int = field(default=5, metadata={"help": "rarer characters are spelt in bytes"})
    overwrite: bool = field(default=False, metadata={"help": "write into a tokenizer folder that is not empty"})


@dataclass
class ModelArguments:
    """Section `model`: where the tokenizer is, and the sizes of `LvnarConfig`; the defaults are the paper's."""

    tokenizer_folder: str | None = field(default=None, metadata={"help": "folder of a trained tokenizer"})
    hidden_size: int = field(default=512, metadata={"help": "width of every layer"})
    intermediate_size: int = field(default=2048, metadata={"help": "width of the feed-forward blocks"})
    num_attention_heads: int = field(default=8, metadata={"help": "heads of every attention"})
    num_prior_layers: int = field(default=6, metadata={"help": "prior: layers over the source"})
    num_posterior_encoder_layers: int = field(default=3, metadata={"help": "posterior: layers over the target"})
    num_posterior_decoder_layers: int = field(default=3, metadata={"help": "posterior: layers over the source"})
    num_decoder_layers: int = field(default=3, metadata={"help": "decoder: layers over the target positions"})
    latent_dim: int = field(default=8, metadata={"help": "latent dimensions a source position"})
    max_length_offset: int = field(default=50, metadata={"help": "largest |target length - source length|"})
    max_position_embeddings: int = field(default=512, metadata={"help": "longest source or target in tokens"})
    tie_word_embeddings: bool = field(default=True, metadata={"help": "output projection = target embedding"})
    dropout: float = field(default=0.1, metadata={"help": "dropout probability"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout probability of attention weights"})

    def to_config(self, vocab_size: int, target_vocab_size: int | None) -> LvnarConfig:
        """The model's configuration, for a tokenizer of these sizes."""
        sizes = {k: v for k, v in dataclasses.asdict(self).items() if k != "tokenizer_folder"}
        return LvnarConfig(vocab_size=vocab_size, target_vocab_size=target_vocab_size, **sizes)


@dataclass
class OptimizationArguments:
    """Section `training`: one run."""

    output_folder: str | None = field(default=None, metadata={"help": "checkpoints, best model and log go here"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})
    resume: bool = field(default=False, metadata={"help": "go on with the run in the output folder, if it has begun"})
    save_every_steps: int = field(
        default=0, metadata={"help": "steps between states to resume from; there is one after each epoch in any case"}
    )
    max_steps: int = field(default=100_000, metadata={"help": "M: optimizer steps of the whole run"})
    max_tokens_per_batch: int = field(
        default=8192, metadata={"help": "padded tokens a side in the batch of one process"}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches a process adds up before a step"})
    learning_rate: float = field(default=7e-4, metadata={"help": "peak, reached after the warm-up"})
    warmup_steps: int = field(default=4000, metadata={"help": "steps of linear warm-up; then inverse square root"})
    cooldown_steps: int = field(
        default=0, metadata={"help": "last steps, in which the learning rate also falls to 0 in a line; 0: none"}
    )
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Adam's ε; its betas are 0.9 and 0.98"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm; 0: never"})
    label_smoothing: float = field(default=0.1, metadata={"help": "weight of the uniform distribution"})
    initial_kl_budget: float = field(default=1.0, metadata={"help": "b while s < M/2, nats a source position"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute layers to save memory"})
    seed: int = field(default=1, metadata={"help": "of initial weights, data order, dropout and latent noise"})
    keep_last_checkpoints: int = field(default=3, metadata={"help": "checkpoints kept, one an epoch; best is apart"})
    log_every_steps: int = field(default=50, metadata={"help": "steps between lines of log.jsonl"})
    valid_bleu_sentences: int = field(
        default=500, metadata={"help": "about as many validation sentences are translated each epoch; 0: none"}
    )

    def __post_init__(self) -> None:
        at_least_one = ("max_steps", "max_tokens_per_batch", "gradient_accumulation_steps", "log_every_steps")
        for name, least in (
            *((name, 1) for name in at_least_one),
            ("keep_last_checkpoints", 0),
            ("save_every_steps", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")


# Every section that a recipe may have; a script reads some, and a file is checked against all.
SECTIONS: dict[str, type] = {
    "data": DataArguments,
    "tokenizer": TokenizerArguments,
    "model": ModelArguments,
    "training": OptimizationArguments,
}


def parse_recipe(sections: dict[str, type], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Read `--config recipe.yaml` and flags into one dataclass instance a section.

    Args:
        sections: section name to dataclass, in the order of the result; other sections of the file are checked alone.
        argv: command line; by default that of the process.

    Raises:
        ValueError: for a recipe that is no mapping of sections, a section or key that is unknown, or a value of
            another type than its key's.
    """
    parser = HfArgumentParser(list(sections.values()), allow_abbrev=False)
    parser.add_argument("--config", help="recipe (YAML) with the sections " + ", ".join(sections))
    argv = sys.argv[1:] if argv is None else argv
    given = parser.parse_args(argv)
    if given.config is not None:
        recipe = read_recipe(given.config, {**SECTIONS, **sections})
        for name in sections:
            parser.set_defaults(**recipe.get(name, {}))
    *results, _ = parser.parse_args_into_dataclasses(argv)
    return tuple(results)


def read_recipe(path: str | Path, sections: dict[str, type]) -> dict[str, dict[str, Any]]:
    """The sections of a recipe file, each key and type checked; a key that is not in the file is not in the result.

    Raises:
        ValueError: see `parse_recipe`.
    """
    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    if not isinstance(recipe, dict) or not all(isinstance(section, dict) for section in recipe.values()):
        raise ValueError(f"{path} must hold sections of keys and values: {', '.join(sections)}.")
    if unknown := sorted(map(str, set(recipe) - set(sections))):
        raise ValueError(f"{path}: unknown sections {unknown}; known are {list(sections)}.")
    checked = {}
    for name, section in recipe.items():
        types = get_type_hints(sections[name])
        if unknown := sorted(map(str, set(section) - set(types))):
            raise ValueError(f"{path}, section {name}: unknown keys {unknown}; known are {sorted(types)}.")
        checked[name] = {
            key: _check_type(value, types[key], f"{path}, section {name}: {key}") for key, value in section.items()
        }
    return checked


def _check_type(value: Any, expected: Any, where: str) -> Any:
    """The value, if it is of the type that a field is annotated with; `where` begins the error message."""
    alternatives = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    for alternative in alternatives:
        if get_origin(alternative) is list:
            if isinstance(value, list) and all(isinstance(item, get_args(alternative)) for item in value):
                return value
        elif alternative is float:
            # YAML 1.1 reads 7e-4, without a point, as text.
            if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                with suppress(ValueError):
                    return float(value)
        elif isinstance(value, alternative) and (alternative is bool or not isinstance(value, bool)):
            return value
    names = {str: 'text (in quotes, if YAML takes it for something else, as it does "no" and 1)', int: "a whole number"}
    names |= {float: "a number", bool: "true or false", NoneType: "null", list[str]: "a list of texts, [a, b]"}
    allowed = " or ".join(names.get(alternative, str(alternative)) for alternative in alternatives)
    raise ValueError(f"{where} is {value!r}; it must be {allowed}.")
