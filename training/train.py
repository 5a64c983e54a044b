"""Train a latent-variable non-autoregressive model.

accelerate launch training/train.py --config training/configs/tatoeba_en_de.yaml
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import datasets
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from lvnar_hf import LvnarForConditionalGeneration, LvnarTokenizer
from training.data import load_text_pairs, tokenize_pairs
from training.recipe import DataArguments, ModelArguments, OptimizationArguments, parse_recipe
from training.trainer import LvnarTrainer, check_same_run, prepare_output_folder

CHANGEABLE = ("output_folder", "overwrite", "resume", "save_every_steps", "log_every_steps", "keep_last_checkpoints")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Load, tokenise, train; return the best validation metrics.

    Raises:
        FileExistsError: the output folder is not empty, and neither `--overwrite` nor `--resume` is given.
        ValueError: for arguments that are missing or cannot be combined, or differ from those of the run to resume.
    """
    sections = {"data": DataArguments, "model": ModelArguments, "training": OptimizationArguments}
    data, sizes, arguments = parse_recipe(sections, argv)
    if arguments.output_folder is None or sizes.tokenizer_folder is None:
        raise ValueError("Give --output_folder and --tokenizer_folder, or name them in the recipe.")
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    folder = Path(arguments.output_folder)
    # What a run is begun with and must be resumed with; the rest says where and how often something is written.
    settings = {**asdict(data), **asdict(sizes), **asdict(arguments), "num_processes": accelerator.num_processes}
    settings = {name: value for name, value in settings.items() if name not in CHANGEABLE}
    is_resumed = arguments.resume and (folder / "run.json").exists()
    if is_resumed:
        check_same_run(folder, settings)
    elif accelerator.is_main_process:
        prepare_output_folder(folder, arguments.overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # else a bar for each file of each checkpoint
    accelerator.wait_for_everyone()

    tokenizer = LvnarTokenizer.from_pretrained(sizes.tokenizer_folder)
    config = sizes.to_config(len(tokenizer), None if tokenizer.is_joint else tokenizer.target_vocab_size)
    tokenizer.model_max_length = config.max_position_embeddings
    max_length = min(data.max_sentence_length, config.max_position_embeddings)
    with accelerator.main_process_first():
        train_texts = load_text_pairs(data.train_source_files, data.train_target_files)
        valid_texts = load_text_pairs(data.valid_source_files, data.valid_target_files)
        train_pairs, train_counts = tokenize_pairs(train_texts, tokenizer, max_length, config.max_length_offset)
        valid_pairs, valid_counts = tokenize_pairs(
            valid_texts, tokenizer, config.max_position_embeddings, config.max_length_offset
        )
    set_seed(arguments.seed)
    model = LvnarForConditionalGeneration(config)
    accelerator.print(f"training pairs: {train_counts}; validation pairs: {valid_counts}")
    accelerator.print(f"{model.num_parameters():,} parameters; processes: {accelerator.num_processes}")
    set_seed(arguments.seed, device_specific=True)  # noise differs between processes, initial weights do not
    texts = (list(valid_texts["source"]), list(valid_texts["target"]))
    trainer = LvnarTrainer(accelerator, model, tokenizer, train_pairs, valid_pairs, texts, arguments)
    if is_resumed and trainer.has_state():
        accelerator.print(f"resumed at step {trainer.resume()}")
    metrics = trainer.train()
    accelerator.print(f"best model: {folder / 'best'}, " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    return metrics


if __name__ == "__main__":
    main()
