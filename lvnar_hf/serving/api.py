"""The server's answers: LibreTranslate's `/translate`, `/languages` and `/detect`; `/health`, `/metrics` and `/docs`.

What is unusual: nothing of a request goes to the log, but how it ended, in a word; an error that nobody expected leaves
its class and the place in the code.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from lvnar_hf.serving.metrics import Metrics
from lvnar_hf.serving.requests import ErrorResponse, TranslateRequest, TranslateResponse, parse_request, read_body
from lvnar_hf.serving.settings import Limits
from lvnar_hf.serving.translations import Pairs, RefusedError
from lvnar_hf.version import __version__

logger = logging.getLogger("lvnar_hf.serving")

_SCHEMA = {"schema": {"$ref": "#/components/schemas/TranslateRequest"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": _SCHEMA, "application/x-www-form-urlencoded": _SCHEMA},
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is not understood, or cannot be translated."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "Too many characters."},
    415: {"model": ErrorResponse, "description": "Neither JSON nor a form."},
    503: {"model": ErrorResponse, "description": "Too many requests wait; Retry-After says for how many seconds."},
    504: {"model": ErrorResponse, "description": "The translation was not ready in time."},
}


class Server:
    """What answers requests to translate.

    Args:
        pairs: the models.
        limits: what is taken.
        metrics: where it is counted.
    """

    def __init__(self, pairs: Pairs, limits: Limits, metrics: Metrics) -> None:
        self.pairs, self.limits, self.metrics = pairs, limits, metrics
        self._num_waiting = 0
        self._threads = ThreadPoolExecutor(limits.max_waiting, thread_name_prefix="lvnar-request")

    def close(self) -> None:
        """Finish what is begun."""
        self._threads.shutdown()
        self.pairs.close()
        self.metrics.close()

    async def answer(self, request: Request) -> Response:
        """The answer to any request to translate; never raises, but when it is cancelled."""
        started = time.monotonic()
        kind, headers = "ok", {}
        try:
            content = await self._translate(request, started)
            response: Response = JSONResponse(content)
            self.metrics.seconds.observe(time.monotonic() - started)
        except ClientDisconnect:
            kind, response = "cut", Response(status_code=400)
        except Exception as error:
            status, kind, message = _explain(error)
            if status == 503:
                headers["Retry-After"] = "1"
            response = JSONResponse({"error": message}, status, headers)
        if kind != "ok":
            logger.info("%d %s", response.status_code, kind)
        self.metrics.requests.labels(kind).inc()
        return response

    async def _translate(self, request: Request, started: float) -> dict[str, Any]:
        max_characters, timeout = self.limits.max_characters, self.limits.timeout
        try:
            body = await asyncio.wait_for(read_body(request, max_characters), timeout)
        except asyncio.TimeoutError:
            raise RefusedError(408, "slow", f"The request did not arrive within {timeout:g} seconds.") from None
        asked = parse_request(body, request.headers.get("content-type", ""), max_characters)
        model, source = self.pairs.find(asked.source, asked.target)
        if self._num_waiting >= self.limits.max_waiting:
            raise RefusedError(503, "busy", "Too many requests wait here: come again in a second.")
        self._num_waiting += 1
        self.metrics.waiting.inc()
        try:
            translations = await asyncio.get_running_loop().run_in_executor(
                self._threads, model.translate, asked.texts, started + timeout, asked.format == "html"
            )
        finally:
            self._num_waiting -= 1
            self.metrics.waiting.dec()
        self.metrics.characters.inc(sum(map(len, asked.texts)))
        content: dict[str, Any] = {"translatedText": translations[0] if isinstance(asked.q, str) else translations}
        if asked.source == "auto":
            content["detectedLanguage"] = {"confidence": 0.0, "language": source}
        return content


class _Shortcut:
    """Middleware that hands requests to translate to the server: the way through FastAPI's routes costs much of one."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/translate" and scope["method"] == "POST":
            response = await self._server.answer(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _explain(error: Exception) -> tuple[int, str, str]:
    """Status, kind and message of an error."""
    if isinstance(error, RefusedError):
        return error.status, error.kind, str(error)
    if isinstance(error, TimeoutError):
        return 504, "timeout", "The translation was not ready in time: send less at once, or come again later."
    place = traceback.extract_tb(error.__traceback__)[-1]
    return 500, f"{type(error).__name__} at {place.filename}:{place.lineno}", "The server has failed at this request."


def create_app(pairs: Pairs, limits: Limits, metrics: Metrics | None = None) -> FastAPI:
    """The application, for any server of ASGI.

    Args:
        pairs: the models; they are closed with the application.
        limits: what is taken.
        metrics: where it is counted, if the models were told of it.
    """
    server = Server(pairs, limits, metrics or Metrics())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    app = FastAPIOffline(  # its page of what can be asked loads nothing from elsewhere
        redoc_url=None,
        title="LVNAR-HF",
        version=__version__,
        summary="Translation with the requests and answers of LibreTranslate.",
        lifespan=lifespan,
    )

    app.add_middleware(_Shortcut, server=server)

    @app.exception_handler(HTTPException)
    async def explain_status(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.post(
        "/translate",
        response_model=TranslateResponse,
        responses=_ERRORS,
        openapi_extra=_BODY,
        summary="Translate a text, or a list of texts.",
    )
    async def translate(request: Request) -> Response:  # for the description: `_Shortcut` comes before it
        return await server.answer(request)

    @app.get("/languages", summary="The languages, each with those it is translated to.")
    async def languages() -> list[dict[str, Any]]:
        return server.pairs.languages()

    @app.post("/detect", summary="The source language, where there is one; nothing is measured.")
    async def detect() -> Response:
        sources = server.pairs.sources()
        if len(sources) > 1:
            message = f"This server does not detect languages; its source languages are {', '.join(sources)}."
            return JSONResponse({"error": message}, 400)
        return JSONResponse([{"confidence": 0.0, "language": sources[0]}])

    @app.get("/health", summary="Whether it runs.")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="For Prometheus.", response_class=Response)
    async def render_metrics() -> Response:
        return Response(await asyncio.to_thread(server.metrics.render), media_type="text/plain; version=0.0.4")

    openapi = app.openapi

    def with_request() -> dict[str, Any]:
        """The schema of the request too, which is read by hand."""
        schema = openapi()
        schema["components"]["schemas"].setdefault("TranslateRequest", TranslateRequest.model_json_schema())
        return schema

    app.openapi = with_request  # type: ignore[method-assign]
    return app
