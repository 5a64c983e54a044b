"""Measure, in a fresh process, what loading costs; prints one JSON line.

    python tests/support/measure_loading.py

Seconds of import are of `import transformers` alone and of what `import lvnar_hf` adds. The first translation is timed
from `from_pretrained`, with transformers' modules imported before. The speed of remote code is compared with that of
the package by turns: the median, over pairs, of the ratio of their times; 1.01 is 1 % slower. Times are of the wall
clock, and of the processor, which other work on the machine disturbs less.

Of a folder with a graph in int8 (`lvnar export`), also the median over fresh processes of `lvnar translate` of one
sentence, all of it, and of what it takes from the folder to the translation when the imports are done.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[2] / "model_cards" / "lvnar-tatoeba-en-de"


def clocks() -> tuple[float, float]:
    """Seconds of the wall clock and of the processor."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> dict[str, float]:
    """Seconds since then, on both clocks."""
    wall, processor = clocks()
    return {"wall": round(wall - start[0], 4), "processor": round(processor - start[1], 4)}


def compare(run: Any, reference: Any, num_pairs: int) -> dict[str, float]:
    """Median ratio of the times of `run` to those of `reference`; each goes first in half of the pairs."""
    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    for pair in range(num_pairs):
        seconds = {}
        for function in (run, reference) if pair % 2 else (reference, run):
            start = clocks()
            function()
            seconds[function] = since(start)
        for clock, values in ratios.items():
            values.append(seconds[run][clock] / seconds[reference][clock])
    return {clock: round(statistics.median(values), 4) for clock, values in ratios.items()}


FROM_FOLDER = """
import json, sys, time
from lvnar_hf.jobs.light_translator import load_light_translator
import onnxruntime
wall, processor = time.perf_counter(), time.process_time()
translator = load_light_translator(sys.argv[1], "onnx-int8", None, 512, "cpu", True, None, num_threads=int(sys.argv[2]))
translator.translate(["Where is the station?"])
print(json.dumps({"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}))
"""


def measure_command(model: str, num_threads: int, num_processes: int = 5) -> dict[str, dict[str, float]]:
    """Median seconds of `lvnar translate` of a sentence, and of its way from the folder to the translation."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    found: dict[str, list[dict[str, float]]] = {"command_seconds": [], "from_folder_seconds": []}
    for _ in range(num_processes):
        wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "lvnar_hf", "translate", "--model", model, "Where is the station?"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found["command_seconds"].append({"wall": wall, "processor": processor})
        command = [sys.executable, "-c", FROM_FOLDER, model, str(num_threads)]
        printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found["from_folder_seconds"].append(json.loads(printed))
    return {
        name: {clock: round(statistics.median(one[clock] for one in of), 3) for clock in ("wall", "processor")}
        for name, of in found.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="model folder, with a card")
    parser.add_argument("--num_pairs", type=int, default=200, help="pairs of translations that are compared")
    parser.add_argument("--num_threads", type=int, default=2, help="threads of torch")
    arguments = parser.parse_args()
    has_graph = Path(arguments.model, "onnx", "model_int8.onnx").is_file()
    of_command = measure_command(arguments.model, arguments.num_threads) if has_graph else {}

    with tempfile.TemporaryDirectory(prefix="lvnar-measure-") as home:
        os.environ.update(HF_HOME=home, HF_HUB_OFFLINE="1")
        start = clocks()
        import transformers

        import_transformers, before = since(start), set(sys.modules)
        start = clocks()
        import lvnar_hf  # noqa: F401

        import_package, imported = since(start), set(sys.modules) - before

        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationMixin, PreTrainedModel  # noqa: F401
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        torch.set_num_threads(arguments.num_threads)
        start = clocks()
        model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        encoded = tokenizer(["She has lived in Berlin for three years."], return_tensors="pt")
        ids = model.generate(**encoded)
        first_translation = since(start)

        from lvnar_hf.hub import assemble
        from lvnar_hf.jobs.environment import describe_machine

        repository = assemble(arguments.model, os.path.join(home, "repository"))
        # By its class: where both are there, transformers may take the package's even with trust_remote_code=True.
        remote_class = get_class_from_dynamic_module("modeling_lvnar.LvnarForConditionalGeneration", str(repository))
        remote = remote_class.from_pretrained(repository)
        assert type(remote) is not type(model) and torch.equal(remote.generate(**encoded), ids)
        for _ in range(5):
            compare(lambda: remote.generate(**encoded), lambda: model.generate(**encoded), 1)
        ratio = compare(lambda: remote.generate(**encoded), lambda: model.generate(**encoded), arguments.num_pairs)
    unwanted = ("accelerate", "datasets", "matplotlib", "torch")
    result = {
        "transformers": transformers.__version__,
        "threads": arguments.num_threads,
        "import_transformers_seconds": import_transformers,
        "import_package_adds_seconds": import_package,
        "imported_with_package": [name for name in unwanted if name in imported],
        "first_translation_seconds": first_translation,
        "remote_time_over_package": ratio,
        "num_pairs": arguments.num_pairs,
        **of_command,
        "machine": describe_machine("cpu"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
