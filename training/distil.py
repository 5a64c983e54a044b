"""Translate the training text, and text without a translation, with a teacher: sequence-level knowledge distillation.

    python training/distil.py --config training/configs/tatoeba_en_de.yaml
    accelerate launch --num_processes 4 training/distil.py --config training/configs/wmt14_en_de.yaml

Killed at any moment and started again, with any number of processes, it goes on where it was. With
`--benchmark_sentences 512` it translates so many sentences with each engine instead, and says how fast they are.
"""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from training.recipe import parse_recipe
from training.sections import DataArguments, DistillationArguments

if TYPE_CHECKING:
    from training.distillation.teacher import Teacher


@dataclass
class BenchmarkArguments:
    """Section `distillation_benchmark`: both engines on the same sentences, in one run."""

    benchmark_sentences: int = field(
        default=0, metadata={"help": "sentences of the training text to time the engines with; 0: distil"}
    )
    benchmark_rounds: int = field(default=3, metadata={"help": "times that each engine translates them, in turns"})
    benchmark_file: str | None = field(default=None, metadata={"help": "JSON with the times; null: print it only"})


def describe_tokenizer(teacher: "Teacher") -> dict[str, Any]:
    """Class and vocabulary sizes."""
    tokenizer = teacher.tokenizer
    return {
        "class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "target_vocab_size": getattr(tokenizer, "target_vocab_size", len(tokenizer)),
    }


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Distil, or time the engines; the result, in the first process.

    Raises:
        ValueError: for arguments that are missing or cannot be combined, an engine that cannot be used, or settings
            that differ from those of the distillation that is in the folder.
        FileExistsError: the folder holds something else, and `--overwrite` is not given.
    """
    sections = {
        "data": DataArguments,
        "distillation": DistillationArguments,
        "distillation_benchmark": BenchmarkArguments,
    }
    data, arguments, benchmark = parse_recipe(sections, argv)

    import transformers
    from accelerate import Accelerator, InitProcessGroupKwargs

    from lvnar_hf.jobs.environment import describe_machine
    from training.data.corpora import load_distillation_text, load_pairs
    from training.distillation.backends import SearchSettings, choose_engine, make_engine
    from training.distillation.comparison import compare_engines
    from training.distillation.run import Distillation, settings_of
    from training.distillation.teacher import load_teacher

    if arguments.teacher is None:
        raise ValueError("Give --teacher, or name it in section distillation of the recipe.")
    if data.distilled_folder is None and not benchmark.benchmark_sentences:
        raise ValueError("Give --distilled_folder, or name it in section data of the recipe.")
    # The processes meet only when the first has made the plan, which takes minutes for a large corpus.
    state = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))])
    if not state.is_main_process:
        transformers.utils.logging.disable_progress_bar()
    search = SearchSettings(
        arguments.num_beams, arguments.length_penalty, arguments.max_target_length, arguments.max_batch_tokens
    )
    teacher = load_teacher(arguments.teacher, arguments.teacher_revision)
    teacher.check_target_length(arguments.max_target_length)
    engine_name = choose_engine(arguments.engine, teacher)

    if benchmark.benchmark_sentences:
        if state.num_processes > 1:
            raise ValueError(f"--benchmark_sentences is for one process; there are {state.num_processes}.")
        result = compare_engines(
            load_pairs(data, "train"),
            teacher,
            search,
            arguments.compute_type,
            state.device,
            benchmark.benchmark_sentences,
            benchmark.benchmark_rounds,
        )
        result["machine"] = describe_machine(state.device)
        if benchmark.benchmark_file:
            write_json(Path(benchmark.benchmark_file), result)
        print(json.dumps(result))
        return result

    pairs = load_distillation_text(data)
    # Before anything is written: it refuses a compute type that is not there.
    engine = make_engine(engine_name, teacher, search, arguments.compute_type, state.device)
    settings = {**settings_of(arguments), "engine": engine_name, "teacher_fingerprint": teacher.fingerprint}
    run = Distillation(data.distilled_folder, pairs, teacher.tokenizer, teacher.max_source_length, settings)
    if state.is_main_process:
        run.prepare(arguments.overwrite)
    state.wait_for_everyone()
    if not run.work.exists():
        state.print(f"nothing to do: {run.folder} is finished")
        return None
    run.translate(engine, state.process_index)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    result = run.merge(
        {
            "teacher": arguments.teacher,
            "teacher_revision": arguments.teacher_revision,
            "teacher_fingerprint": teacher.fingerprint,
            "tokenizer": describe_tokenizer(teacher),
            "num_beams": arguments.num_beams,
            "length_penalty": arguments.length_penalty,
            "max_target_length": arguments.max_target_length,
            "max_batch_tokens": arguments.max_batch_tokens,
            "on_degenerate": arguments.on_degenerate,
            "num_processes": state.num_processes,
            "machine": describe_machine(state.device),
        }
    )
    print(f"{run.folder}: {json.dumps(result['counts'])}, {result['sentences_per_second'] or 0:.1f} sentences/s")
    return result


if __name__ == "__main__":
    main()
