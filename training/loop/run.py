"""One training run, from a recipe's sections to the best model: what `train.py` and `teacher.py` have in common."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env, set_seed
from transformers import PreTrainedModel

from lvnar_hf import LvnarTokenizer
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.outputs import refuse_missing_folder
from training.data.augmentation import augment_pairs
from training.data.corpora import TextPairs, load_distilled_pairs, load_pairs, load_raw_pairs
from training.data.encoding import tokenize_pairs
from training.loop.checkpoints import (
    RUN_FILE,
    check_same_run,
    describe_inputs,
    has_taken_steps,
    only_training_in,
    prepare_output_folder,
    refuse_output_folder,
)
from training.loop.trainer import TranslationTrainer
from training.sections import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    OptimizationArguments,
    TeacherArguments,
)

# Settings that a resumed run may change: they say where, how often and how fast, not what. More minutes let a run go on
# that has used up its own; its schedules are then at the share that its time is of the new ones.
CHANGEABLE = (
    "max_minutes",
    "output_folder",
    "overwrite",
    "resume",
    "save_every_steps",
    "log_every_steps",
    "keep_last_checkpoints",
    "keep_best_checkpoints",
    "tensorboard",
    "cache_folder",
    "num_workers",
    "loading_workers",
)

# What FSDP must be set to. Weights are gathered for the model as a whole: keys and values are taken from layers that
# have not been called. And no process waits for the weights of another: each makes or loads the same model.
SHARDING = {"fsdp_version": 2, "auto_wrap_policy": None, "cpu_ram_efficient_loading": False}


def check_launch(accelerator: Accelerator, mixed_precision: str) -> None:
    """Refuse what accelerate would leave out without a word, and FSDP in settings that it cannot be used with.

    Args:
        mixed_precision: what the recipe says, and `accelerator` was made with.

    Raises:
        ValueError: the launch asks for another precision, for fp16 or FSDP where there is none, or for other settings
            of FSDP than `SHARDING`.
    """
    launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched_with not in ("no", mixed_precision):
        raise ValueError(
            f"accelerate was launched with mixed_precision {launched_with}, and the recipe says {mixed_precision}: "
            f"give --mixed_precision {launched_with} after the script, or set it in the recipe."
        )
    device = accelerator.device.type
    if mixed_precision == "fp16" and device == "cpu":
        raise ValueError("mixed_precision is fp16, which accelerate leaves out on the CPU; it must be no or bf16.")
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    if accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP is asked for, which accelerate leaves out with {accelerator.num_processes} process(es) on {device}; "
            "launch without --use_fsdp, or on accelerators."
        )
    plugin = accelerator.state.fsdp_plugin
    if {name: getattr(plugin, name) for name in SHARDING} != SHARDING:
        raise ValueError(
            "FSDP is set up otherwise than it can be used: give `accelerate launch --use_fsdp --fsdp_version 2 "
            "--fsdp_auto_wrap_policy NO_WRAP --fsdp_cpu_ram_efficient_loading false`, or the same in its file."
        )


def run_training(
    data: DataArguments,
    augmentation: AugmentationArguments,
    sizes: ModelArguments | TeacherArguments,
    arguments: OptimizationArguments,
    make_model: Callable[[int, int | None], PreTrainedModel],
) -> dict[str, float]:
    """Load, tokenise, train; or resume. Returns the figures of the best validation.

    Args:
        data, augmentation, sizes, arguments: sections of the recipe; kept in `run.json` with hashes of the text, and
            compared when a run is resumed.
        make_model: the model to begin with, for so many ids of the source, and of the target where it has its own;
            called after the seed is set.

    Raises:
        FileNotFoundError: there is no tokenizer; or `resume` is given, and there is no run.
        FileExistsError: the output folder is not empty, and neither `overwrite` nor `resume` is given.
        ValueError: for arguments that are missing or cannot be combined, or differ from those of the run to resume;
            and what `check_launch` refuses. Or the text is not that of the run to resume.
        RuntimeError: another training is at work in the output folder; or none of the states can be loaded.
    """
    if arguments.output_folder is None or data.tokenizer_folder is None:
        raise ValueError("Give --output_folder and --tokenizer_folder, or name them in the recipe.")
    refuse_missing_folder(data.tokenizer_folder)  # before anything is written
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    check_launch(accelerator, arguments.mixed_precision)
    folder = Path(arguments.output_folder)
    sections = (data, augmentation, sizes, arguments)
    settings = {name: value for section in sections for name, value in asdict(section).items()}
    settings["num_processes"] = accelerator.num_processes
    settings = {name: value for name, value in settings.items() if name not in CHANGEABLE}
    if accelerator.is_fsdp2:
        settings["is_sharded"] = True
    if not arguments.resume:
        refuse_output_folder(folder, arguments.overwrite)
    elif not (folder / RUN_FILE).exists():
        raise FileNotFoundError(f"There is no run to go on with in {folder}: leave --resume out, or name its folder.")
    tokenizer = LvnarTokenizer.from_pretrained(data.tokenizer_folder)
    train_texts = load_distilled_pairs(data) if arguments.train_on == "distilled" else load_raw_pairs(data)
    train_texts = augment_pairs(train_texts, augmentation, (data.source_language, data.target_language))
    valid_texts = load_pairs(data, "valid")
    inputs = describe_inputs(train_texts.key, valid_texts.key, tokenizer)
    with only_training_in(folder) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        is_resumed = arguments.resume and has_taken_steps(folder)
        if is_resumed:
            check_same_run(folder, settings, inputs)
        accelerator.wait_for_everyone()  # before the main process writes what the others look for
        if accelerator.is_main_process:
            if not is_resumed:
                prepare_output_folder(folder, arguments.overwrite)
            write_json(folder / RUN_FILE, settings | inputs)
        accelerator.wait_for_everyone()
        trainer = _make_trainer(accelerator, data, arguments, make_model, tokenizer, train_texts, valid_texts)
        if is_resumed:
            accelerator.print(f"resumed at step {trainer.resume()}")
        metrics = trainer.train()
    accelerator.print(f"best model: {folder / 'best'}, " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    return metrics


def _make_trainer(
    accelerator: Accelerator,
    data: DataArguments,
    arguments: OptimizationArguments,
    make_model: Callable[[int, int | None], PreTrainedModel],
    tokenizer: LvnarTokenizer,
    train_texts: TextPairs,
    valid_texts: TextPairs,
) -> TranslationTrainer:
    """The model to begin with, the pairs that it can be trained on, and what trains it."""
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # else a bar for each file of each checkpoint
    set_seed(arguments.seed)
    model = make_model(len(tokenizer), None if tokenizer.is_joint else tokenizer.target_vocab_size)
    set_seed(arguments.seed, device_specific=True)
    tokenizer.model_max_length = limit = model.config.max_position_embeddings
    # What each kind of model can express: a length that its predictor has, a target that its cells can spell, anything.
    is_ctc = getattr(model.config, "alignment", None) == "ctc"
    expressible: dict[str, Any] = {
        "max_length_offset": None if is_ctc else getattr(model.config, "max_length_offset", None),
        "upsampling_ratio": model.config.upsampling_ratio if is_ctc else None,
    }
    options = {**expressible, "num_workers": data.num_workers, "cache_folder": data.cache_folder}
    with accelerator.main_process_first():
        train_pairs, train_counts = tokenize_pairs(
            train_texts,
            tokenizer,
            min(data.max_sentence_length, limit),
            max_length_ratio=data.max_length_ratio,
            remove_duplicates=data.remove_duplicates,
            **options,
        )
        valid_pairs, valid_counts = tokenize_pairs(valid_texts, tokenizer, limit, **options)
    accelerator.print(f"training pairs: {train_counts}; validation pairs: {valid_counts}")
    accelerator.print(f"{model.num_parameters():,} parameters; processes: {accelerator.num_processes}")
    return TranslationTrainer(accelerator, model, tokenizer, train_pairs, valid_pairs, valid_texts.columns(), arguments)
