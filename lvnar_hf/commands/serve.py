"""`lvnar serve`: a server with the requests and answers of LibreTranslate."""

from typing import Annotated

from typer import Option

from lvnar_hf.engines import ENGINES


def serve(
    model: Annotated[list[str], Option(help="Model folder or Hub id; several times, one for each pair of languages.")],
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen at.")] = 5000,
    engine: Annotated[str, Option(help=f"One of {', '.join(ENGINES)}.")] = "auto",
    num_refinement_steps: Annotated[int | None, Option(help="By default the model's own.", show_default=False)] = None,
    batch_window_ms: Annotated[
        float, Option(help="Milliseconds that sentences wait for those of others, when others are there.")
    ] = 2.0,
    max_batch_tokens: Annotated[int, Option(help="Of sentences translated together, padding included.")] = 512,
    max_characters: Annotated[int, Option(help="Of a request; beyond it: 413.")] = 20_000,
    max_waiting: Annotated[int, Option(help="Requests at once, in a process; beyond it: 503 and Retry-After.")] = 256,
    timeout: Annotated[float, Option(help="Seconds of a request; beyond it: 504.")] = 30.0,
    num_workers: Annotated[int, Option(help="Processes, each with all models; they share the cores.")] = 1,
) -> None:
    """Translate for clients of LibreTranslate, on the CPU: POST /translate, GET /languages.

    Requests that wait together are translated together. /docs shows what can be asked, /health whether it runs, and
    /metrics counts for Prometheus. No text goes to the log. Ctrl-C, or SIGTERM, ends it when what is begun is done.
    """
    from lvnar_hf.serving.run import serve as run
    from lvnar_hf.serving.settings import ServerSettings

    settings = ServerSettings(
        models=model,
        engine=engine,
        num_refinement_steps=num_refinement_steps,
        batch_window_ms=batch_window_ms,
        max_batch_tokens=max_batch_tokens,
        max_characters=max_characters,
        max_waiting=max_waiting,
        timeout=timeout,
    )
    run(settings, host, port, num_workers)
