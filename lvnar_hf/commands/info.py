"""`lvnar info`: what a model is, and which engines it has."""

from typing import Annotated

from typer import Argument


def info(model: Annotated[str, Argument(help="Model folder or Hub id.", show_default=False)]) -> None:
    """Show a model's languages, alignment, sizes, files, and which engines are there and made from its weights."""
    from lvnar_hf.hub.description import describe_model

    described = describe_model(model)
    width = max(map(len, described))
    for name, value in described.items():
        print(f"{name:<{width}}  {value}")
