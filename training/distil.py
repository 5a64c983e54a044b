"""Translate the training text, and text without a translation, with a teacher: sequence-level knowledge distillation.

    python training/distil.py --config training/configs/tatoeba_en_de.yaml
    python training/distil.py --config training/configs/wmt14_en_de.yaml --executor slurm \\
        --executor_options time=20:00:00 partition=gpu gpus_per_task=1

It starts a process a GPU, or sends the same tasks to a cluster. Killed at any moment and started again, with any number
of processes, it goes on where it was. With `--benchmark_sentences 512` it translates so many sentences with each engine
instead, and says how fast they are.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from training.recipe import parse_recipe
from training.sections import DataArguments, DistillationArguments

if TYPE_CHECKING:
    from training.distillation.backends import TeacherEngine
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
    """Distil, or time the engines; the result, or None if Slurm has taken the tasks.

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

    import torch

    from lvnar_hf.jobs.environment import describe_machine
    from lvnar_hf.jobs.executors import run_tasks
    from lvnar_hf.jobs.processes import check_executor, worker_devices
    from training.data.corpora import load_distillation_text, load_pairs
    from training.distillation.backends import SearchSettings, StudentSettings, choose_engine, load_engine, make_engine
    from training.distillation.comparison import compare_engines
    from training.distillation.run import Distillation, settings_of
    from training.distillation.teacher import load_teacher

    if arguments.teacher is None:
        raise ValueError("Give --teacher, or name it in section distillation of the recipe.")
    if data.distilled_folder is None and not benchmark.benchmark_sentences:
        raise ValueError("Give --distilled_folder, or name it in section data of the recipe.")
    search = SearchSettings(
        arguments.num_beams, arguments.length_penalty, arguments.max_target_length, arguments.max_batch_tokens
    )
    teacher = load_teacher(arguments.teacher, arguments.teacher_revision)
    teacher.check_target_length(arguments.max_target_length)
    engine_name = choose_engine(arguments.engine, teacher)

    if benchmark.benchmark_sentences:
        device = torch.device(worker_devices(None, 1)[0])
        how = (arguments.compute_type, device, benchmark.benchmark_sentences, benchmark.benchmark_rounds)
        result = compare_engines(load_pairs(data, "train"), teacher, search, *how)
        result["machine"] = describe_machine(device)
        if benchmark.benchmark_file:
            write_json(Path(benchmark.benchmark_file), result)
        print(json.dumps(result))
        return result

    is_local = check_executor(arguments.executor)
    devices = worker_devices(None, arguments.num_processes, 1) if is_local else [""]
    pairs = load_distillation_text(data, arguments.only_monolingual)
    student = None
    if arguments.student is not None:
        own = (arguments.student_beam_size, arguments.student_refinement_steps, arguments.student_least_log_prob)
        student = StudentSettings(arguments.student, *own)
    # Before anything is written: it refuses a compute type that is not there.
    engine: TeacherEngine | None = None
    if is_local:
        engine = make_engine(engine_name, teacher, search, arguments.compute_type, devices[0], student)
    settings = {**settings_of(arguments), "engine": engine_name, "teacher_fingerprint": teacher.fingerprint}
    if student is not None:
        settings["student_fingerprint"] = student.fingerprint
    run = Distillation(data.distilled_folder, pairs, teacher.tokenizer, teacher.max_source_length, settings)
    if run.prepare(arguments.overwrite):
        print(f"nothing to do: {run.folder} is finished")
        return None
    named = (arguments.teacher, arguments.teacher_revision)
    num_threads = max(1, torch.get_num_threads() // len(devices)) if is_local else None
    run.load_engine = partial(load_engine, engine_name, named, search, arguments.compute_type, student, num_threads)
    if len(devices) > 1:
        engine = None  # each process has its own
    if not run_tasks(run, engine, devices, arguments.executor, arguments.executor_options):
        return None
    recorded = ("teacher", "teacher_revision", "num_beams", "length_penalty", "max_target_length", "max_batch_tokens")
    recorded += () if student is None else tuple(name for name in vars(arguments) if name.startswith("student"))
    result = run.merge(
        {
            **{name: getattr(arguments, name) for name in (*recorded, "on_degenerate")},
            "teacher_fingerprint": teacher.fingerprint,
            "tokenizer": describe_tokenizer(teacher),
            "num_processes": len(devices) if is_local else run.num_shards,
            "machine": describe_machine(devices[0] or "cpu"),
        }
    )
    print(f"{run.folder}: {json.dumps(result['counts'])}, {result['sentences_per_second'] or 0:.1f} sentences/s")
    return result


if __name__ == "__main__":
    main()
