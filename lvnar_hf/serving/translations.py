"""The models of a server, by their languages, and what one request asks of them."""

import time
from collections.abc import Callable, Sequence

from lvnar_hf.jobs.line_translator import LineTranslator
from lvnar_hf.serving.batching import SentenceBatches
from lvnar_hf.serving.html_text import translate_html

# English names of languages that models of translation are often made for; of others, the code is the name.
LANGUAGE_NAMES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German"},
    "el": "Greek",
    **{"en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish"},
    **{"fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian"},
    **{"ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "no": "Norwegian"},
    **{"pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian"},
    **{"sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese"},
}


class RefusedError(Exception):
    """A request that is not answered with a translation.

    Attributes:
        status: of HTTP.
        kind: a word for logs and metrics, which holds nothing of the request.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class PairTranslator:
    """One model; its requests are translated together.

    Args:
        translator: with a text format, as `load_translator` makes it with `preserve_format=True`.
        window_seconds, on_batch: of `SentenceBatches`.
    """

    def __init__(
        self,
        translator: LineTranslator,
        window_seconds: float = 0.002,
        on_batch: Callable[[int, int], None] = lambda sentences, requests: None,
    ) -> None:
        if translator.text_format is None:
            raise ValueError("The translator has no text format: load it with preserve_format=True.")
        self.translator, self._text_format = translator, translator.text_format
        self._limit = getattr(translator.model.config, "max_position_embeddings", None)
        self.batches = SentenceBatches(
            lambda source_ids: translator.translate_ids(source_ids)[0],
            translator.max_batch_tokens,
            window_seconds,
            on_batch,
        )

    def translate(self, texts: Sequence[str], deadline: float, is_html: bool = False) -> list[str]:
        """The translations of texts, or of pages in HTML, as of one request.

        Args:
            deadline: by `time.monotonic()`.

        Raises:
            TimeoutError: the deadline has passed.
            RefusedError: a sentence is longer than the model takes.
        """

        def translate_sentences(sentences: list[str]) -> list[list[str]]:
            if time.monotonic() > deadline:
                raise TimeoutError("The translation takes longer than a request may.")
            source_ids = self.translator.tokenizer(sentences, verbose=False)["input_ids"]
            longest = max(map(len, source_ids))
            if self._limit is not None and longest > self._limit:
                raise RefusedError(
                    400,
                    "long_sentence",
                    f"A sentence has {longest} tokens, and no clause to part it at; the model takes {self._limit}.",
                )
            return [[text] for text in self.batches.translate(source_ids, deadline)]

        def translate_texts(plain: Sequence[str]) -> list[str]:
            return [text for (text,) in self._text_format.translate(plain, translate_sentences)]

        if is_html:
            return [translate_html(text, translate_texts) for text in texts]
        return translate_texts(texts)


class Pairs:
    """The models of a server by source and target language."""

    def __init__(self, translators: Sequence[PairTranslator]) -> None:
        self._by_pair: dict[tuple[str, str], PairTranslator] = {}
        for one in translators:
            config = one.translator.model.config
            source, target = (getattr(config, f"{side}_language", None) for side in ("source", "target"))
            if source is None or target is None:
                raise ValueError(
                    "A model has no source_language or no target_language in its config.json: a server finds models "
                    "by them. Write both there."
                )
            if (source, target) in self._by_pair:
                raise ValueError(f"Two models translate from {source} to {target}: give one of them.")
            self._by_pair[source, target] = one

    def find(self, source: str, target: str) -> tuple[PairTranslator, str]:
        """The model for two languages, and its source language; "auto" is the only one that has this target.

        Raises:
            RefusedError: there is none; or several, for "auto".
        """
        known = ", ".join(f"{one} to {other}" for one, other in sorted(self._by_pair))
        if source == "auto":
            sources = [one for one, other in self._by_pair if other == target]
            if len(sources) > 1:
                raise RefusedError(
                    400, "language", f"source is 'auto', and several languages could be meant: {', '.join(sources)}."
                )
            source = sources[0] if sources else source
        if (source, target) not in self._by_pair:
            raise RefusedError(400, "language", f"This server does not translate that; it translates {known}.")
        return self._by_pair[source, target], source

    def languages(self) -> list[dict[str, object]]:
        """What LibreTranslate answers: code, name and targets of each language, those without a target too."""
        codes = sorted({code for pair in self._by_pair for code in pair})
        return [
            {
                "code": code,
                "name": LANGUAGE_NAMES.get(code.split("-")[0].split("_")[0], code),
                "targets": sorted(target for source, target in self._by_pair if source == code),
            }
            for code in codes
        ]

    def sources(self) -> list[str]:
        """The source languages."""
        return sorted({source for source, _ in self._by_pair})

    def close(self) -> None:
        """Translate what waits, and end the threads."""
        for one in self._by_pair.values():
            one.batches.close()
