"""What a recipe's training text costs before a step is taken: tokenising, planning, fetching; and the memory for it.

    python training/time_data.py --config training/configs/wmt14_en_de.yaml --output_file runs/data_times.json

It reads the sections data, model and training of the recipe. The text is tokenised into a folder of its own, which is
removed; then a fresh process does what a run does that finds it there: open, plan an epoch, fetch batches in the order
of the plan.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing
from training.recipe import parse_recipe
from training.sections import DataArguments, ModelArguments, OptimizationArguments

STARTED = time.perf_counter() - time.process_time()  # about when the process began, before its imports


@dataclass
class TimingArguments:
    """How much is timed; these are flags, not part of a recipe."""

    num_batches: int = field(default=300, metadata={"help": "batches fetched; 0: all of an epoch"})
    is_second_process: bool = field(default=False, metadata={"help": "set by the command itself"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with the result"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and return what is in the JSON.

    Raises:
        ValueError: there is no tokenizer folder; what `load_pairs` refuses.
    """
    sections = {"data": DataArguments, "model": ModelArguments, "training": OptimizationArguments}
    data, sizes, optimization, arguments = parse_recipe({**sections, "timing": TimingArguments}, argv)

    from lvnar_hf.jobs.environment import describe_processor
    from training.speed.data import time_batches, time_tokenising

    if data.tokenizer_folder is None:
        raise ValueError("Give --tokenizer_folder, or name it in section data of the recipe.")
    if arguments.is_second_process:
        result = time_batches(data, sizes, optimization, arguments.num_batches, STARTED)
        print(json.dumps(result))
        return result
    if arguments.output_file is not None:
        refuse_existing(arguments.output_file, optimization.overwrite, "--output_file")
    with tempfile.TemporaryDirectory(dir=data.cache_folder) as folder:
        data.cache_folder = folder
        result = time_tokenising(data, sizes)
        # The last of two equal flags holds.
        flags = [*(sys.argv[1:] if argv is None else argv), "--cache_folder", folder, "--is_second_process", "true"]
        command = [sys.executable, str(Path(__file__).resolve()), *flags]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        result["batches"] = json.loads(output.splitlines()[-1])
    result["machine"] = {"processor": describe_processor(), "cores": os.cpu_count(), "workers": data.num_workers}
    if arguments.output_file is not None:
        write_json(Path(arguments.output_file), result)
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
