"""The server's process, or processes.

What is unusual: where there are several, the one that starts them imports no model's code, and holds none.
"""

import copy
import dataclasses
import json
import os
import socket
import tempfile
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG
from uvicorn.supervisors import Multiprocess

from lvnar_hf.files.outputs import refuse_missing_folder
from lvnar_hf.serving.settings import SETTINGS_VARIABLE, STARTUP_FAILURE, ServerSettings

LONGEST_SILENCE = 30  # seconds, until a process that does not answer is taken for dead: loading holds it up


def serve(settings: ServerSettings, host: str, port: int, num_workers: int) -> None:
    """Serve until a signal comes; what is begun by then is finished.

    Args:
        host, port: to listen at.
        num_workers: processes, each with all models.

    Raises:
        ValueError: a setting is out of its range, or the models do not go together.
        FileNotFoundError: there is no such model.
        RuntimeError: a process could not start; it has said why.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 1.")
    for name in settings.models:
        refuse_missing_folder(name)
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
        from lvnar_hf.serving.loading import load_app

        uvicorn.Server(uvicorn.Config(load_app(settings), **options)).run()
        return
    num_threads = settings.num_threads or max(1, _num_cores() // num_workers)
    with tempfile.TemporaryDirectory(prefix="lvnar-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        os.environ[SETTINGS_VARIABLE] = json.dumps(dataclasses.asdict(settings) | {"num_threads": num_threads})
        config = uvicorn.Config(
            "lvnar_hf.serving.loading:app_from_environment",
            factory=True,
            workers=num_workers,
            timeout_worker_healthcheck=LONGEST_SILENCE,
            **options,
        )
        listener = config.bind_socket()
        # The connections have it from there. asyncio sets it for sockets that it opens itself; without it, the second
        # part of an answer waits 40 ms for the receipt of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        processes = Multiprocess(config, sockets=[listener])
        processes.run()
        if any(one.exitcode == STARTUP_FAILURE for one in processes.processes):
            raise RuntimeError("A process of the server could not start; it says why above.")


def _num_cores() -> int:
    """Those that this process may use, or as many threads as it is told to."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else len(os.sched_getaffinity(0))
