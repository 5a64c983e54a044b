"""`lvnar`: its commands, and how they end."""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lvnar_hf.commands.errors import explain
from lvnar_hf.commands.export import export
from lvnar_hf.commands.info import info
from lvnar_hf.commands.page import page
from lvnar_hf.commands.publish import publish
from lvnar_hf.commands.serve import serve
from lvnar_hf.commands.translate import translate
from lvnar_hf.commands.verify import verify
from lvnar_hf.version import __version__

# Errors whose message tells the user enough; the others are defects and keep their traceback.
_TOLD = (ImportError, OSError, RuntimeError, ValueError)


class _Commands(TyperGroup):
    """Ends with one line where that is enough."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            command = f"lvnar {ctx.invoked_subcommand}"
            line = explain(error, command)
            if line is None and isinstance(error, _TOLD):
                line = f"{command}: {error}"
            if line is None or ctx.params["debug"]:
                raise
            print(line, file=sys.stderr)
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from error


app = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show Python's traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Latent-variable non-autoregressive translation: translate, serve, export, verify and publish models."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know a translation's letters


for _command in (translate, serve, export, info, verify, publish):
    app.command()(_command)
app.command("app")(page)
