"""Latent-variable non-autoregressive machine translation for transformers.

Importing the package registers the model with the Auto classes and brings `pipeline("translation")` back where
transformers has removed it: see registration.py. What it exports is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_when_needed
from .version import __version__

if TYPE_CHECKING:
    from .configuration_lvnar import LvnarConfig
    from .engines.compiled import LvnarCompiledModel
    from .engines.onnx import LvnarOnnxModel
    from .generation_lvnar import LvnarGenerateOutput
    from .losses_lvnar import LvnarOutput
    from .modeling_lvnar import LvnarForConditionalGeneration
    from .pipeline_lvnar import LvnarTranslationPipeline
    from .tokenization_lvnar import LvnarTokenizer
    from .tokenizer_training import train_tokenizer

__all__ = [
    "LvnarCompiledModel",
    "LvnarConfig",
    "LvnarForConditionalGeneration",
    "LvnarGenerateOutput",
    "LvnarOnnxModel",
    "LvnarOutput",
    "LvnarTokenizer",
    "LvnarTranslationPipeline",
    "__version__",
    "train_tokenizer",
]

_MODULES = {
    "LvnarCompiledModel": "engines.compiled",
    "LvnarConfig": "configuration_lvnar",
    "LvnarForConditionalGeneration": "modeling_lvnar",
    "LvnarGenerateOutput": "generation_lvnar",
    "LvnarOnnxModel": "engines.onnx",
    "LvnarOutput": "losses_lvnar",
    "LvnarTokenizer": "tokenization_lvnar",
    "LvnarTranslationPipeline": "pipeline_lvnar",
    "train_tokenizer": "tokenizer_training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


register_when_needed()
