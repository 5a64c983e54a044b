"""Train a latent-variable non-autoregressive model, or go on training one.

    accelerate launch training/train.py --config training/configs/tatoeba_en_de.yaml

It reads the sections data, augmentation, model and training of the recipe; with `--stage finetuning`, that section
instead of training: the paper's epoch at zero KL budget.
"""

import argparse
from functools import partial
from typing import Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from training.loop.arguments import DryRunArguments, vocabulary_sizes
from training.recipe import parse_recipe
from training.sections import AugmentationArguments, DataArguments, ModelArguments, OptimizationArguments


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train; return the figures of the best validation, or of a dry run what it prints.

    Raises:
        FileExistsError, ValueError: what `run_training` refuses.
    """
    stage_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    stage_parser.add_argument("--stage", choices=["training", "finetuning"], default="training")
    stage, argv = stage_parser.parse_known_args(argv)
    sections = {
        "data": DataArguments,
        "augmentation": AugmentationArguments,
        "model": ModelArguments,
        stage.stage: OptimizationArguments,
        "dry_run": DryRunArguments,
    }
    data, augmentation, sizes, arguments, dry = parse_recipe(sections, argv)

    from lvnar_hf import LvnarForConditionalGeneration
    from training.loop.initial import copy_embeddings, copy_layers
    from training.loop.run import run_training
    from training.speed.dry_run import run_dry

    def make_model(vocab_size: int, target_vocab_size: int | None) -> LvnarForConditionalGeneration:
        if arguments.initial_model is not None:
            model = LvnarForConditionalGeneration.from_pretrained(arguments.initial_model, dtype="float32")
            model.config.check_languages(data.source_language, data.target_language)
        else:
            model = LvnarForConditionalGeneration(sizes.to_config(vocab_size, target_vocab_size))
            known = None if arguments.initial_layers is None else copy_layers(model, arguments.initial_layers)
            if arguments.initial_embeddings is not None:
                copy_embeddings(model, arguments.initial_embeddings, known)
        model.config.source_language, model.config.target_language = data.source_language, data.target_language
        return model

    if dry.dry_run is not None:
        arguments.forget_initial_weights()
        return run_dry(dry.dry_run, data, arguments, partial(make_model, *vocabulary_sizes(argv)))
    return run_training(data, augmentation, sizes, arguments, make_model)


if __name__ == "__main__":
    main()
