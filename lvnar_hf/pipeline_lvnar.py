"""`pipeline("translation")`, which transformers 5 has dropped, for this model and any other sequence-to-sequence model.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import Pipeline

from .text_lvnar import TextFormat
from .words_lvnar import ScoredWord, place_words, word_spans

# What the text's module imports: from a folder, transformers 4 finds only what this module imports itself.
# isort: split
from .figures_lvnar import figures_of  # noqa: F401
from .markup_lvnar import mask_line  # noqa: F401
from .names_lvnar import find_names  # noqa: F401
from .repetitions_lvnar import find_stutter  # noqa: F401
from .segmentation_lvnar import is_unspaced  # noqa: F401
from .sentences_lvnar import SentenceSplitter  # noqa: F401
from .soundness_lvnar import read_json_object  # noqa: F401
from .subwords_lvnar import PLACEHOLDERS  # noqa: F401
from .vocabulary_lvnar import INVISIBLE  # noqa: F401

SORTED_BATCHES = 64  # of a list, so many batches of texts are tokenized ahead and sorted by length
SENTENCES_AT_ONCE = 32  # of one text


class _Tokenized(dict):
    """What `preprocess` has made of a text already."""


def _refuse_other_than_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"A text to translate must be a string; given was {type(text).__name__}: {text!r}")


class LvnarTranslationPipeline(Pipeline):
    """Text to translated text: take it apart into sentences, tokenize, `generate`, decode, put it together.

        translator = pipeline("translation", model="model_cards/lvnar-tatoeba-en-de")
        translator("Where is the station?", num_refinement_steps=1)
        [{"translation_text": "..."}]

    Call arguments:
        texts: a string, a sequence of strings, or a torch dataset or generator of strings, consumed lazily.
        batch_size: texts translated at once; 1 by default. Those of a list are grouped by length, and their order is
            restored; those of a dataset or generator are taken as they come.
        preserve_format: translate sentence by sentence, and keep lines, spaces, marks around sentences, and spans that
            must not change (see `TextFormat`); True by default for this model, False for others. False: the text goes
            to the model as it is.
        truncation: True cuts texts that are longer than the model takes; by default they are refused. With
            `preserve_format` that means a sentence that is too long and has no clauses to part it at.
        return_tensors: add `translation_token_ids` to each result; then `preserve_format` is False, as what is put
            together from several sentences has no ids.
        return_confidence: add to each result `words`, a list of dictionaries (`ScoredWord`: text, start, end,
            confidence, is_uncertain, is_copied); `confidence`, the share of the model's words that is expected to be
            right; and `is_calibrated`: without a calibration beside the weights, both are the model's own
            probabilities, and no word is marked uncertain. A word's is the product of its subwords'.
        src_lang, tgt_lang: for tokenizers of multilingual models; what contradicts this model's languages is refused.
        return_text, clean_up_tokenization_spaces: accepted, as transformers' own pipeline did; they change nothing.
        Everything else goes to the model's `generate`.

    Returns:
        A dictionary with `translation_text` for each text, in a list; an empty text, or one of white space alone, has
        an empty translation. A generator or dataset gives an iterator over such lists of one.

    Raises:
        ValueError: for a text that is too long (if `truncation` is not given) or not a string, for what `generate`
            refuses, and for a tokenizer of another vocabulary than the model's; for `preserve_format=True` together
            with `return_tensors=True`.
    """

    # transformers' own class, where it has one (4.x): it goes on serving other models, with its own defaults.
    native_class: type[Pipeline] | None = None

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False  # the base class would prepare options for an autoregressive search

    def __new__(cls, model: Any = None, **kwargs: Any) -> Any:
        if cls.native_class is not None and model is not None and model.config.model_type != "lvnar":
            return cls.native_class(model=model, **kwargs)
        return super().__new__(cls)

    def __init__(self, model: Any, **kwargs: Any) -> None:
        if not isinstance(model, torch.nn.Module) and kwargs.get("device") is None:
            kwargs["device"] = model.device  # an engine stays where it is; the base class would move it to a GPU
        self._text_formats: dict[str | None, TextFormat] = {}  # by source language
        super().__init__(model=model, **kwargs)
        if self.model.config.model_type == "lvnar" and self.tokenizer is not None:
            self._check_vocabularies()

    def _check_vocabularies(self) -> None:
        """Refuse a tokenizer that has more ids than the model's embeddings have rows."""
        config, num_ids = self.model.config, len(self.tokenizer)
        num_target_ids = getattr(self.tokenizer, "target_vocab_size", num_ids)
        sides = {"source": (num_ids, config.vocab_size), "target": (num_target_ids, config.decoder_vocab_size)}
        for side, (size, num_rows) in sides.items():
            if size > num_rows:
                raise ValueError(
                    f"The tokenizer has {size} {side} ids, and the model's {side} embedding {num_rows} rows: they do "
                    "not belong together."
                )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the model and the tokenizer. (The base class would write objects of Python into the configuration.)

        Args:
            save_directory: is made if it is not there.
            kwargs: go to the `save_pretrained` of both.

        Raises:
            NotADirectoryError: it is a file.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"{save_directory} is a file: name a folder.")
        self.model.save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self,
        truncation: bool | None = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        preserve_format: bool | None = None,
        return_confidence: bool | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict, dict, dict]:
        if return_confidence not in (None, True, False):
            raise ValueError(f"return_confidence is {return_confidence!r}; it must be True or False.")
        if return_confidence:
            if self.model.config.model_type != "lvnar":
                raise ValueError(
                    f"return_confidence=True is for models of type 'lvnar'; this is a {self.model.config.model_type!r}."
                )
            generate_kwargs |= {"output_confidences": True, "return_dict_in_generate": True}
        if preserve_format and return_tensors:
            raise ValueError("return_tensors=True needs preserve_format=False: a text put together has no token ids.")
        if return_tensors:
            preserve_format = False
        if truncation not in (None, True, False):
            raise ValueError(f"truncation is {truncation!r}; it must be True or False.")
        languages = (self.task or "").split("_")  # translation_XX_to_YY
        if src_lang is None and tgt_lang is None and len(languages) == 4:
            src_lang, tgt_lang = languages[1], languages[3]
        if self.model.config.model_type == "lvnar":
            self.model.config.check_languages(src_lang, tgt_lang)
        given = {"truncation": truncation, "src_lang": src_lang, "tgt_lang": tgt_lang}
        given["preserve_format"] = preserve_format
        preprocess_parameters = {name: value for name, value in given.items() if value is not None}
        given = {"return_tensors": return_tensors, "return_confidence": return_confidence}
        postprocess_parameters = {name: value for name, value in given.items() if value is not None}
        return preprocess_parameters, generate_kwargs, postprocess_parameters

    def run_single(self, text: Any, preprocess_params: dict, *later_params: dict) -> list[dict]:
        """The base class's, sentence by sentence."""
        preserve_format, preprocess_params = self._take_preserve_format(preprocess_params)
        if preserve_format:
            return next(self._iterate_formatted([text], SENTENCES_AT_ONCE, preprocess_params, *later_params))
        return super().run_single(text, preprocess_params, *later_params)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess_params: dict, *later_params: dict
    ) -> Iterable[list[dict]]:
        """The base class's; sentence by sentence, and of a list with batches of texts alike in length."""
        preserve_format, preprocess_params = self._take_preserve_format(preprocess_params)
        if preserve_format:
            return self._iterate_formatted(inputs, batch_size, preprocess_params, *later_params)
        if isinstance(inputs, list) and batch_size > 1:
            return self._iterate_by_length(inputs, num_workers, batch_size, preprocess_params, *later_params)
        return super().get_iterator(inputs, num_workers, batch_size, preprocess_params, *later_params)

    def _take_preserve_format(self, preprocess_params: dict) -> tuple[bool, dict]:
        """Whether the format is kept, and the other parameters, which are those of `preprocess`."""
        others = dict(preprocess_params)
        return others.pop("preserve_format", self.model.config.model_type == "lvnar"), others

    def _iterate_formatted(
        self, texts: Any, batch_size: int, preprocess_params: dict, *later_params: dict
    ) -> Iterator[list[dict]]:
        """Results in the order of the texts; the sentences of a window of texts are translated together."""
        text_format = self._text_format(preprocess_params.get("src_lang"))
        with_confidence = later_params[-1].get("return_confidence", False)
        scored: dict[str, dict] = {}  # the results of a window's sentences

        def translate(sentences: list[str]) -> list[list[str]]:
            results = list(self._translate_sentences(sentences, batch_size, preprocess_params, *later_params))
            scored.update(zip(sentences, (of_one[0] for of_one in results), strict=True))
            return [[result["translation_text"] for result in of_one] for of_one in results]

        size = SORTED_BATCHES * batch_size if isinstance(texts, list) else batch_size
        has_places = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")  # a dataset need not be iterable
        remaining = (texts[place] for place in range(len(texts))) if has_places else iter(texts)
        while window := list(itertools.islice(remaining, size)):
            for text in window:
                _refuse_other_than_text(text)
            scored.clear()
            for text, translations in zip(window, text_format.translate(window, translate), strict=True):
                results = [{"translation_text": translation} for translation in translations]
                if with_confidence:
                    results = [
                        {**result, **self._join_confidence(result, text, text_format, scored)} for result in results
                    ]
                yield results

    def _translate_sentences(
        self, sentences: list[str], batch_size: int, preprocess_params: dict, *later_params: dict
    ) -> Iterable[list[dict]]:
        if batch_size > 1 and len(sentences) > 1:
            return self._iterate_by_length(sentences, 0, batch_size, preprocess_params, *later_params)
        return [
            super(LvnarTranslationPipeline, self).run_single(s, preprocess_params, *later_params) for s in sentences
        ]

    def _text_format(self, source_language: str | None) -> TextFormat:
        for holder in (self.model.config, self.tokenizer):
            source_language = source_language or getattr(holder, "source_language", None)
        if source_language not in self._text_formats:
            limit = getattr(self.model.config, "max_position_embeddings", None)
            self._text_formats[source_language] = TextFormat(self.tokenizer, limit, source_language)
        return self._text_formats[source_language]

    def _iterate_by_length(
        self, texts: list, num_workers: int, batch_size: int, preprocess_params: dict, *later_params: dict
    ) -> Iterator[list[dict]]:
        """Results in the order of the texts; of those that are sorted together, the longest are translated first."""
        for start in range(0, len(texts), SORTED_BATCHES * batch_size):
            window = texts[start : start + SORTED_BATCHES * batch_size]
            tokenized = [_Tokenized(self.preprocess(text, **preprocess_params)) for text in window]
            order = sorted(range(len(window)), key=lambda i: tokenized[i]["input_ids"].shape[1], reverse=True)
            batches = super().get_iterator([tokenized[i] for i in order], num_workers, batch_size, {}, *later_params)
            results = dict(zip(order, batches, strict=True))
            yield from (results[i] for i in range(len(window)))

    def preprocess(
        self, text: str | _Tokenized, truncation: bool = False, src_lang: str | None = None, tgt_lang: str | None = None
    ) -> dict[str, torch.Tensor]:
        if isinstance(text, _Tokenized):
            return text
        _refuse_other_than_text(text)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        options: dict[str, Any] = {}
        is_own = self.model.config.model_type == "lvnar"  # ids with one special token, the last: cut below
        if truncation and limit is not None and not is_own:
            options = {"truncation": True, "max_length": limit}
        if hasattr(self.tokenizer, "_build_translation_inputs"):  # mBART, NLLB, M2M100
            inputs = self.tokenizer._build_translation_inputs(
                text, return_tensors="pt", src_lang=src_lang, tgt_lang=tgt_lang, **options
            )
        else:
            task_parameters = (getattr(self.model.config, "task_specific_params", None) or {}).get(self.task, {})
            prefix = task_parameters.get("prefix") or getattr(self.model.config, "prefix", None) or ""  # T5
            # Not verbose: what is too long is refused or cut below.
            inputs = self.tokenizer(prefix + text, return_tensors="pt", verbose=False, **options)
        inputs.pop("token_type_ids", None)
        if truncation and is_own and limit is not None:  # not by the tokenizer, whose truncation its callers share
            kept = [*range(limit - 1), -1]
            inputs = {name: v[:, kept] if v.shape[1] > limit else v for name, v in inputs.items()}
        length = inputs["input_ids"].shape[1]
        if limit is not None and length > limit:
            raise ValueError(
                f"The text has {length} tokens; the model takes at most {limit}. Pass truncation=True to cut it, or "
                f"split it. It begins: {text[:60]!r}"
            )
        return {**inputs, "is_empty": torch.tensor([[int(not text.strip())]])}

    def _forward(self, model_inputs: dict[str, torch.Tensor], **generate_kwargs: Any) -> dict[str, torch.Tensor]:
        is_empty = model_inputs.pop("is_empty")
        if self.model.config.model_type == "lvnar":
            generate_kwargs = {"tokenizer": self.tokenizer, **generate_kwargs}
        output = self.model.generate(**model_inputs, **generate_kwargs)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        # (batch, translations of a text, length)
        outputs = {"output_ids": sequences.view(len(is_empty), -1, sequences.shape[-1]), "is_empty": is_empty}
        if getattr(output, "token_confidences", None) is not None:
            outputs["token_confidences"] = output.token_confidences.view_as(outputs["output_ids"])
            outputs["sentence_confidences"] = output.sentence_confidences.view(len(is_empty), -1)
        return outputs

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], return_tensors: bool = False, return_confidence: bool = False
    ) -> list[dict]:
        is_empty = bool(model_outputs["is_empty"].any())
        results = []
        for choice, token_ids in enumerate(model_outputs["output_ids"][0]):
            text = "" if is_empty else self.tokenizer.decode(token_ids, skip_special_tokens=True)
            result: dict[str, Any] = {"translation_text": text}
            if return_tensors:
                result["translation_token_ids"] = token_ids
            if return_confidence:
                confidences = (model_outputs[f"{of}_confidences"][0, choice] for of in ("token", "sentence"))
                result |= self._describe_confidence(text, token_ids, *confidences)
            results.append(result)
        return results

    def _join_confidence(
        self, result: dict[str, Any], text: str, text_format: TextFormat, scored: dict[str, dict]
    ) -> dict[str, Any]:
        """What `return_confidence` adds to the result of a text, from those of its sentences."""
        levels: list[list[dict]] = []

        def recall(sentences: list[str]) -> list[list[str]]:
            levels.append([scored[sentence] for sentence in sentences])
            return [[draft["translation_text"]] for draft in levels[-1]]

        text_format.translate([text], recall)  # put together again, to see of which sentences
        words = place_words(result["translation_text"], text, [[draft["words"] for draft in level] for level in levels])
        weights = [(len(draft["words"]), draft["confidence"]) for level in levels[:1] for draft in level]
        total = sum(number for number, _ in weights)
        confidence = sum(number * confidence for number, confidence in weights) / total if total else 1.0
        return {"words": words, "confidence": confidence, "is_calibrated": self.model.calibration is not None}

    def _describe_confidence(
        self, text: str, token_ids: torch.Tensor, of_tokens: torch.Tensor, of_sentence: torch.Tensor
    ) -> dict[str, Any]:
        """What `return_confidence` adds."""
        calibration = self.model.calibration
        spans = word_spans(self.tokenizer, token_ids.tolist(), of_tokens.tolist()) if text else []
        confidences = torch.tensor([span.probability for span in spans], dtype=torch.float64)
        threshold = 0.0
        if calibration is not None:
            confidences, threshold = calibration.words(confidences), calibration.threshold
        words = [
            ScoredWord(
                text=text[span.start : span.end],
                start=span.start,
                end=span.end,
                confidence=confidence,
                is_uncertain=confidence < threshold,
                is_copied=False,
            )
            for span, confidence in zip(spans, confidences.tolist(), strict=True)
        ]
        confidence = float(of_sentence) if text else 1.0
        return {"words": words, "confidence": confidence, "is_calibrated": calibration is not None}

    def __call__(self, texts: Any, **kwargs: Any) -> Any:
        if isinstance(texts, Iterator):  # of these, the base class takes generators alone
            texts = (text for text in texts)
        elif hasattr(texts, "tolist") or (isinstance(texts, Sequence) and not isinstance(texts, str)):
            texts = texts.tolist() if hasattr(texts, "tolist") else list(texts)  # an array, a tuple, a column
            if not texts:  # the base class looks at the first one
                return []
        results = super().__call__(texts, **kwargs)
        if isinstance(texts, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results
