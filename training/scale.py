"""Past the machines at hand, on paper: time, money and memory of the recipes of the paper's sizes.

    python training/scale.py --input_times wmt14_en_de=runs/data_times.json=newstest2013

It counts operations, calls and memory of the recipes' models (some minutes of a CPU), writes them to
`training/speed/scale.json`, and makes the tables of `docs/SCALE.md` of them. `--input_times` names results of
`time_data.py`; those that are not named stay. With `--count false` nothing is counted, and the tables are made of what
was; `report.py` does that too.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)


@dataclass
class ScaleArguments:
    """What is counted anew."""

    count: bool = field(default=True, metadata={"help": "count operations, calls and memory"})
    input_times: list[str] = field(
        default_factory=list, metadata={"help": "RECIPE=FILE=TEXT: what time_data.py measured, and of which text"}
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Count, write both files, return what is in the JSON.

    Raises:
        ValueError: an input time is of no recipe that is counted.
    """
    (arguments,) = HfArgumentParser(ScaleArguments).parse_args_into_dataclasses(argv)

    from lvnar_hf.files.atomic import write_json
    from training.report import DOCS, render
    from training.reports.scale import CTC_RECIPE, RECIPES, RESULT, SEEN_LOG, alignments

    result = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {"input": {}}
    for given in arguments.input_times:
        name, *where = given.split("=", 2)
        if name not in RECIPES or len(where) != 2:
            raise ValueError(f"--input_times has {given!r}; it must be RECIPE=FILE=TEXT, of {' or '.join(RECIPES)}.")
        result["input"][name] = {**json.loads(Path(where[0]).read_text("utf-8")), "text": where[1]}
    if arguments.count:
        from lvnar_hf.jobs.environment import describe_versions
        from training.speed.operations import count_recipe, count_seen_steps

        result["recipes"] = {name: count_recipe(str(path), alignments()) for name, path in RECIPES.items()}
        result["seen"] = count_seen_steps(str(CTC_RECIPE), str(SEEN_LOG))
        result["versions"] = {name: describe_versions()[name] for name in ("torch", "transformers")}
    write_json(RESULT, result)
    document = DOCS / "SCALE.md"
    document.write_text(render(document.read_text("utf-8")), "utf-8")
    print(f"written: {RESULT}, {document}")
    return result


if __name__ == "__main__":
    main()
