"""Train a latent-variable non-autoregressive model, or go on training one.

    accelerate launch training/train.py --config training/configs/tatoeba_en_de.yaml

It reads the sections data, augmentation, model and training of the recipe; with `--stage finetuning`, that section
instead of training: the paper's epoch at zero KL budget.
"""

import argparse
from typing import TYPE_CHECKING

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from training.recipe import AugmentationArguments, DataArguments, ModelArguments, OptimizationArguments, parse_recipe

if TYPE_CHECKING:
    from lvnar_hf import LvnarTokenizer


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train; return the figures of the best validation.

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
    }
    data, augmentation, sizes, arguments = parse_recipe(sections, argv)

    from lvnar_hf import LvnarForConditionalGeneration
    from training.loop.run import run_training

    def make_model(tokenizer: "LvnarTokenizer") -> LvnarForConditionalGeneration:
        if arguments.initial_model is not None:
            model = LvnarForConditionalGeneration.from_pretrained(arguments.initial_model, dtype="float32")
            model.config.check_languages(data.source_language, data.target_language)
        else:
            target_vocab_size = None if tokenizer.is_joint else tokenizer.target_vocab_size
            model = LvnarForConditionalGeneration(sizes.to_config(len(tokenizer), target_vocab_size))
        model.config.source_language, model.config.target_language = data.source_language, data.target_language
        return model

    return run_training(data, augmentation, sizes, arguments, make_model)


if __name__ == "__main__":
    main()
