"""Average the weights of checkpoints into one model folder; of a single one, change how its weights are stored.

python training/average.py --checkpoints runs/tatoeba_en_de/model/checkpoints/step-* --output_folder runs/averaged
"""

from dataclasses import dataclass, field

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.outputs import refuse_existing


@dataclass
class AverageArguments:
    """Which checkpoints, and how the result is stored."""

    checkpoints: list[str] = field(metadata={"help": "model folders"})
    output_folder: str = field(metadata={"help": "where the model and the first checkpoint's tokenizer go"})
    storage_dtype: str = field(
        default="float32",
        metadata={"help": "float32, float16 or bfloat16: of the stored weights; the model is loaded in float32"},
    )
    blank_penalty: float | None = field(
        default=None,
        metadata={"help": "the model's blank_penalty (alignment ctc), chosen on validation text; null: as it is"},
    )
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})


def main(argv: list[str] | None = None) -> None:
    """Average and write.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError: for a storage type that is not one of the three, a blank penalty that the configuration refuses, or
            checkpoints that do not match.
    """
    (arguments,) = HfArgumentParser(AverageArguments).parse_args_into_dataclasses(argv)
    if arguments.storage_dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"storage_dtype is {arguments.storage_dtype}; it must be float32, float16 or bfloat16.")
    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    from training.loop.averaging import write_average

    write_average(arguments.checkpoints, folder, arguments.storage_dtype, blank_penalty=arguments.blank_penalty)
    print(f"{len(arguments.checkpoints)} checkpoints, stored as {arguments.storage_dtype}: {folder}")


if __name__ == "__main__":
    main()
