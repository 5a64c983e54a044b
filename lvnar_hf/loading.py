"""Models and tokenizers as the commands load them: of any sequence-to-sequence kind, and never with code of theirs.

What is unusual: transformers asks on standard input whether code may run, where nobody has said so; a line of the text
to translate would be its answer. So nothing but `trust_remote_code=False` is ever handed on here.
"""

import os
from collections.abc import Callable, Mapping
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


def load_search(
    options: Mapping[str, Any] | None, device: Any = "cpu", precision: str | None = None, num_threads: int = 0
) -> dict[str, Any]:
    """Arguments of `generate` for a search, from those of a command.

    Args:
        options: names of `SearchOptions` to their values; what is None is left out; the rescorer as a folder or Hub id.
        device: of the rescorer.
        precision, num_threads: the rescorer is a graph, see `OnnxRescorer.from_pretrained`.

    Raises:
        OSError, ValueError: as `load_model`, or as `OnnxRescorer.from_pretrained`.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if "rescorer" in given and precision is not None:
        from lvnar_hf.engines.search import OnnxRescorer

        given["rescorer"] = OnnxRescorer.from_pretrained(given["rescorer"], precision, num_threads)
    elif "rescorer" in given:
        given["rescorer"] = load_model(given["rescorer"]).float().eval().to(device)
    return given


def _load(load: Callable[..., Any], name: str | os.PathLike, options: dict[str, Any]) -> Any:
    try:
        return load(name, trust_remote_code=False, **options)
    except RecursionError as error:  # transformers reads the files before this package's classes do
        raise ValueError(f"A JSON file of {name} is nested too deep: {error}.") from error
