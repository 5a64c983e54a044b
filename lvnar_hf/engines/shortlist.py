"""A shortlist: few target tokens for each sentence, tried before the whole vocabulary (Jean et al., 2015, section 4.3).

The projection to the vocabulary is a third of the work of a pass at the paper's sizes. With a shortlist it is computed
for the tokens that are likely translations of the source's, and for the most frequent ones. No token becomes
unreachable: a position where the best of the list has too small a share of the list's own probability is computed with
the whole vocabulary. That is where the likeliest token tends to be one that is not in the list.

`training/shortlist.py`, in a checkout of the project, makes the file, `shortlist.safetensors` in a model repository.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.utils import cached_file

from lvnar_hf.configuration_lvnar import LvnarConfig
from lvnar_hf.engines.tried_tokens import FILE, HOW, TriedTokens, load_tried_tokens, refuse_stale_shortlist
from lvnar_hf.files.fingerprints import KEY as FINGERPRINT
from lvnar_hf.files.fingerprints import folder_weights_fingerprint


@dataclass(frozen=True)
class Shortlist:
    """Which target tokens are tried for a sentence, and when they are enough.

    Attributes:
        candidates: (vocab_size, k) int32, target tokens for each source token; padding where there are fewer.
        frequent: (n,) int32, target tokens that are tried for every sentence.
        min_confidence: () float32, log of the least probability, among the tokens tried, with which the best is taken.
    """

    candidates: torch.Tensor
    frequent: torch.Tensor
    min_confidence: torch.Tensor

    def candidates_of(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, config: LvnarConfig) -> torch.Tensor:
        """As `TriedTokens.candidates_of`, of tensors."""
        # In numpy: torch's threads, which wait for more work for a while, would take the cores from ONNX Runtime's.
        return torch.from_numpy(self.arrays.candidates_of(input_ids.numpy(), attention_mask.numpy(), config))

    @property
    def arrays(self) -> TriedTokens:
        """The same as arrays of numpy, in the same memory."""
        return TriedTokens(self.candidates.numpy(), self.frequent.numpy(), self.min_confidence.numpy())

    @staticmethod
    def is_padding(candidates: torch.Tensor, config: LvnarConfig) -> torch.Tensor:
        """Where `candidates_of` are padding, not blank: (batch, number of them) bool."""
        return (candidates == config.pad_token_id).long().cumsum(-1) > int(config.alignment == "ctc")

    def save(self, folder: str | Path) -> Path:
        """Write the file of a model repository, with the fingerprint of its weights."""
        file = Path(folder) / FILE
        tensors = {"candidates": self.candidates, "frequent": self.frequent, "min_confidence": self.min_confidence}
        weights = folder_weights_fingerprint(folder)
        metadata = None if weights is None else {FINGERPRINT: weights}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(file), metadata)
        return file

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, config: LvnarConfig, **where: object) -> "Shortlist":
        """From a model folder or a repository of the Hub.

        Args:
            config: of the model.
            where: `revision`, `cache_dir`, `token`, `local_files_only`, as in transformers.

        Raises:
            FileNotFoundError: the repository has no shortlist; says how to make it.
            StaleError: it was made for other weights than those that are in the folder.
            ValueError: it is damaged, or is of another model's vocabularies.
        """
        file = cached_file(str(name), FILE, _raise_exceptions_for_missing_entries=False, **where)
        if file is None:
            raise FileNotFoundError(
                f"{name} has no {FILE}. Make it, {HOW}: python training/shortlist.py --config RECIPE --model {name}"
            )
        shortlist = cls.load(file, config)
        refuse_stale_shortlist(file, name)
        return shortlist

    @classmethod
    def load(cls, file: str | Path, config: LvnarConfig) -> "Shortlist":
        """From its file, for a model.

        Raises:
            ValueError: the file is damaged, or is of another model's vocabularies; names it.
        """
        tokens = load_tried_tokens(file, config)
        return cls(*(torch.from_numpy(array) for array in tokens))
