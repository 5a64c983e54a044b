"""The application with its models, in this process or in one that `serve` has started."""

import json
import logging
import os
import sys
import threading
import warnings
from typing import Any

import torch
import transformers
from fastapi import FastAPI

from lvnar_hf.jobs.line_translator import load_translator
from lvnar_hf.jobs.processes import end_with_parent
from lvnar_hf.serving.api import create_app
from lvnar_hf.serving.metrics import Metrics
from lvnar_hf.serving.settings import SETTINGS_VARIABLE, STARTUP_FAILURE, ServerSettings
from lvnar_hf.serving.translations import Pairs, PairTranslator


def load_app(settings: ServerSettings) -> FastAPI:
    """The application with its models, which are loaded and have each translated a sentence."""
    transformers.utils.logging.disable_progress_bar()
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    metrics = Metrics()
    translators = []
    for name in settings.models:
        options = (settings.engine, settings.num_refinement_steps, settings.max_batch_tokens)
        translator = load_translator(name, *options, preserve_format=True)
        translator.translate(["1."])
        translators.append(PairTranslator(translator, settings.batch_window_ms / 1000, metrics.on_batch))
    app = create_app(Pairs(translators), settings, metrics)
    # Warnings may quote a text: of them too, the kind alone goes to the log.
    warnings.showwarning = _log_warning  # type: ignore[assignment]
    return app


def _log_warning(message: Any, category: type[Warning], *place: Any) -> None:
    logging.getLogger("lvnar_hf.serving").warning("%s", category.__name__)


def app_from_environment() -> FastAPI:
    """The application of a process that `serve` has started, and that ends with it, however it ends."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        return load_app(ServerSettings(**json.loads(os.environ[SETTINGS_VARIABLE])))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"lvnar serve: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)
