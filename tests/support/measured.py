"""What the `measure_*.py` have in common."""

import json
from pathlib import Path
from typing import Any

from lvnar_hf.files.atomic import write_json
from lvnar_hf.jobs.environment import describe_machine, describe_versions

SAMPLE = Path(__file__).resolve().parents[1] / "fixtures" / "tatoeba_en-de"


def read_sample(language: str, num_sentences: int) -> list[str]:
    """The first sentences of the test set of Tatoeba."""
    return (SAMPLE / f"test.{language}").read_text("utf-8").splitlines()[:num_sentences]


def write_measured(file: str, result: dict[str, Any]) -> None:
    """Write what was measured, with the machine and the versions, and print it."""
    result = {**result, "machine": describe_machine("cpu"), "versions": describe_versions()}
    write_json(Path(file), result)
    print(json.dumps(result))
