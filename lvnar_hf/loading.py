"""Models and tokenizers as the commands load them: of any sequence-to-sequence kind, and never with code of theirs.

What is unusual: transformers asks on standard input whether code may run, where nobody has said so; a line of the text
to translate would be its answer. So nothing but `trust_remote_code=False` is ever handed on here.
"""

import os
from collections.abc import Callable
from typing import Any

import lvnar_hf  # noqa: F401  (registers the model)


def load_model(name: str | os.PathLike, **options: Any) -> Any:
    """A sequence-to-sequence model from a folder or the Hub.

    Args:
        options: as of the `from_pretrained` of transformers.

    Raises:
        OSError: there is none.
        ValueError: it needs code that is in its repository, or its JSON is nested too deep.
    """
    from transformers import AutoModelForSeq2SeqLM

    return _load(AutoModelForSeq2SeqLM.from_pretrained, name, options)


def load_tokenizer(name: str | os.PathLike, **options: Any) -> Any:
    """The tokenizer of a model; arguments and errors as of `load_model`."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, name, options)


def load_config(name: str | os.PathLike, **options: Any) -> Any:
    """The configuration of a model; arguments and errors as of `load_model`."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, name, options)


def _load(load: Callable[..., Any], name: str | os.PathLike, options: dict[str, Any]) -> Any:
    try:
        return load(name, trust_remote_code=False, **options)
    except RecursionError as error:  # transformers reads the files before this package's classes do
        raise ValueError(f"A JSON file of {name} is nested too deep: {error}.") from error
