"""The measures of `training/score.py` as a metric of Hugging Face's `evaluate`.

import evaluate
metric = evaluate.load("training/translation_quality")
metric.compute(predictions=["das ist gut"], references=["Das ist gut."])
"""

from typing import Any

import datasets
import evaluate

from .bleu import corpus_scores, repeated_share, words

_DESCRIPTION = """\
BLEU (13a, cased), BLEU in the paper's setting for the corpus, chrF, each with sacreBLEU's signature; the length ratio;
and the share of words that repeat the word before them, which is typical of translation models that predict all tokens
at once.
"""
_INPUTS = """\
Args:
    predictions: translations, a string each.
    references: reference translations, a string each, or a list of as many strings each.
    source_language, target_language: codes, for example "en" and "de"; they choose the paper's setting, and sacreBLEU's
        tokenizer for Japanese, Chinese and Korean.
    num_bootstrap: resamples for 95 % intervals; 0 for none.
Returns:
    bleu, bleu_intl_lowercased or bleu_moses, chrf: scores from 0 to 100; each with NAME_signature, and NAME_interval_95
        if there are resamples.
    length_ratio: predictions to references, in BLEU's tokens.
    repeated_words, repeated_words_in_references: share of words equal to the one before, 0 to 1.
"""
_CITATION = """\
@inproceedings{post-2018-call,
    title = "A Call for Clarity in Reporting {BLEU} Scores",
    author = "Post, Matt",
    booktitle = "Proceedings of the Third Conference on Machine Translation: Research Papers",
    year = "2018",
    url = "https://aclanthology.org/W18-6319",
    pages = "186--191",
}
"""


class TranslationQuality(evaluate.Metric):
    """See `_INPUTS`; all results stand on one level, as in other metrics of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": datasets.Value("string"), "references": references})
                for references in (datasets.Value("string"), datasets.Sequence(datasets.Value("string")))
            ],
            reference_urls=["https://github.com/mjpost/sacrebleu", "https://arxiv.org/abs/1908.07181"],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        source_language: str | None = None,
        target_language: str | None = None,
        num_bootstrap: int = 0,
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        scores = corpus_scores(predictions, references, source_language, target_language, num_bootstrap)
        result["length_ratio"] = scores.pop("length_ratio")
        for name, score in scores.items():
            result[name] = score.pop("score")
            result |= {f"{name}_{part}": value for part, value in score.items()}
        result["repeated_words"] = repeated_share(words(predictions))
        result["repeated_words_in_references"] = repeated_share(
            words(text for texts in references for text in ([texts] if isinstance(texts, str) else texts))
        )
        return result
