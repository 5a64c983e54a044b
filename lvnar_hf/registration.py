"""Registration with transformers, done when a part of transformers is imported that has to know of this package.

What is unusual: `import lvnar_hf` imports neither torch nor the Auto classes, which takes seconds. It leaves a finder
on `sys.meta_path` that lets modules load as ever and sees when they are complete; each of `_REGISTRATIONS` is then done
once the modules that it needs are. What was imported before is registered at once.

The registration is global to the process: `pipeline("translation")`, which transformers 5 has dropped, serves any
model.
"""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NamedTuple


class _TaskAliases(dict):
    """The aliases of the pipeline registry, and `translation_XX_to_YY` for `translation`."""

    _pattern = re.compile(r"translation_[^_]+_to_[^_]+")

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) or (isinstance(task, str) and self._pattern.fullmatch(task) is not None)

    def __missing__(self, task: str) -> str:
        if task in self:
            return "translation"
        raise KeyError(task)


class _NoDefaultModel(dict):
    """Stands where the registry keeps the model of a task for calls that name none."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        raise ValueError('pipeline("translation") has no default model: pass model=, a folder or an id of the Hub.')


class _DeferredModel(type):
    """The class of a class that stands for the model until it is asked for anything but its configuration."""

    def __getattr__(cls, name: str) -> Any:
        from .modeling_lvnar import LvnarForConditionalGeneration

        return getattr(LvnarForConditionalGeneration, name)


def _register_config() -> None:
    from transformers import AutoConfig

    from .configuration_lvnar import LvnarConfig

    AutoConfig.register("lvnar", LvnarConfig, exist_ok=True)
    # So that `save_pretrained` and `push_to_hub` put the modules beside the weights; so below.
    LvnarConfig.register_for_auto_class()


def _register_tokenizer() -> None:
    from transformers import AutoTokenizer

    from .configuration_lvnar import LvnarConfig
    from .tokenization_lvnar import LvnarTokenizer

    AutoTokenizer.register(LvnarConfig, fast_tokenizer_class=LvnarTokenizer, exist_ok=True)
    LvnarTokenizer.register_for_auto_class("AutoTokenizer")


def _register_deferred_model() -> None:
    # Not the model itself: transformers' own modeling modules import this Auto class before they are complete.
    from transformers import AutoModelForSeq2SeqLM

    from .configuration_lvnar import LvnarConfig

    AutoModelForSeq2SeqLM.register(
        LvnarConfig, _DeferredModel("Lvnar", (), {"config_class": LvnarConfig}), exist_ok=True
    )


def _register_model() -> None:
    from transformers import AutoModelForSeq2SeqLM

    from .configuration_lvnar import LvnarConfig
    from .modeling_lvnar import LvnarForConditionalGeneration

    AutoModelForSeq2SeqLM.register(LvnarConfig, LvnarForConditionalGeneration, exist_ok=True)
    LvnarForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")


def _register_pipeline() -> None:
    from transformers import AutoModelForSeq2SeqLM, pipelines

    from .pipeline_lvnar import LvnarTranslationPipeline

    registry = pipelines.PIPELINE_REGISTRY
    native = registry.supported_tasks.pop("translation", None)  # transformers 4 has its own
    LvnarTranslationPipeline.native_class = None if native is None else native["impl"]
    registry.register_pipeline(
        "translation",
        pipeline_class=LvnarTranslationPipeline,
        pt_model=AutoModelForSeq2SeqLM,
        default=_NoDefaultModel(),
        type="text",
    )
    registry.task_aliases = _TaskAliases(registry.task_aliases)
    # Private to transformers: `pipeline()` raises for these names before it asks the registry.
    getattr(pipelines, "REMOVED_TASKS", {}).pop("translation", None)


_AUTO = "transformers.models.auto"


class _Registration(NamedTuple):
    """What is done once a module of transformers and one of this package are both complete.

    Either brings the other with it; but what waits for the model itself waits for this package's module alone.
    """

    theirs: str
    ours: str
    register: Callable[[], None]
    waits_for_ours: bool = False


_REGISTRATIONS = (
    _Registration(f"{_AUTO}.configuration_auto", "lvnar_hf.configuration_lvnar", _register_config),
    _Registration(f"{_AUTO}.tokenization_auto", "lvnar_hf.tokenization_lvnar", _register_tokenizer),
    _Registration(f"{_AUTO}.modeling_auto", "lvnar_hf.configuration_lvnar", _register_deferred_model),
    _Registration(f"{_AUTO}.modeling_auto", "lvnar_hf.modeling_lvnar", _register_model, waits_for_ours=True),
    _Registration("transformers.pipelines", "lvnar_hf.pipeline_lvnar", _register_pipeline),
)
_WATCHED = {name for registration in _REGISTRATIONS for name in registration[:2]}
_complete: set[str] = set()  # of the watched modules
_done: set[_Registration] = set()


def _register_with(name: str) -> None:
    """Do what a module that is now complete was needed for, unless another has only begun: its end comes here too."""
    for registration in _REGISTRATIONS:
        theirs, ours, register, waits_for_ours = registration
        if name != ours and (name != theirs or waits_for_ours):
            continue
        if any(module in sys.modules and module not in _complete for module in (theirs, ours)):
            continue
        importlib.import_module(theirs)
        importlib.import_module(ours)
        if registration not in _done:  # by these imports
            _done.add(registration)
            register()


class _Finder(MetaPathFinder):
    """Finds the watched modules where Python finds them, and sees when they are complete."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _WATCHED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _complete.add(fullname)
            _register_with(fullname)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_when_needed() -> None:
    """Register with what is imported of transformers, and with the rest when it is."""
    sys.meta_path.insert(0, _Finder())
    _complete.update(_WATCHED & sys.modules.keys())
    for name in sorted(_complete):
        _register_with(name)
