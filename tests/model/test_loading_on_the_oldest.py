"""The tests of loading once more, on the oldest supported transformers; a file of its own, to run beside the others.

By remote code alone, and from files as they should be: `make matrix` has all of them, on every version.
"""

import pytest
from conftest import other_python, other_versions, run_tests_elsewhere


@pytest.mark.skipif(not other_versions(), reason="LVNAR_ENVIRONMENTS names no folder with environments in it")
def test_loading_on_the_oldest_version():
    version = other_versions()[0]
    needed = "not package] and not both] and not cold_cache and not fast"
    arguments = ("tests/model/test_loading.py", "-k", needed)
    run_tests_elsewhere(other_python(version), *arguments, LVNAR_TRANSFORMERS=version)
