"""Measure `lvnar translate` on a large file beside the engine by itself; writes a JSON.

    python tests/support/measure_translate.py --model FOLDER --lines_file lines.en --output_file runs/translate.json

FOLDER is one that `lvnar export` has been at. The engine by itself: as many processes as the command starts, each with
one thread, on the same batches, of which the token ids lie ready; only the graph's calls are timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from measured import write_measured

from lvnar_hf.decoding import make_batches
from lvnar_hf.files.text import read_lines
from lvnar_hf.jobs.light_translator import load_light_translator

ENGINE = "onnx-int8"


def engine_speed(model: str, shard_size: int, max_batch_tokens: int, lines: list[str]) -> float:
    """Sentences a second of the graph alone, on one thread."""
    translator = load_light_translator(model, ENGINE, None, max_batch_tokens, "cpu", False, None, num_threads=1)
    seconds = 0.0
    for start in range(0, len(lines), shard_size):
        ids = sorted(translator._encode(lines[start : start + shard_size])[0], key=len, reverse=True)
        for batch in make_batches([len(one) for one in ids], max_batch_tokens):
            rows = ids[batch.start : batch.stop]
            begun = time.perf_counter()
            translator._generate(rows)
            seconds += time.perf_counter() - begun
    return len(lines) / seconds


def main() -> None:
    """Measure both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "lines_file", "output_file"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lvnar_hf", "translate", "--model", arguments.model, "--engine", ENGINE]
        command += ["--no-preserve-format", arguments.lines_file, str(Path(folder) / "lines.out")]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    lines, num_processes = list(read_lines(arguments.lines_file)), done["num_processes"]
    shard_size, max_batch_tokens = (done["settings"][name] for name in ("shard_size", "max_batch_tokens"))
    share = -(-len(lines) // num_processes)
    parts = [lines[start : start + share] for start in range(0, len(lines), share)]
    with ProcessPoolExecutor(num_processes) as pool:
        alone = sum(pool.map(partial(engine_speed, arguments.model, shard_size, max_batch_tokens), parts))
    result = {"lines": len(lines), "engine": ENGINE, "num_refinement_steps": done["num_refinement_steps"]}
    result |= {"num_processes": num_processes, "command": done["sentences_per_second"], "engine_alone": alone}
    write_measured(arguments.output_file, {**result, "share": done["sentences_per_second"] / alone})


if __name__ == "__main__":
    main()
