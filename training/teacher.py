"""Train the autoregressive teacher, transformers' own `MarianMTModel`, by the same loop on the same pairs.

    accelerate launch training/teacher.py --config training/configs/tatoeba_en_de.yaml

It reads the sections data, augmentation, teacher and teacher_training of the recipe. The teacher is also the baseline
that the student is compared with.
"""

from typing import TYPE_CHECKING

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from training.recipe import AugmentationArguments, DataArguments, OptimizationArguments, TeacherArguments, parse_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lvnar_hf import LvnarTokenizer


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train; return the figures of the best validation.

    Raises:
        FileExistsError, ValueError: what `run_training` refuses.
    """
    sections = {
        "data": DataArguments,
        "augmentation": AugmentationArguments,
        "teacher": TeacherArguments,
        "teacher_training": OptimizationArguments,
    }
    data, augmentation, sizes, arguments = parse_recipe(sections, argv)

    from transformers import MarianMTModel

    from lvnar_hf.loading import load_model
    from training.loop.run import run_training

    def make_model(tokenizer: "LvnarTokenizer") -> "PreTrainedModel":
        if arguments.initial_model is not None:
            return load_model(arguments.initial_model, dtype="float32")
        target_vocab_size = None if tokenizer.is_joint else tokenizer.target_vocab_size
        model = MarianMTModel(sizes.to_config(len(tokenizer), target_vocab_size))
        # transformers 4.57 gives 20 where nothing is said.
        model.generation_config.max_length = sizes.max_position_embeddings
        return model

    return run_training(data, augmentation, sizes, arguments, make_model)


if __name__ == "__main__":
    main()
