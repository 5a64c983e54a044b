"""The tests of loading once more, on the oldest supported transformers; a file of its own, to run beside the others.

By remote code alone, and from files as they should be: `make matrix` has all of them, on every version.
"""

import os
import subprocess

import pytest
from conftest import ROOT, other_python, other_versions


@pytest.mark.skipif(not other_versions(), reason="LVNAR_ENVIRONMENTS names no folder with environments in it")
def test_loading_on_the_oldest_version():
    version = other_versions()[0]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [other_python(version), "-m", "pytest", "-p", "no:cacheprovider", "tests/model/test_loading.py"]
    command += ["-k", "not package] and not both] and not cold_cache and not fast"]
    environment["LVNAR_TRANSFORMERS"] = version
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-1000:]
