"""Use a machine that can be had for minutes: train, leave weights that can be carried away, score them. In one command.

    python training/sprint.py --config training/configs/tatoeba_en_de.yaml --stage student --minutes 7 \
        --text_folder data/tatoeba_en-de --source_language en --target_language de --output_folder runs/sprint

It needs no network. The sizes of model and batch are the recipe's; flags of `train.py` or `teacher.py` may follow, and
go before it. What is worth keeping is in OUTPUT/result: `model` (float16), `evaluation`, `log.jsonl`, `run.json`,
`sprint.json`. With `--pieces_folder` the same lies there as an archive in pieces: `cat result.tar.* | tar -x`.
"""

import json
import shutil
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_existing
from training import score, teacher, tokenizer, train

PIECE_BYTES = 15_000_000
STAGES = {"teacher": teacher.main, "student": train.main}


@dataclass
class SprintArguments:
    """What to train on what, for how long, and what is left."""

    stage: str = field(metadata={"help": "teacher or student"})
    minutes: float = field(metadata={"help": "of training, validations included; the rest of the command comes on top"})
    text_folder: str = field(
        metadata={
            "help": "train, valid and test, each NAME.LANGUAGE or NAME.LANGUAGE.gz, a student's train with the "
            "teacher's targets; and, if it is not to be made from train, a tokenizer"
        }
    )
    source_language: str = field(metadata={"help": "how the files of the source side end, for example en"})
    target_language: str = field(metadata={"help": "the same for the target"})
    output_folder: str = field(metadata={"help": "everything goes here"})
    pieces_folder: str | None = field(
        default=None, metadata={"help": f"the result goes here as well, in files of at most {PIECE_BYTES} bytes"}
    )
    num_averaged: int = field(default=1, metadata={"help": "best checkpoints, the mean of which is the result"})
    max_state_megabytes: float = field(
        default=0.0, metadata={"help": "the last state is part of the result if it is not larger: a run to resume"}
    )
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}; it must be {' or '.join(STAGES)}.")
        if self.num_averaged < 1:
            raise ValueError(f"num_averaged is {self.num_averaged}; it must be at least 1.")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, export, score, pack; return what is in `sprint.json`.

    The result is packed before it is scored as well, so that a command that is stopped has left it.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        FileNotFoundError: a file of text is missing.
        ValueError: for a stage or number that cannot be; and what the training command refuses.
    """
    parser = HfArgumentParser(SprintArguments, allow_abbrev=False)
    arguments, flags = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)

    import torch

    from lvnar_hf.jobs.environment import describe_machine, describe_versions
    from training.loop.averaging import write_average
    from training.translation_quality.bleu import corpus_scores

    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    text_flags, test_flags, tokenizer_folder = _read_text_folder(arguments)
    # A package that scoring lacks is missed before the minutes are spent.
    corpus_scores(["a"], ["a"], arguments.source_language, arguments.target_language)
    result, run = folder / "result", folder / "run"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir(parents=True)
    begun = time.monotonic()
    seconds: dict[str, float] = {}

    def finish(part: str) -> None:
        seconds[part] = round(time.monotonic() - begun - sum(seconds.values()), 1)
        print(f"{part}: {seconds[part]} s", flush=True)

    if tokenizer_folder is None:
        tokenizer_folder = folder / "tokenizer"
        tokenizer_flags = ["--tokenizer_folder", str(tokenizer_folder), "--overwrite", "true"]
        tokenizer.main([*_config_of(flags), *text_flags, *tokenizer_flags])
        finish("tokenizer")
    # On a GPU these models wait for the launches of their operators, of which autocast makes twice as many.
    torch.set_float32_matmul_precision("high")
    defaults = ["--cooldown_steps", "0", "--cooldown_share", "0.3", "--mixed_precision", "no"]
    defaults += ["--validate_every_steps", "0", "--validate_every_minutes", str(arguments.minutes / 5)]
    fixed = ["--max_minutes", str(arguments.minutes), "--output_folder", str(run), "--overwrite", "true"]
    fixed += ["--tokenizer_folder", str(tokenizer_folder), "--train_on", "raw", *text_flags]
    if arguments.num_averaged > 1:
        fixed += ["--keep_best_checkpoints", str(arguments.num_averaged), "--keep_last_checkpoints", "0"]
    metrics = STAGES[arguments.stage]([*_config_of(flags), *defaults, *flags, *fixed])
    finish("loading and training")

    checkpoints = [run / "best"] if arguments.num_averaged == 1 else sorted((run / "checkpoints").iterdir())
    write_average(list(map(str, checkpoints)), result / "model", "float16", f"{PIECE_BYTES // 1_000_000}MB")
    for name in ("log.jsonl", "run.json"):
        shutil.copy(run / name, result / name)
    state = max((run / "states").iterdir())  # the last of two
    state_megabytes = sum(file.stat().st_size for file in state.rglob("*") if file.is_file()) / 1e6
    if state_megabytes <= arguments.max_state_megabytes:
        shutil.copytree(state, result / "states" / state.name)
    summary = {
        "stage": arguments.stage,
        "minutes": arguments.minutes,
        "steps": int(state.name.removeprefix("step-")),
        "checkpoints": [checkpoint.name for checkpoint in checkpoints],
        "best_validation": metrics,
        "state_megabytes": round(state_megabytes, 1),
        "flags": flags,
        "machine": describe_machine("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": describe_versions(),
    }
    write_json(result / "sprint.json", summary | {"seconds": seconds})
    finish("export")
    _pack(result, arguments.pieces_folder)

    where = ["--model", str(result / "model"), "--output_folder", str(result / "evaluation"), "--overwrite", "true"]
    # A teacher is scored with its own search.
    steps = ["--num_refinement_steps", "0", "1", "3", "--num_elbo_samples", "0"] if arguments.stage == "student" else []
    scores = score.main([*where, *test_flags, *steps])
    finish("evaluation")
    summary |= {"bleu": [result["bleu"]["score"] for result in scores["results"]], "seconds": seconds}
    write_json(result / "sprint.json", summary)
    _pack(result, arguments.pieces_folder)
    print(json.dumps(summary), flush=True)
    return summary


def _config_of(flags: list[str]) -> list[str]:
    """`--config` and its value among flags, for a command that does not know the others."""
    return flags[flags.index("--config") :][:2] if "--config" in flags else []


def _read_text_folder(arguments: SprintArguments) -> tuple[list[str], list[str], Path | None]:
    """Flags that name the training and validation text, flags that name the test set, and the folder's tokenizer."""
    folder = Path(arguments.text_folder)
    files = {}
    for name in ("train", "valid", "test"):
        for side, language in (("source", arguments.source_language), ("target", arguments.target_language)):
            names = [f"{name}.{language}", f"{name}.{language}.gz"]
            present = [folder / file for file in names if (folder / file).is_file()]
            if len(present) != 1:
                raise FileNotFoundError(f"There must be one of {names} in {folder}; there are {len(present)}.")
            files[f"{name}_{side}"] = str(present[0])
    languages = ["--source_language", arguments.source_language, "--target_language", arguments.target_language]
    text = [part for key in files if "test" not in key for part in (f"--{key}_files", files[key])]
    test = ["--source_file", files["test_source"], "--target_file", files["test_target"]]
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return [*languages, *text], [*languages, *test], folder if has_tokenizer else None


def _pack(folder: Path, pieces_folder: str | None) -> None:
    """An archive of a folder in pieces of at most `PIECE_BYTES`, `NAME.tar.00` and so on."""
    if pieces_folder is None:
        return
    Path(pieces_folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(folder, arcname=folder.name)
        archive.seek(0)
        number = 0
        while piece := archive.read(PIECE_BYTES):
            (Path(pieces_folder) / f"{folder.name}.tar.{number:02d}").write_bytes(piece)
            number += 1


if __name__ == "__main__":
    main()
