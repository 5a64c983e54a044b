"""What refinement does, step by step: the data behind the paper's Fig. 3 and 4 and Table 3.

A sentence is translated once, not once per step. `generate` gives the translations of all steps, and a
sentence that has stopped keeps its own; so texts and ELBO are computed only where a translation is new.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.loading import load_config, load_model, load_tokenizer
from lvnar_hf.steps import repetition_removal
from training.quality.decoding import Refinement, refine_texts
from training.quality.elbo import ELBO_PARTS, can_be_scored, elbo_of_sequences
from training.translation_quality.bleu import corpus_scores


def load_lvnar(name: str) -> tuple[Any, Any]:
    """The model, in evaluation mode, on the GPU if there is one; and its tokenizer.

    Raises:
        ValueError: the model is not of this package.
    """
    model_type = load_config(name).model_type
    if model_type != "lvnar":
        raise ValueError(f"{name} is a model of type {model_type!r}; only models of type 'lvnar' refine by steps.")
    model = load_model(name, dtype=torch.float32).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(name)


def elbo_by_step(
    model: PreTrainedModel,
    refinements: Sequence[Refinement],
    max_steps: int,
    num_samples: int,
    seed: int,
    batch_size: int = 64,
) -> list[list[dict[str, float]]]:
    """ELBO and its parts of each sentence's own translation after each step 0 to `max_steps`.

    Returns:
        max_steps + 1 lists of (sentences,) dictionaries, nats per sentence by name.
    """
    known: dict[tuple[int, tuple[int, ...]], dict[str, float]] = {}  # by sentence and translation
    by_step = []
    for step in tqdm(range(max_steps + 1), desc="ELBO", unit="step"):
        keys = [(row, tuple(refinement.ids_at(step))) for row, refinement in enumerate(refinements)]
        new = [key for key in keys if key not in known]
        if new:
            pairs = [refinements[row].source_ids for row, _ in new], [list(ids) for _, ids in new]
            parts = elbo_of_sequences(model, *pairs, num_samples, seed, batch_size)
            names = [name for name in ELBO_PARTS if name in parts]
            columns = zip(*(parts[name].tolist() for name in names), strict=True)
            for key, column in zip(new, columns, strict=True):
                known[key] = dict(zip(names, column, strict=True))
        by_step.append([known[key] for key in keys])
    return by_step


def summarise_steps(
    refinements: Sequence[Refinement],
    elbos: Sequence[Sequence[dict[str, float]]],
    hypotheses: Sequence[Sequence[str]],
    references: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """The rows of Fig. 3 and BLEU's signature.

    Args:
        refinements: (sentences,), those with an ELBO.
        elbos: (steps, sentences), of `elbo_by_step`.
        hypotheses: (steps, lines), texts after each step.
        references: (lines,).

    Returns:
        For each step: ELBO and its parts in nats per target token, BLEU (13a, cased), and the target tokens.
    """
    rows, signature = [], ""
    by_step = list(zip(elbos, hypotheses, strict=True))
    for step, (of_sentences, texts) in enumerate(tqdm(by_step, desc="BLEU", unit="step")):
        num_tokens = sum(len(refinement.ids_at(step)) for refinement in refinements)
        means = {name: math.fsum(parts[name] for parts in of_sentences) / num_tokens for name in of_sentences[0]}
        bleu = corpus_scores(texts, references)["bleu"]
        signature = bleu["signature"]
        rows.append({"step": step, **means, "bleu": bleu["score"], "num_target_tokens": num_tokens})
    return rows, signature


def summarise_stopping(refinements: Sequence[Refinement], max_steps: int) -> dict[str, Any]:
    """The bars of Fig. 4: sentences that stop at each step, and those that still change at the last.

    A sentence stops at the first step that changes nothing. Shares are from 0 to 1.
    """
    counts = [sum(r.has_converged and r.num_steps_taken == step for r in refinements) for step in range(max_steps + 1)]
    not_converged = len(refinements) - sum(counts)
    return {
        "steps": [
            {"step": step, "num_sentences": counts[step], "share": counts[step] / len(refinements)}
            for step in range(1, max_steps + 1)
        ],
        "not_converged": {"num_sentences": not_converged, "share": not_converged / len(refinements)},
        "mean_steps_taken": sum(r.num_steps_taken for r in refinements) / len(refinements),
    }


@torch.no_grad()
def analyse_refinement(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    max_steps: int,
    num_samples: int,
    seed: int,
    batch_size: int = 64,
) -> tuple[dict[str, Any], dict[int, Refinement], dict[int, list[float]]]:
    """All steps of all sentences: what Fig. 3 and 4 show.

    A blank source has no translation: it counts in BLEU with an empty one, and nowhere else. A sentence with a
    translation of a length that the model cannot score (`max_length` can force one) is left out of the ELBO, at all
    steps.

    Args:
        sources, references: (lines,).
        max_steps: at least 1.
        num_samples: of the ELBO, draws of z per sentence.
        seed: of the draws.

    Returns:
        The data of the figures; the refinement of each line by its index; and the ELBO of each line after each step,
        in nats per target token.

    Raises:
        ValueError: if every source is blank, or no sentence can be scored.
    """
    lines = [index for index, text in enumerate(sources) if text.strip()]
    if not lines:
        raise ValueError(f"All {len(sources)} source lines are blank: there is nothing to translate.")
    translations = refine_texts(model, tokenizer, [sources[i] for i in lines], max_steps, batch_size)
    by_line = dict(zip(lines, translations, strict=True))
    scored = [
        line
        for line, refinement in by_line.items()
        if all(can_be_scored(model, refinement.source_ids, ids) for ids in refinement.target_ids)
    ]
    if not scored:
        raise ValueError("No translation has a length that the model can score: give its generation_config.json room.")
    refined = [by_line[line] for line in scored]
    elbos = elbo_by_step(model, refined, max_steps, num_samples, seed, batch_size)
    hypotheses = [
        [by_line[line].text_at(step) if line in by_line else "" for line in range(len(sources))]
        for step in range(max_steps + 1)
    ]
    steps, signature = summarise_steps(refined, elbos, hypotheses, references)
    data = {
        "num_sentences": len(sources),
        "num_blank_sources": len(sources) - len(lines),
        "num_elbo_sentences": len(scored),
        "remove_repetitions": repetition_removal(model),
        "bleu_signature": signature,
        "steps": steps,
        "stopping": summarise_stopping(translations, max_steps),
    }
    elbos_a_token = {
        line: [of_step[row]["elbo"] / len(by_line[line].ids_at(step)) for step, of_step in enumerate(elbos)]
        for row, line in enumerate(scored)
    }
    return data, by_line, elbos_a_token
