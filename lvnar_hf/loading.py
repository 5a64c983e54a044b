"""Models and tokenizers as the commands load them: of any sequence-to-sequence kind, and never with code of theirs.

What is unusual: transformers asks on standard input whether code may run, where nobody has said so; a line of the text
to translate would be its answer. So nothing but `trust_remote_code=False` is ever handed on here.
"""

import os
from typing import Any

import lvnar_hf  # noqa: F401  (registers the model)


def load_model(name: str | os.PathLike, **options: Any) -> Any:
    """A sequence-to-sequence model from a folder or the Hub.

    Args:
        options: as of the `from_pretrained` of transformers.

    Raises:
        OSError: there is none.
        ValueError: it needs code that is in its repository.
    """
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=False, **options)


def load_tokenizer(name: str | os.PathLike, **options: Any) -> Any:
    """The tokenizer of a model; arguments and errors as of `load_model`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def load_config(name: str | os.PathLike, **options: Any) -> Any:
    """The configuration of a model; arguments and errors as of `load_model`."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
