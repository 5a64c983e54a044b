"""`lvnar app`: the page on which refinement is watched."""

from typing import Annotated

from typer import Option


def page(
    model: Annotated[str, Option(help="Model folder or Hub id.")],
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int | None, Option(help="By default the first free one from 7860 on.", show_default=False)] = None,
) -> None:
    """Show a page with the translation of a text after each refinement step, what changed marked.

    Type or paste a text; a slider goes through the steps, with the time and the lower bound of each, by PyTorch or, if
    `lvnar export` has made its graph, ONNX Runtime in int8. Ctrl-C ends it.
    """
    from transformers.utils import logging

    from lvnar_hf.serving.page import build_page, launch

    logging.disable_progress_bar()
    launch(build_page(model), host, port)
