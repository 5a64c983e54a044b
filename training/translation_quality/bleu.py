"""Scores of translations against references: sacreBLEU's, each with its signature, and what is typical of parallel
decoding, repeated tokens.

This module is read from two places, as part of `training`, and by `evaluate.load` as a copy beside its
metric; it imports nothing of this package.
"""

import importlib.metadata
import importlib.util
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

LENGTH_BUCKETS = (5, 10, 20, 40)  # the longest source of each bucket, in tokens; one more bucket for what is longer


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    source_language: str | None = None,
    target_language: str | None = None,
    num_bootstrap: int = 0,
) -> dict[str, Any]:
    """BLEU, BLEU as the paper sets it for the corpus, chrF, and the length ratio.

    Args:
        hypotheses: a translation each.
        references: of the same number; or a list of references for each, all lists of one length.
        source_language, target_language: codes. From Japanese to English, the paper's setting is ASPEC's; else
            WMT14's. A language that 13a does not split (Japanese, Chinese, Korean) has sacreBLEU's own tokenizer.
        num_bootstrap: resamples for the intervals; 0 for none.

    Returns:
        "bleu" (cased; 13a), "bleu_intl_lowercased" (WMT14) or "bleu_moses" (ASPEC: Moses tokens, tok:none), and
        "chrf", each with "score", "signature", and "interval_95" [low, high] if there are resamples; "length_ratio",
        hypothesis to reference, in BLEU's tokens.

    Raises:
        ValueError: if the numbers of hypotheses and references differ or are 0, of one hypothesis and another too, or
            there is one bootstrap resample.
        ImportError: sacremoses is missing, which ASPEC's setting needs.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses, but {len(references)} references; they must be equal, not 0.")
    if num_bootstrap < 0 or num_bootstrap == 1:
        raise ValueError(f"num_bootstrap is {num_bootstrap}; an interval needs at least 2 resamples, 0 is none.")
    rows = [[of_one] if isinstance(of_one, str) else list(of_one) for of_one in references]
    if len({isinstance(of_one, str) for of_one in references}) > 1 or len(set(map(len, rows))) > 1 or not rows[0]:
        raise ValueError("Every hypothesis needs a reference, or as many references in a list as the others have.")
    streams = [list(stream) for stream in zip(*rows, strict=True)]
    texts = (list(hypotheses), streams)
    bleu = BLEU(trg_lang=target_language or "")
    scores = {"bleu": _score(bleu, *texts, num_bootstrap)}
    if (source_language, target_language) == ("ja", "en"):
        hypothesis_tokens = [moses_tokens(text) for text in texts[0]]
        reference_tokens = [[moses_tokens(text) for text in stream] for stream in streams]
        bleu_moses = BLEU(tokenize="none", force=True)
        scores["bleu_moses"] = _score(bleu_moses, hypothesis_tokens, reference_tokens, num_bootstrap)
        scores["bleu_moses"]["signature"] += f"|moses:sacremoses-{importlib.metadata.version('sacremoses')}"
    else:
        scores["bleu_intl_lowercased"] = _score(BLEU(tokenize="intl", lowercase=True), *texts, num_bootstrap)
    scores["chrf"] = _score(_FloatChrf(), *texts, num_bootstrap)
    return {**scores, "length_ratio": bleu.corpus_score(*texts).ratio}


class _FloatChrf(CHRF):
    """sacreBLEU cannot take the mean of resamples of which some match nothing: these are float, the others float32."""

    def _compute_score_from_stats(self, stats: Any) -> Any:
        numbers: list[Any] = list(map(float, stats))
        return super()._compute_score_from_stats(numbers)


def _score(
    metric: BLEU | CHRF, hypotheses: list[str], references: list[list[str]], num_bootstrap: int
) -> dict[str, Any]:
    score = metric.corpus_score(hypotheses, references, n_bootstrap=max(1, num_bootstrap))
    result: dict[str, Any] = {"score": score.score, "signature": str(metric.get_signature())}
    if num_bootstrap:
        result["interval_95"] = [float(score._mean - score._ci), float(score._mean + score._ci)]
    return result


def moses_tokens(text: str) -> str:
    """English in Moses' tokens with a space between, unescaped.

    Raises:
        ImportError: sacremoses is missing.
    """
    if importlib.util.find_spec("sacremoses") is None:
        raise ImportError("The paper's BLEU for ASPEC is on Moses' tokens: pip install sacremoses.")
    from sacremoses import MosesTokenizer

    return MosesTokenizer(lang="en").tokenize(text, escape=False, return_str=True)


def bleu_by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    source_lengths: Sequence[int],
    target_language: str | None = None,
) -> list[dict[str, Any]]:
    """BLEU of the sentences of each source length, by LENGTH_BUCKETS; buckets without a sentence are left out.

    Returns:
        Rows with "source_tokens" [shortest, longest] (longest None: no limit), "num_sentences", "bleu".
    """
    rows = []
    for shortest, longest in zip((1, *(limit + 1 for limit in LENGTH_BUCKETS)), (*LENGTH_BUCKETS, None), strict=True):
        inside = [
            i
            for i, length in enumerate(source_lengths)
            if shortest <= length and (longest is None or length <= longest)
        ]
        if inside:
            texts = ([hypotheses[i] for i in inside], [[references[i] for i in inside]])
            bleu = BLEU(trg_lang=target_language or "").corpus_score(*texts).score
            rows.append({"source_tokens": [shortest, longest], "num_sentences": len(inside), "bleu": bleu})
    return rows


def repeated_share(sequences: Iterable[Sequence[Hashable]]) -> float:
    """Share of all tokens that equal the token before them in their sequence; 0 without tokens."""
    num_tokens = num_repeated = 0
    for sequence in sequences:
        num_tokens += len(sequence)
        num_repeated += sum(one == other for one, other in pairwise(sequence))
    return num_repeated / num_tokens if num_tokens else 0.0


def words(texts: Iterable[str]) -> list[list[str]]:
    """The words and signs of each text, by sacreBLEU's tokenizer 13a."""
    tokenizer = Tokenizer13a()
    return [tokenizer(text).split() for text in texts]
