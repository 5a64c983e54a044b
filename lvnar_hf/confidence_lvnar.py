"""How sure the model is of what it says: of each token, word and sentence; and the curves that make shares of it.

A token's probability is that of what was chosen at its position. With alignment "ctc" a token y_j is said by a run of
cells R_j, those of the likeliest alignment, and

    P(y_j) = max_{t ∈ R_j} p(a_t = y_j | x, μ)

with the blank penalty and without ids that are no words, as decoding has it. (Against the mean and the geometric mean
over the run, "at least one of them", and others, it tells right words from wrong ones best on Tatoeba's validation
set.) A word's probability is the product of its subwords' (`words_lvnar`); a sentence's the mean of its tokens'.

None of these is the share of what is right. `Calibration` has two monotone curves, made on a validation set, that take
them to it: of words, and of the share of right words in a sentence. It stands beside the weights as `calibration.json`;
`training/calibrate.py`, in a checkout of the project, makes it.

This module travels to the Hub with the model: it imports nothing but torch, transformers and the standard library.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import is_kept, likeliest_alignment
from .losses_lvnar import IGNORED_LABEL
from .soundness_lvnar import read_json_object

FILE = "calibration.json"
MAX_BREAKPOINTS = 10_000
_WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def token_probabilities(
    config: LvnarConfig,
    logits: torch.Tensor,
    targets: torch.Tensor,
    target_mask: torch.Tensor,
    num_target_ids: int | None = None,
) -> torch.Tensor:
    """The probability of each token of a translation, as the module says: (batch, length) float32, 0 at padding.

    Args:
        logits: (batch, target_length, decoder_vocab_size); with alignment "ctc" of the cells.
        targets: (batch, length) translations; with "ctc", any that the cells can spell.
        target_mask: (batch, target_length).
        num_target_ids: of the vocabulary; spare rows after them are no words. None: all rows are.
    """
    padding = config.pad_token_id
    logits = logits[..., :num_target_ids]
    is_token = targets != padding
    # A sentence at a time: a copy of all logits would take as much memory as they do.
    word_normalizers = torch.stack([_without(row, padding).float().logsumexp(-1) for row in logits])
    if config.alignment == "length":
        chosen = logits.gather(-1, targets[..., None])[..., 0].float()
        return (chosen - word_normalizers).exp().masked_fill(~is_token, 0.0)
    labels = targets.masked_fill(~is_token, IGNORED_LABEL)
    cells = likeliest_alignment(logits, labels, target_mask, padding, config.blank_penalty)
    normalizers = torch.logaddexp(word_normalizers, logits[..., padding].float() - config.blank_penalty)
    cell_probabilities = (logits.gather(-1, cells[..., None])[..., 0].float() - normalizers).exp()
    numbers = is_kept(cells, target_mask, padding).long().cumsum(-1) - 1  # which token a cell belongs to
    last = targets.shape[1]  # a column, cut off, for blanks
    numbers = numbers.masked_fill((cells == padding) | (target_mask == 0), last)
    probabilities = logits.new_zeros((len(logits), last + 1), dtype=torch.float32)
    return probabilities.scatter_reduce(1, numbers, cell_probabilities, "amax")[:, :last].masked_fill(~is_token, 0.0)


def _without(logits: torch.Tensor, padding: int) -> torch.Tensor:
    """Logits (length, vocabulary) of words alone."""
    if padding == 0:  # as the tokenizers here have it
        return logits[:, 1:]
    return logits.index_fill(-1, torch.tensor([padding], device=logits.device), float("-inf"))


def sentence_probabilities(probabilities: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """The mean over a sentence's tokens: (batch, length) to (batch,)."""
    return (probabilities * is_token).sum(-1) / is_token.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class Curve:
    """A monotone curve through breakpoints, straight between them and level outside.

    Attributes:
        scores: strictly rising.
        confidences: as many, in [0, 1], not falling.
    """

    scores: tuple[float, ...]
    confidences: tuple[float, ...]

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The confidence of each score, of any shape."""
        given = scores.double()
        xs, ys = (torch.tensor(side, dtype=torch.float64, device=scores.device) for side in self._sides())
        right = torch.searchsorted(xs, given.contiguous()).clamp(1, len(xs) - 1)
        share = ((given - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0.0, 1.0)
        return (ys[right - 1] + share * (ys[right] - ys[right - 1])).float()

    def _sides(self) -> tuple[Sequence[float], Sequence[float]]:
        if len(self.scores) > 1:
            return self.scores, self.confidences
        return (*self.scores, self.scores[0] + 1.0), self.confidences * 2

    @classmethod
    def parse(cls, value: Any, where: str) -> "Curve":
        """From a JSON.

        Raises:
            ValueError: it is no such curve, or has more than MAX_BREAKPOINTS; begins with `where`.
        """
        if not isinstance(value, dict) or value.keys() != {"scores", "confidences"}:
            raise ValueError(f"{where} must have scores and confidences, and nothing else.")
        sides = {name: value[name] for name in ("scores", "confidences")}
        for name, numbers in sides.items():
            if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_BREAKPOINTS:
                raise ValueError(f"{where}: {name} must be a list of 1 to {MAX_BREAKPOINTS:,} numbers.")
            if any(type(number) not in (int, float) or not abs(number) < 1e9 for number in numbers):
                raise ValueError(f"{where}: {name} must be finite numbers.")
        scores, confidences = map(list, sides.values())
        if len(scores) != len(confidences):
            raise ValueError(f"{where} has {len(scores)} scores and {len(confidences)} confidences.")
        if any(right <= left for left, right in itertools.pairwise(scores)):
            raise ValueError(f"{where}: scores must rise.")
        if confidences != sorted(confidences) or not 0 <= confidences[0] <= confidences[-1] <= 1:
            raise ValueError(f"{where}: confidences must lie between 0 and 1, and not fall.")
        return cls(tuple(map(float, scores)), tuple(map(float, confidences)))


@dataclass(frozen=True)
class Calibration:
    """What a model's own probabilities are worth.

    Attributes:
        words: from a word's probability to the share of such words that are right.
        sentences: from a sentence's probability to the share of right words in such sentences.
        threshold: a word with less confidence is uncertain.
        weights_fingerprint: of the weights that it was made with.
    """

    words: Curve
    sentences: Curve
    threshold: float
    weights_fingerprint: str | None = None

    @classmethod
    def load(cls, file: str | Path) -> "Calibration":
        """From its file.

        Raises:
            ValueError: it is unsound; names the file and the field.
        """
        fields = read_json_object(file)
        names = {"words", "sentences", "threshold", "weights_fingerprint"}
        if fields.keys() != names:
            raise ValueError(f"{file} must have the fields {', '.join(sorted(names))}; it has {', '.join(fields)}.")
        threshold, fingerprint = fields["threshold"], fields["weights_fingerprint"]
        if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
            raise ValueError(f"{file}: threshold is {threshold!r}; it must be a number from 0 to 1.")
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise ValueError(f"{file}: weights_fingerprint is {fingerprint!r}; it must be a text.")
        curves = [Curve.parse(fields[name], f"{file}: {name}") for name in ("words", "sentences")]
        return cls(curves[0], curves[1], float(threshold), fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """What its file holds."""
        curves = {"words": self.words, "sentences": self.sentences}
        fields: dict[str, Any] = {
            name: {"scores": list(curve.scores), "confidences": list(curve.confidences)}
            for name, curve in curves.items()
        }
        return {**fields, "threshold": self.threshold, "weights_fingerprint": self.weights_fingerprint}

    @classmethod
    def find(cls, name: Any, commit: str | None, where: Mapping[str, Any]) -> "Calibration | None":
        """That of a model folder or a repository of the Hub; None if it has none.

        Args:
            commit: of the Hub, that the weights are of.
            where: arguments of transformers' `from_pretrained`; what says nothing of the place is left out.

        Raises:
            ValueError: as `load`.
        """
        if not isinstance(name, (str, os.PathLike)):
            return None
        where = {key: value for key, value in where.items() if key in _WHERE and value is not None}
        if commit is not None:
            where["revision"] = commit
        if Path(name).is_dir():
            file = Path(name, where.get("subfolder", ""), FILE)
            return cls.load(file) if file.is_file() else None
        try:
            found = cached_file(str(name), FILE, _raise_exceptions_for_missing_entries=False, **where)
        except OSError:  # no Hub, or a cache that may not be written: the model does without
            return None
        return None if found is None else cls.load(found)
