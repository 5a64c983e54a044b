"""The server's process, or processes: models loaded, uvicorn started."""

import copy
import dataclasses
import json
import logging
import os
import tempfile
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG
from uvicorn.supervisors import Multiprocess

from lvnar_hf.jobs.file_translation import end_with_parent
from lvnar_hf.jobs.line_translator import load_translator
from lvnar_hf.serving.api import create_app
from lvnar_hf.serving.metrics import Metrics
from lvnar_hf.serving.translations import Limits, Pairs, PairTranslator

# Hands the settings to the processes that uvicorn starts.
_VARIABLE = "LVNAR_SERVER_SETTINGS"
_LONGEST_LOADING = 600  # seconds


@dataclass(frozen=True)
class ServerSettings:
    """What a server is started with; see `lvnar serve --help`."""

    models: list[str]
    engine: str = "auto"
    num_refinement_steps: int | None = None
    batch_window_ms: float = 2.0
    max_batch_tokens: int = 512
    max_characters: int = Limits.max_characters
    max_waiting: int = Limits.max_waiting
    timeout: float = Limits.timeout
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.batch_window_ms <= 10_000:
            raise ValueError(f"batch_window_ms is {self.batch_window_ms}; it must be from 0 to 10000.")
        self.limits()

    def limits(self) -> Limits:
        """Those of a request."""
        return Limits(self.max_characters, self.max_waiting, self.timeout)


def load_app(settings: ServerSettings) -> FastAPI:
    """The application with its models, which are loaded and have each translated a sentence."""
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    metrics = Metrics()
    translators = []
    for name in settings.models:
        translator = load_translator(
            name,
            settings.engine,
            settings.num_refinement_steps,
            settings.max_batch_tokens,
            preserve_format=True,
        )
        translator.translate(["1."])
        translators.append(PairTranslator(translator, settings.batch_window_ms / 1000, metrics.on_batch))
    app = create_app(Pairs(translators), settings.limits(), metrics)
    # Warnings may quote a text: of them too, the kind alone goes to the log.
    warnings.showwarning = _log_warning  # type: ignore[assignment]
    return app


def _log_warning(message: Any, category: type[Warning], *place: Any) -> None:
    logging.getLogger("lvnar_hf.serving").warning("%s", category.__name__)


def app_from_environment() -> FastAPI:
    """The application of a process that `serve` has started, and that ends with it, however it ends."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    return load_app(ServerSettings(**json.loads(os.environ[_VARIABLE])))


def serve(settings: ServerSettings, host: str, port: int, num_workers: int) -> None:
    """Serve until a signal comes; what is begun by then is finished.

    Args:
        host, port: to listen at.
        num_workers: processes, each with all models.

    Raises:
        ValueError: a setting is out of its range, or the models do not go together.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 1.")
    log_config = copy.deepcopy(LOGGING_CONFIG)
    log_config["loggers"]["lvnar_hf.serving"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "access_log": False,
        "log_config": log_config,
        "server_header": False,
        "ws": "none",
        # A request has its own time; a client that sends none of its body has as much.
        "timeout_graceful_shutdown": int(settings.timeout) + 5,
    }
    if num_workers == 1:
        uvicorn.Server(uvicorn.Config(load_app(settings), **options)).run()
        return
    num_threads = settings.num_threads or max(1, torch.get_num_threads() // num_workers)
    with tempfile.TemporaryDirectory(prefix="lvnar-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        os.environ[_VARIABLE] = json.dumps(dataclasses.asdict(settings) | {"num_threads": num_threads})
        config = uvicorn.Config(
            "lvnar_hf.serving.run:app_from_environment",
            factory=True,
            workers=num_workers,
            timeout_worker_healthcheck=_LONGEST_LOADING,
            **options,
        )
        socket = config.bind_socket()
        Multiprocess(config, sockets=[socket]).run()
