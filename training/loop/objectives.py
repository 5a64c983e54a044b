"""What is minimised: the ELBO of the latent-variable model, or the likelihood of an autoregressive teacher.

The training loop is the same for both. An objective computes the loss of a batch and sums that can be added up over
batches and processes; it then turns such sums into the figures of the log.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from lvnar_hf.losses_lvnar import IGNORED_LABEL, token_nll

Batch = Mapping[str, torch.Tensor]
Sums = dict[str, torch.Tensor]


class Objective(ABC):
    """Loss and figures of one kind of model; without state.

    Attributes:
        token_means: sums that are given a target token, in nats.
        selection_metrics: the first of these that is among the validation figures marks the best model, by its highest
            value.
        decodings: how validation sentences are translated for BLEU: name of the figure to arguments of `generate`.
    """

    token_means: tuple[str, ...]
    selection_metrics: tuple[str, ...]
    decodings: dict[str, dict[str, Any]]

    @abstractmethod
    def training_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        num_target_tokens: int,
        smoothing: float,
        settings: Mapping[str, float],
    ) -> tuple[torch.Tensor, Sums]:
        """Loss of a batch, divided by the target tokens of the whole step; and the sums of its sentences.

        Args:
            model: in training mode; it may be wrapped by accelerate.
            batch: `input_ids`, `attention_mask` (batch, source_length); `labels` (batch, target_length).
            num_target_tokens: of all batches of the step, in all processes.
            smoothing: weight of the uniform distribution.
            settings: what the step is taken with, of `training.loop.schedules.settings_at`: kl_budget, b of Eq. 9 in
                nats per source position; own_output_share; prior_share; of alignment "ctc", glancing_ratio and
                bigram_weight.
        """

    @abstractmethod
    def validation_sums(self, model: torch.nn.Module, batch: Batch, generator: torch.Generator) -> Sums:
        """The sums of a batch without smoothing and budget; model in evaluation mode."""

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means from sums: nats per target token, and shares."""
        return {name: sums[name] / sums["target_tokens"] for name in self.token_means if name in sums}


def _counts(batch: Batch) -> Sums:
    labels = batch["labels"]
    return {
        "target_tokens": (labels != IGNORED_LABEL).sum(),
        "source_tokens": batch["attention_mask"].sum(),
        "sentences": torch.tensor(len(labels), device=labels.device),
    }


class LvnarObjective(Objective):
    """The negative ELBO with its KL budget (Shu et al., 2020, Eq. 5, 9); without length terms, with alignment ctc."""

    token_means = ("token_nll", "kl", "budgeted_kl", "length_nll", "elbo")
    # The bound of the references falls with the KL budget while translations gain: in a run whose BLEU rose from 37 to
    # 43 it chose early validations.
    selection_metrics = ("bleu_1_steps", "elbo")
    decodings = {
        "bleu_0_steps": {"num_refinement_steps": 0},
        "bleu_1_steps": {"num_refinement_steps": 1},
    }

    def training_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        num_target_tokens: int,
        smoothing: float,
        settings: Mapping[str, float],
    ) -> tuple[torch.Tensor, Sums]:
        names = ("kl_budget", "glancing_ratio", "bigram_weight", "own_output_share", "prior_share")
        options = {name: settings[name] for name in names}
        output = model(**batch, **options, smoothing=smoothing, num_items_in_batch=num_target_tokens)
        return output.loss, self._sums(output, batch)

    def validation_sums(self, model: torch.nn.Module, batch: Batch, generator: torch.Generator) -> Sums:
        sums = self._sums(model(**batch, generator=generator), batch)
        del sums["budgeted_kl"]  # there is no budget in validation
        return sums

    def _sums(self, output: Any, batch: Batch) -> Sums:
        names = (*self.token_means, "length_accuracy")
        sums = {name: output[name].detach().double().sum() for name in names if output.get(name) is not None}
        return {**sums, **_counts(batch)}

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        figures = {**super().figures(sums), "kl_per_source_position": sums["kl"] / sums["source_tokens"]}
        if "length_accuracy" in sums:
            figures["length_accuracy"] = sums["length_accuracy"] / sums["sentences"]
        return figures


class AutoregressiveObjective(Objective):
    """Negative log-likelihood of the target tokens, each given those before it (the teacher)."""

    token_means = ("token_nll", "log_likelihood")
    selection_metrics = ("log_likelihood",)
    decodings = {"bleu_beam_1": {"num_beams": 1}}

    def training_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        num_target_tokens: int,
        smoothing: float,
        settings: Mapping[str, float],
    ) -> tuple[torch.Tensor, Sums]:
        logits = self._logits(model, batch)
        nll, smoothed_nll = token_nll(logits, batch["labels"], smoothing)
        return smoothed_nll.sum() / num_target_tokens, self._sums(logits, nll, batch)

    def validation_sums(self, model: torch.nn.Module, batch: Batch, generator: torch.Generator) -> Sums:
        logits = self._logits(model, batch)
        return self._sums(logits, token_nll(logits, batch["labels"])[0], batch)

    @staticmethod
    def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(batch, target_length, target_vocab_size), from the labels shifted one to the right.

        The start token is padding, id 0, which is attended to at the first position as any other token.
        """
        labels = batch["labels"]
        decoder_input_ids = torch.zeros_like(labels)
        decoder_input_ids[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED_LABEL, 0)
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits

    def _sums(self, logits: torch.Tensor, nll: torch.Tensor, batch: Batch) -> Sums:
        nll = nll.detach().double().sum()
        correct = (logits.detach().argmax(-1) == batch["labels"]).sum()
        return {"token_nll": nll, "log_likelihood": -nll, "token_accuracy": correct, **_counts(batch)}

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {**super().figures(sums), "token_accuracy": sums["token_accuracy"] / sums["target_tokens"]}


def objective_for(model: PreTrainedModel) -> Objective:
    """The objective of a model: the ELBO for LVNAR, the likelihood for any other sequence-to-sequence model."""
    return LvnarObjective() if model.config.model_type == "lvnar" else AutoregressiveObjective()
