"""Latent-variable non-autoregressive machine translation for transformers.

Importing the package registers the model with the Auto classes and brings `pipeline("translation")` back where
transformers has removed it. That registration is global to the process, so the pipeline serves other models as well.
"""

import re

from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, pipelines

from .configuration_lvnar import LvnarConfig
from .generation_lvnar import LvnarGenerateOutput
from .modeling_lvnar import LvnarForConditionalGeneration, LvnarOutput
from .pipeline_lvnar import LvnarTranslationPipeline
from .tokenization_lvnar import LvnarTokenizer
from .tokenizer_training import train_tokenizer
from .version import __version__

__all__ = [
    "LvnarConfig",
    "LvnarForConditionalGeneration",
    "LvnarGenerateOutput",
    "LvnarOutput",
    "LvnarTokenizer",
    "LvnarTranslationPipeline",
    "__version__",
    "train_tokenizer",
]


class _TaskAliases(dict):
    """The aliases of the pipeline registry, and `translation_XX_to_YY` for `translation`."""

    _pattern = re.compile(r"translation_[^_]+_to_[^_]+")

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) or (isinstance(task, str) and self._pattern.fullmatch(task) is not None)

    def __missing__(self, task: str) -> str:
        if task in self:
            return "translation"
        raise KeyError(task)


def _register() -> None:
    AutoConfig.register("lvnar", LvnarConfig)
    AutoModelForSeq2SeqLM.register(LvnarConfig, LvnarForConditionalGeneration)
    AutoTokenizer.register(LvnarConfig, fast_tokenizer_class=LvnarTokenizer)
    # So that `save_pretrained` and `push_to_hub` put these modules beside the weights.
    LvnarConfig.register_for_auto_class()
    LvnarForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
    LvnarTokenizer.register_for_auto_class("AutoTokenizer")

    registry = pipelines.PIPELINE_REGISTRY
    native = registry.supported_tasks.pop("translation", None)  # transformers 4 has its own
    LvnarTranslationPipeline.native_class = None if native is None else native["impl"]
    registry.register_pipeline(
        "translation", pipeline_class=LvnarTranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
    )
    registry.task_aliases = _TaskAliases(registry.task_aliases)
    # Private to transformers: `pipeline()` raises for these names before it asks the registry.
    getattr(pipelines, "REMOVED_TASKS", {}).pop("translation", None)


_register()
