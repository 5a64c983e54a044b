"""n-gram language models for the beam search over the cells of CTC, read by kenlm."""

import importlib
import math
import os
from typing import Any

from transformers import PreTrainedTokenizerBase


class KenlmModel:
    """A `LanguageModel` (`ctc_beam_lvnar`) from a file of kenlm, ARPA or binary, whose words are the subwords.

    It is trained on target text as the tokenizer takes it apart, with spaces between the subwords.

    Args:
        file: the model.
        tokenizer: of this package.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: kenlm is not installed.
        ValueError: it is not a model of kenlm's.
    """

    def __init__(self, file: str | os.PathLike, tokenizer: PreTrainedTokenizerBase):
        if not os.path.isfile(file):
            raise FileNotFoundError(f"There is no language model {file}.")
        try:
            self._kenlm: Any = importlib.import_module("kenlm")
        except ImportError as error:
            raise ImportError(
                "kenlm, which reads language models, is not installed: pip install 'lvnar-hf[lm]'"
            ) from error
        try:
            self._model = self._kenlm.Model(os.fspath(file))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file} is not a language model of kenlm's: {error}") from error
        backend: Any = tokenizer.target_backend_tokenizer  # type: ignore[attr-defined]
        self._subwords = [backend.id_to_token(token_id) for token_id in range(backend.get_vocab_size())]

    def start(self) -> Any:
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def extend(self, state: Any, token_id: int) -> tuple[Any, float]:
        following = self._kenlm.State()
        score = self._model.BaseScore(state, self._subwords[token_id], following)  # a logarithm to base 10
        return following, score * math.log(10)
