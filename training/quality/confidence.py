"""What a model's confidence in its words is worth: which words are right, curves that say how often, and the error.

A word is right if the reference has it, as often as it has been said so far; signs around it do not count, its case
does. So a word that is another good translation counts as wrong: the references set a floor to what a curve can say.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lvnar_hf.confidence_lvnar import Calibration, Curve, sentence_probabilities
from lvnar_hf.decoding import decode_batches, sorted_batches
from lvnar_hf.words_lvnar import word_spans

NUM_BINS = 10  # of equal width, for the error and the diagram
LOWEST_SHARE = 0.1


@dataclass
class ScoredWords:
    """The words of many translations, and the sentences.

    Attributes:
        probabilities, are_right: of each word.
        sentence_probabilities, right_shares: of each sentence that has a word.
    """

    probabilities: list[float] = field(default_factory=list)
    are_right: list[bool] = field(default_factory=list)
    sentence_probabilities: list[float] = field(default_factory=list)
    right_shares: list[float] = field(default_factory=list)

    def add(self, words: Sequence[tuple[str, float]], reference: Sequence[str], sentence_probability: float) -> None:
        """Add the words of a sentence with their probabilities."""
        left = Counter(map(bare, reference))
        spoken = [(bare(word), probability) for word, probability in words]
        right = []
        for word, probability in spoken:
            if word:
                right.append(left[word] > 0)
                left[word] -= 1
                self.probabilities.append(probability)
        self.are_right += right
        if right:
            self.sentence_probabilities.append(sentence_probability)
            self.right_shares.append(sum(right) / len(right))


def bare(word: str) -> str:
    """A word without the signs around it; "" if it has no letter and no digit."""
    places = [place for place, character in enumerate(word) if character.isalnum()]
    return word[places[0] : places[-1] + 1] if places else ""


Generated = tuple[torch.Tensor, torch.Tensor]  # ids and their probabilities, (batch, length), padded on the right


def score_words(
    generate: Callable[[dict[str, torch.Tensor]], Generated],
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    batch_size: int,
    max_length: int,
) -> ScoredWords:
    """Translate, and see which words are right.

    Args:
        generate: a batch of sources to translations with probabilities.
        max_length: sources are cut at so many tokens; blank ones are left out.
    """
    rows = [row for row, text in enumerate(sources) if text.strip()]
    source_ids = tokenizer(list(sources), truncation=True, max_length=max_length)["input_ids"]
    reference_ids = tokenizer(text_target=list(references))["input_ids"]

    def translate(batch: list[int]) -> list[tuple[list[int], list[float]]]:
        inputs = tokenizer.pad({"input_ids": [source_ids[row] for row in batch]}, return_tensors="pt")
        ids, probabilities = generate(dict(inputs))
        is_token = ids != tokenizer.pad_token_id
        return [(ids[i][is_token[i]].tolist(), probabilities[i][is_token[i]].tolist()) for i in range(len(batch))]

    translations = decode_batches(translate, sorted_batches([len(ids) for ids in source_ids], batch_size, rows))
    scored = ScoredWords()
    for row, (ids, probabilities) in translations.items():
        ones = torch.tensor([probabilities])
        scored.add(
            _words(tokenizer, ids, probabilities),
            [word for word, _ in _words(tokenizer, reference_ids[row], [1.0] * len(reference_ids[row]))],
            float(sentence_probabilities(ones, torch.ones_like(ones))),
        )
    return scored


def _words(tokenizer: Any, ids: list[int], probabilities: list[float]) -> list[tuple[str, float]]:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return [(text[span.start : span.end], span.probability) for span in word_spans(tokenizer, ids, probabilities)]


def generate_refined(model: Any, tokenizer: Any, **options: Any) -> Callable[[dict[str, torch.Tensor]], Generated]:
    """For `score_words`, of this package's model."""

    def generate(inputs: dict[str, torch.Tensor]) -> Generated:
        output = model.generate(
            **inputs, tokenizer=tokenizer, return_dict_in_generate=True, output_confidences=True, **options
        )
        return output.sequences, output.token_confidences

    return generate


def generate_greedily(model: Any) -> Callable[[dict[str, torch.Tensor]], Generated]:
    """For `score_words`, of an autoregressive model: the likeliest token each time."""

    @torch.no_grad()
    def generate(inputs: dict[str, torch.Tensor]) -> Generated:
        output = model.generate(
            **inputs, num_beams=1, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        log_probabilities = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        return output.sequences[:, -log_probabilities.shape[1] :], log_probabilities.exp()

    return generate


def fit_isotonic(scores: Sequence[float], values: Sequence[float]) -> Curve:
    """The rising curve nearest to the values, by least squares: pool adjacent violators (Ayer et al., 1955).

    A breakpoint is the mean score and the mean value of a pool.

    Raises:
        ValueError: there are no scores.
    """
    if not len(scores):
        raise ValueError("There is no word to calibrate with: give translations with words.")
    places, inverse = np.unique(np.asarray(scores, dtype=float), return_inverse=True)
    sums, counts = np.bincount(inverse, weights=np.asarray(values, dtype=float)), np.bincount(inverse)
    pools: list[tuple[float, float, int]] = []  # sum of scores, sum of values, number
    for pool in zip(places * counts, sums, counts, strict=True):
        while pools and pools[-1][1] * pool[2] >= pool[1] * pools[-1][2]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    points = [(float(total / number), float(min(1.0, value / number))) for total, value, number in pools]
    return Curve(*map(tuple, zip(*points, strict=True)))  # type: ignore[arg-type]


def fit_calibration(scored: ScoredWords, weights_fingerprint: str | None) -> Calibration:
    """The curves; the threshold is such that about a tenth of these words is under it.

    A right word as unlikely as any, and a wrong one as likely as any, are added: no confidence is 0 or 1.
    """
    ends = [min(scored.probabilities, default=0.0), max(scored.probabilities, default=1.0)]
    words = fit_isotonic([*scored.probabilities, *ends], [*map(float, scored.are_right), 1.0, 0.0])
    confidences = words(torch.tensor(scored.probabilities, dtype=torch.float64))
    threshold = float(confidences.double().quantile(LOWEST_SHARE))
    sentences = fit_isotonic(scored.sentence_probabilities, scored.right_shares)
    return Calibration(words, sentences, threshold, weights_fingerprint)


def measure_calibration(scored: ScoredWords, calibration: Calibration) -> dict[str, Any]:
    """What the confidences of words and sentences are worth on texts that the curves were not made with.

    Returns:
        For words: their number, the share of wrong ones, the expected calibration error before and after, the bins of
        the diagram; of all wrong words, the share among the tenth with the lowest confidence, and the most that a tenth
        can hold; how many are marked uncertain, and how many of these are wrong. For sentences: the errors.
    """
    probabilities = np.array(scored.probabilities)
    right = np.array(scored.are_right, dtype=float)
    wrong = 1 - right
    confidences = calibration.words(torch.tensor(probabilities)).double().numpy()
    lowest = np.argsort(probabilities, kind="stable")[: round(LOWEST_SHARE * len(right))]
    is_uncertain = confidences < calibration.threshold
    sentence_scores = np.array(scored.sentence_probabilities)
    shares = np.array(scored.right_shares)
    of_sentences = calibration.sentences(torch.tensor(sentence_scores)).double().numpy()
    num_wrong = max(1.0, wrong.sum())
    return {
        "num_words": len(right),
        "wrong_share": wrong.mean(),
        "error_uncalibrated": calibration_error(probabilities, right),
        "error": calibration_error(confidences, right),
        "bins": reliability_bins(confidences, right),
        "bins_uncalibrated": reliability_bins(probabilities, right),
        "lowest_tenth": {
            "share_of_wrong_words": wrong[lowest].sum() / num_wrong,
            "largest_possible": min(len(lowest), wrong.sum()) / num_wrong,
            "wrong_share": wrong[lowest].mean(),
        },
        "uncertain": {
            "threshold": calibration.threshold,
            "share": is_uncertain.mean(),
            "wrong_share": wrong[is_uncertain].mean() if is_uncertain.any() else None,
        },
        "sentences": {
            "num_sentences": len(shares),
            "error_uncalibrated": calibration_error(sentence_scores, shares),
            "error": calibration_error(of_sentences, shares),
            "rank_correlation": _rank_correlation(sentence_scores, shares),
        },
    }


def reliability_bins(confidences: np.ndarray, values: np.ndarray) -> list[dict[str, float]]:
    """Bins of equal width that have something in them: number, mean confidence, mean value."""
    places = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return [
        {
            "number": int((places == place).sum()),
            "confidence": float(confidences[places == place].mean()),
            "value": float(values[places == place].mean()),
        }
        for place in np.unique(places)
    ]


def calibration_error(confidences: np.ndarray, values: np.ndarray) -> float:
    """The expected calibration error (Naeini et al., 2015): |mean confidence - mean value| of the bins, weighted."""
    bins = reliability_bins(confidences, values)
    return sum(one["number"] * abs(one["confidence"] - one["value"]) for one in bins) / len(values)


def _rank_correlation(scores: np.ndarray, values: np.ndarray) -> float | None:
    """Spearman's; equal numbers share the mean of their ranks. None if one side is all equal."""
    if len(np.unique(scores)) < 2 or len(np.unique(values)) < 2:
        return None

    def ranks(numbers: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        return (counts.cumsum() - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(scores), ranks(values))[0, 1])
