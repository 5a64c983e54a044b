"""What a model would score if it were told what it has to guess: the reference's length, or the reference's latents.

No row but the first is a translation that anyone could have; they say where the points are lost. Told
the length, what is left to lose is in the words; told the posterior's mean given the reference, in the decoder. With
alignment "ctc" no length can be told.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lvnar_hf.decoding import sorted_batches
from lvnar_hf.generation_lvnar import without_repetitions
from lvnar_hf.steps import repetition_removal
from training.quality.elbo import can_be_scored
from training.translation_quality.bleu import corpus_scores

GIVEN = {
    "length": ("nothing", "length", "latents", "length and latents"),
    "ctc": ("nothing", "latents"),
}


@torch.no_grad()
def oracle_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source_texts: Sequence[str],
    target_texts: Sequence[str],
    batch_size: int = 64,
) -> dict[str, Any]:
    """BLEU of one pass, given nothing, the reference's length, E_q(z | x, y)[z] of the reference y, or both (`GIVEN`).

    Pairs that the model gives no probability (too long, empty, lengths too different) are left out.

    Returns:
        "num_sentences", "bleu_signature", "length_accuracy" (share of the first translations, from the prior's mean,
        that have as many tokens as the reference), "mean_length_difference" (theirs less the reference's, tokens),
        "bleu" by what is given.

    Raises:
        ValueError: if no pair is left.
    """
    source_ids = tokenizer(list(source_texts), verbose=False)["input_ids"]
    target_ids = tokenizer(text_target=list(target_texts), verbose=False)["input_ids"]
    rows = [i for i in range(len(source_ids)) if can_be_scored(model, source_ids[i], target_ids[i])]
    if not rows:
        raise ValueError(
            "The model gives none of the references a probability: all are empty, too long or too far off."
        )
    batches = sorted_batches([len(ids) for ids in source_ids], batch_size, rows)
    hypotheses: dict[str, list[str]] = {given: [] for given in GIVEN[model.config.alignment]}
    num_equal = sum_differences = 0
    for batch in batches:
        sources = tokenizer.pad({"input_ids": [source_ids[i] for i in batch]}, return_tensors="pt").to(model.device)
        targets = tokenizer.pad({"input_ids": [target_ids[i] for i in batch]}, return_tensors="pt").to(model.device)
        source = model.encode(sources["input_ids"], sources["attention_mask"])
        target_lengths = targets["attention_mask"].sum(-1)
        latents, _ = model.infer_posterior(source, targets["input_ids"], targets["attention_mask"])
        for given in hypotheses:
            z = latents if "latents" in given else source.prior_means
            target_mask, _ = model.target_positions(source, z)
            if "length" in given:
                target_mask = targets["attention_mask"]
            sequences = model.likeliest_targets(model.decode(source, z, target_mask), target_mask)
            if given == "nothing":
                differences = (sequences != model.config.pad_token_id).sum(-1) - target_lengths
                num_equal += int((differences == 0).sum())
                sum_differences += int(differences.sum())
            removal, pad_token_id = repetition_removal(model), model.config.pad_token_id
            sequences = without_repetitions(sequences, removal, pad_token_id, sources["input_ids"], tokenizer)
            hypotheses[given] += tokenizer.batch_decode(sequences, skip_special_tokens=True)
    references = [target_texts[i] for batch in batches for i in batch]
    scores = {given: corpus_scores(texts, references)["bleu"] for given, texts in hypotheses.items()}
    return {
        "num_sentences": len(rows),
        "bleu_signature": scores["nothing"]["signature"],
        "length_accuracy": num_equal / len(rows),
        "mean_length_difference": sum_differences / len(rows),
        "bleu": {given: score["score"] for given, score in scores.items()},
    }
