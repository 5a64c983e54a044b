"""Translations, their scores, and the ELBO: what validation, `evaluate.py` and the demonstration measure."""

from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lvnar_hf.losses_lvnar import IGNORED_LABEL

ELBO_PARTS = ("token_nll", "kl", "length_nll", "elbo")


def translate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int = 64,
    **generate_arguments: Any,
) -> list[str]:
    """Translate in batches of sentences alike in length; the order is kept, empty texts stay empty.

    A text longer than the model takes is cut at its limit.

    Args:
        generate_arguments: go to `generate`, for example `num_refinement_steps`.
    """
    limit = model.config.max_position_embeddings
    encoded = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"] if texts else []
    order = sorted((i for i in range(len(texts)) if texts[i].strip()), key=lambda i: len(encoded[i]))
    hypotheses = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt").to(model.device)
        sequences = model.generate(**batch, **generate_arguments)
        for row, text in zip(rows, tokenizer.batch_decode(sequences, skip_special_tokens=True), strict=True):
            hypotheses[row] = text
    return hypotheses


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, dict[str, Any]]:
    """sacreBLEU's BLEU (13a, cased; and intl, lowercased, the paper's for WMT14) and chrF, each with its signature.

    Raises:
        ValueError: if the numbers of hypotheses and references differ.
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, but {len(references)} references.")
    metrics = {"bleu": BLEU(), "bleu_intl_lowercased": BLEU(tokenize="intl", lowercase=True), "chrf": CHRF()}
    scores = {}
    for name, metric in metrics.items():
        score = metric.corpus_score(list(hypotheses), [list(references)])
        scores[name] = {"score": score.score, "signature": str(metric.get_signature())}
    return scores


@torch.no_grad()
def estimate_elbo(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    num_samples: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Mean over latent samples of the ELBO and its parts: (batch,) float64, nats a sentence, by name.

    Args:
        model: in evaluation mode.
        inputs: `input_ids`, `attention_mask`, `labels`.
        num_samples: draws of z from the posterior a sentence.
        generator: of the draws, on the model's device.
    """
    sums = {name: torch.zeros(len(inputs["labels"]), dtype=torch.float64, device=model.device) for name in ELBO_PARTS}
    for _ in range(num_samples):
        output = model(**inputs, generator=generator)
        for name in ELBO_PARTS:
            sums[name] += output[name].double()
    return {name: total / num_samples for name, total in sums.items()}


def elbo_of_translations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    num_steps: int,
    num_samples: int,
    seed: int,
    batch_size: int = 64,
) -> dict[str, float]:
    """ELBO of the model's own translations, before repetitions are removed (the paper's Fig. 3).

    Returns:
        The ELBO and its parts in nats a token, and `mean_steps_taken`, refinement steps a sentence.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    sums, num_tokens, num_steps_taken = dict.fromkeys(ELBO_PARTS, 0.0), 0, 0
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(
            **batch, num_refinement_steps=num_steps, remove_repetitions=False, return_dict_in_generate=True
        )
        labels = output.sequences.masked_fill(output.sequences == model.config.pad_token_id, IGNORED_LABEL)
        elbo = estimate_elbo(model, {**batch, "labels": labels}, num_samples, generator)
        for name in ELBO_PARTS:
            sums[name] += float(elbo[name].sum())
        num_tokens += int((labels != IGNORED_LABEL).sum())
        num_steps_taken += int(output.num_steps_taken.sum())
    return {**{n: s / num_tokens for n, s in sums.items()}, "mean_steps_taken": num_steps_taken / len(texts)}
