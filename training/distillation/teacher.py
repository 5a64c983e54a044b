"""A teacher: a sequence-to-sequence model of transformers, its tokenizer, and what identifies both."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import lvnar_hf  # noqa: F401  (registers the tokenizer)
from lvnar_hf.files.fingerprints import folder_fingerprint
from lvnar_hf.files.outputs import refuse_missing_folder
from lvnar_hf.loading import load_model, load_tokenizer


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


def load_teacher(name: str, revision: str | None = None) -> Teacher:
    """Model (float32, in evaluation mode), tokenizer and fingerprint.

    Raises:
        OSError: no such model; of one that is not local, as transformers says it.
    """
    refuse_missing_folder(name)
    # Only what is given: transformers 4.57 knows no revision None.
    where = {} if revision is None else {"revision": revision}
    model = load_model(name, dtype=torch.float32, **where).eval()
    tokenizer = load_tokenizer(name, **where)
    commit = getattr(model.config, "_commit_hash", None)
    fingerprint = folder_fingerprint(Path(name)) if Path(name).is_dir() else str(commit)
    return Teacher(name, model, tokenizer, fingerprint)


def end_ids(config: GenerationConfig) -> set[int]:
    """The ids that end a translation."""
    return set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
