"""The scores of a model on a test set: its hypotheses, what they are worth, and the ELBO of the references."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lvnar_hf.files.text import one_line
from training.data.evaluation_sets import TestSet
from training.quality.decoding import refine_texts, translate_texts
from training.quality.elbo import can_be_scored, elbo_of_sequences
from training.translation_quality.bleu import bleu_by_length, corpus_scores, repeated_share, words


def score_refined(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test_set: TestSet,
    batch_size: int,
    num_bootstrap: int,
    num_steps: int,
) -> tuple[list[str], dict[str, Any]]:
    """Hypotheses, a line each, and scores of this package's model."""
    texts = [text for text in test_set.source_texts if text.strip()]
    refinements = refine_texts(model, tokenizer, texts, num_steps, batch_size)
    of_texts = iter(refinements)
    hypotheses = [next(of_texts).texts[-1] if text.strip() else "" for text in test_set.source_texts]
    before = [refinement.target_ids[-1] for refinement in refinements]
    after = [refinement.kept_ids[-1] for refinement in refinements]
    return hypotheses, {
        "mean_steps_taken": sum(refinement.num_steps_taken for refinement in refinements) / len(refinements),
        **_text_scores(hypotheses, tokenizer, test_set, num_bootstrap),
        "repeated_tokens": {
            "before_removal": {
                "subwords": repeated_share(before),
                "words": repeated_share(words(tokenizer.batch_decode(before, skip_special_tokens=True))),
            },
            "after_removal": {
                "subwords": repeated_share(after),
                "words": repeated_share(words(hypotheses)),
            },
        },
    }


def score_searched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test_set: TestSet,
    batch_size: int,
    num_bootstrap: int,
    **generate_arguments: Any,
) -> tuple[list[str], dict[str, Any]]:
    """Hypotheses, a line each, and scores of a model that searches: among candidates, or token by token.

    Args:
        generate_arguments: how; they go to `generate`.
    """
    texts = translate_texts(model, tokenizer, test_set.source_texts, batch_size, **generate_arguments)
    hypotheses = [one_line(text) for text in texts]
    scores = _text_scores(hypotheses, tokenizer, test_set, num_bootstrap)
    return hypotheses, scores | {"repeated_tokens": {"words": repeated_share(words(hypotheses))}}


def _text_scores(
    hypotheses: list[str], tokenizer: PreTrainedTokenizerBase, test_set: TestSet, num_bootstrap: int
) -> dict[str, Any]:
    languages = (test_set.source_language, test_set.target_language)
    # without </s>
    source_lengths = [len(ids) for ids in tokenizer(test_set.source_texts, add_special_tokens=False)["input_ids"]]
    references = test_set.target_texts
    return {
        **corpus_scores(hypotheses, references, *languages, num_bootstrap),
        "repeated_words_in_references": repeated_share(words(references)),
        "bleu_by_source_length": bleu_by_length(hypotheses, references, source_lengths, test_set.target_language),
    }


def elbo_of_references(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test_set: TestSet,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Nats per target token, with the parts, over the pairs that the model gives a probability; how many those are."""
    source_ids = tokenizer(test_set.source_texts, verbose=False)["input_ids"]
    target_ids = tokenizer(text_target=test_set.target_texts, verbose=False)["input_ids"]
    scored = [ids for ids in zip(source_ids, target_ids, strict=True) if can_be_scored(model, *ids)]
    counts = {"num_samples": num_samples, "seed": seed, "num_sentences": len(scored)}
    if not scored:
        return counts
    sources, targets = map(list, zip(*scored, strict=True))
    bounds = elbo_of_sequences(model, sources, targets, num_samples, seed, batch_size)
    num_tokens = sum(map(len, targets))
    per_token = {name: float(values.sum()) / num_tokens for name, values in bounds.items()}
    return per_token | counts
