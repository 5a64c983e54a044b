"""A model repository for a user who may not have this package: put together, verified, published.

Each name is imported when it is first asked for. (The modules are named otherwise than the functions: the import of a
submodule puts it here under its own name.)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import assemble, published_card
    from .publishing import PublishedRevision, PublishError, push
    from .verification import GOLDEN_TEXTS, golden_texts, verify

__all__ = [
    "GOLDEN_TEXTS",
    "PublishError",
    "PublishedRevision",
    "assemble",
    "golden_texts",
    "published_card",
    "push",
    "verify",
]

_MODULES = {
    "GOLDEN_TEXTS": "verification",
    "PublishError": "publishing",
    "PublishedRevision": "publishing",
    "assemble": "assembly",
    "golden_texts": "verification",
    "published_card": "assembly",
    "push": "publishing",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
