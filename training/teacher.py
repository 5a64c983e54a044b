"""Train the autoregressive teacher, transformers' own `MarianMTModel`, by the same loop on the same pairs.

    accelerate launch training/teacher.py --config training/configs/tatoeba_en_de.yaml

It reads the sections data, augmentation, teacher and teacher_training of the recipe. The teacher is also the baseline
that the student is compared with.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from training.loop.arguments import DryRunArguments, vocabulary_sizes
from training.recipe import parse_recipe
from training.sections import AugmentationArguments, DataArguments, OptimizationArguments, TeacherArguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train; return the figures of the best validation, or of a dry run what it prints.

    Raises:
        FileExistsError, ValueError: what `run_training` refuses.
    """
    sections = {
        "data": DataArguments,
        "augmentation": AugmentationArguments,
        "teacher": TeacherArguments,
        "teacher_training": OptimizationArguments,
        "dry_run": DryRunArguments,
    }
    data, augmentation, sizes, arguments, dry = parse_recipe(sections, argv)
    if arguments.initial_embeddings is not None:
        raise ValueError("initial_embeddings is for the student: they are those of its teacher.")

    from transformers import MarianMTModel

    from lvnar_hf.loading import load_model
    from training.loop.initial import copy_layers
    from training.loop.run import run_training
    from training.speed.dry_run import run_dry

    def make_model(vocab_size: int, target_vocab_size: int | None) -> "PreTrainedModel":
        if arguments.initial_model is not None:
            return load_model(arguments.initial_model, dtype="float32")
        model = MarianMTModel(sizes.to_config(vocab_size, target_vocab_size))
        if arguments.initial_layers is not None:
            copy_layers(model, arguments.initial_layers)
        # transformers 4.57 gives 20 where nothing is said.
        model.generation_config.max_length = sizes.max_position_embeddings
        return model

    if dry.dry_run is not None:
        arguments.forget_initial_weights()
        return run_dry(dry.dry_run, data, arguments, partial(make_model, *vocabulary_sizes(argv)))
    return run_training(data, augmentation, sizes, arguments, make_model)


if __name__ == "__main__":
    main()
