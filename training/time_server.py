"""The server under load, beside `lvnar translate` on the same texts, in one run.

    python training/time_server.py --model model_cards/lvnar-tatoeba-en-de \
        --source_file data/tatoeba_en-de/test.en --output_file runs/server.json

A file of the texts is translated by `lvnar translate`, before the server and after it; then clients, each on a
connection of its own, send one text after the other for a time; then one client, in turns with the model in this
process. The clients take their share of the same cores. The figures are printed as JSON.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.outputs import refuse_existing


@dataclass
class ServerTimingArguments:
    """What is served, and how hard it is asked."""

    model: str = field(metadata={"help": "folder or Hub id, with its languages in the configuration"})
    source_file: str = field(metadata={"help": "texts, a line each"})
    engine: str = field(default="auto", metadata={"help": "of both, as of lvnar serve"})
    num_workers: int = field(default=1, metadata={"help": "processes of the server"})
    num_clients: int = field(default=64, metadata={"help": "at once"})
    seconds: float = field(default=60.0, metadata={"help": "that they ask for"})
    num_translated: int = field(default=4000, metadata={"help": "lines for lvnar translate; the texts are repeated"})
    num_single: int = field(default=200, metadata={"help": "texts of the one client"})
    serve_options: str = field(default="", metadata={"help": "others of lvnar serve: '--batch-window-ms 5'"})
    output_file: str | None = field(default=None, metadata={"help": "JSON with the result"})
    overwrite: bool = field(default=False, metadata={"help": "replace an output file"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and return what is in the JSON.

    Raises:
        FileExistsError: there is an output file, and `--overwrite` is not given.
        ValueError: there is no text in the file.
    """
    (arguments,) = HfArgumentParser(ServerTimingArguments).parse_args_into_dataclasses(argv)

    from lvnar_hf.files.text import read_lines
    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from lvnar_hf.jobs.line_translator import load_translator
    from training.speed.server import ServerProcess, measure_load, measure_overhead

    if arguments.output_file is not None:
        refuse_existing(arguments.output_file, arguments.overwrite, "--output_file")
    texts = [line for line in read_lines(Path(arguments.source_file)) if line.strip()]
    if not texts:
        raise ValueError(f"{arguments.source_file} holds no text.")
    translator = load_translator(arguments.model, arguments.engine, preserve_format=True)
    config = translator.model.config
    pair = {"source": config.source_language, "target": config.target_language}
    options = ["--model", arguments.model, "--engine", arguments.engine, *arguments.serve_options.split()]
    with tempfile.TemporaryDirectory(prefix="time-server-") as folder:
        rates = [_translate_file(arguments, texts, Path(folder))]
        server = ServerProcess(Path(folder, "log.txt"), *options, "--num-workers", str(arguments.num_workers))
        try:
            measure_load(server, texts, pair, arguments.num_clients, min(3.0, arguments.seconds))  # warm-up
            load = measure_load(server, texts, pair, arguments.num_clients, arguments.seconds)
            single = measure_overhead(server, translator, (texts * arguments.num_single)[: arguments.num_single], pair)
        finally:
            server.end()
        rates.append(_translate_file(arguments, texts, Path(folder)))
    result = {
        "model": arguments.model,
        "engine": translator.engine,
        "num_refinement_steps": translator.num_refinement_steps,
        "num_workers": arguments.num_workers,
        "serve_options": arguments.serve_options,
        "translate_sentences_per_second": rates,
        "load": load,
        "share_of_translate": load["sentences_per_second"] / (sum(rates) / len(rates)),
        "one_client": single,
        "machine": describe_machine("cpu"),
        "versions": describe_versions(),
    }
    if arguments.output_file is not None:
        Path(arguments.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output_file).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))
    return result


def _translate_file(arguments: ServerTimingArguments, texts: list[str], folder: Path) -> float:
    """Sentences a second of `lvnar translate`."""
    lines = (texts * (arguments.num_translated // len(texts) + 1))[: arguments.num_translated]
    (folder / "source.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    command = [sys.executable, "-m", "lvnar_hf", "translate", "--model", arguments.model, "--engine", arguments.engine]
    # A new output each time: a finished one would not be translated again. Shards enough for each process.
    target = Path(tempfile.mkdtemp(dir=folder), "target.txt")
    command += ["--shard-size", str(max(1, arguments.num_translated // 8)), str(folder / "source.txt"), str(target)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(output.splitlines()[-1])["sentences_per_second"]


if __name__ == "__main__":
    main()
