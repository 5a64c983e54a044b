"""A recipe: one YAML file that describes an experiment, in the sections data, tokenizer, model and training.

Each entry script reads the sections it needs; a flag on the command line goes before the file.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        default=500, metadata={"help": "validation sentences translated each epoch with 0 and 1 steps; 0: none"}
    )


def parse_recipe(sections: dict[str, type], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Read `--config recipe.yaml` and flags into one dataclass instance a section.

    Args:
        sections: section name to dataclass, in the order of the result.
        argv: command line; by default that of the process.

    Raises:
        ValueError: for a recipe that is no mapping of sections, or a key that its section does not have.
    """
    parser = HfArgumentParser(list(sections.values()), allow_abbrev=False)
    parser.add_argument("--config", help="recipe (YAML) with the sections " + ", ".join(sections))
    argv = sys.argv[1:] if argv is None else argv
    given = parser.parse_args(argv)
    if given.config is not None:
        recipe = yaml.safe_load(Path(given.config).read_text(encoding="utf-8"))
        if not isinstance(recipe, dict) or not all(isinstance(section, dict) for section in recipe.values()):
            raise ValueError(f"{given.config} must hold sections of keys and values: {', '.join(sections)}.")
        for name, arguments_class in sections.items():
            known = {f.name for f in dataclasses.fields(arguments_class)}
            unknown = sorted(set(recipe.get(name, {})) - known)
            if unknown:
                raise ValueError(f"{given.config}, section {name}: unknown {unknown}; known are {sorted(known)}.")
            parser.set_defaults(**recipe.get(name, {}))
    *results, _ = parser.parse_args_into_dataclasses(argv)
    return tuple(results)
