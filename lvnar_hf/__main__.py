"""`python -m lvnar_hf` is `lvnar`."""

from lvnar_hf.commands.app import app

app(prog_name="lvnar")
