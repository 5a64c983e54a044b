"""The tests of the page, where gradio is; a file of its own, to run beside the others."""

import os
from pathlib import Path

import pytest
from conftest import run_tests_elsewhere


@pytest.mark.skipif(
    "LVNAR_ENVIRONMENTS" not in os.environ, reason="LVNAR_ENVIRONMENTS names no folder: see the Makefile"
)
def test_the_page_in_its_environment():
    python = Path(os.environ["LVNAR_ENVIRONMENTS"]) / "app" / "bin" / "python"
    run_tests_elsewhere(str(python), "tests/app", HF_HUB_OFFLINE="1")
