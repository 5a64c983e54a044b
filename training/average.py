"""Average the weights of checkpoints into one model folder; of a single one, change how its weights are stored.

python training/average.py --checkpoints runs/tatoeba_en_de/model/checkpoints/step-* --output_folder runs/averaged
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, HfArgumentParser, PreTrainedModel

import lvnar_hf  # noqa: F401  (registers the model)
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
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})


def average_weights(folders: list[str]) -> PreTrainedModel:
    """The model of the first folder, with the mean of the weights of all, taken in float64.

    Raises:
        ValueError: if a checkpoint has other weights than the first, by name or shape.
    """
    first = AutoModelForSeq2SeqLM.from_pretrained(folders[0], dtype=torch.float32)
    sums = {name: tensor.double() for name, tensor in first.state_dict().items()}
    for folder in folders[1:]:
        weights = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        different = {n for n in sums.keys() | weights.keys() if n not in sums or n not in weights}
        different |= {n for n in sums.keys() & weights.keys() if sums[n].shape != weights[n].shape}
        if different:
            raise ValueError(f"{folder} and {folders[0]} differ in the weights {sorted(different)[:5]}.")
        for name, tensor in weights.items():
            sums[name] += tensor.double()
    first.load_state_dict({name: (total / len(folders)).float() for name, total in sums.items()})
    return first


def write_average(folders: list[str], output_folder: Path, storage_dtype: str, max_shard_size: str = "5GB") -> None:
    """Write the mean of model folders, with the first one's tokenizer, in files of weights up to a size.

    Raises:
        ValueError: if a checkpoint has other weights than the first.
    """
    model = average_weights(folders).to(getattr(torch, storage_dtype))
    model.save_pretrained(output_folder, max_shard_size=max_shard_size)
    AutoTokenizer.from_pretrained(folders[0]).save_pretrained(output_folder)
    # `dtype="auto"`, the default of transformers 5, follows this entry: 16 bits save space, not time, on most CPUs.
    config_file = output_folder / "config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> None:
    """Average and write.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError: for a storage type that is not one of the three, or checkpoints that do not match.
    """
    (arguments,) = HfArgumentParser(AverageArguments).parse_args_into_dataclasses(argv)
    if arguments.storage_dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"storage_dtype is {arguments.storage_dtype}; it must be float32, float16 or bfloat16.")
    folder = refuse_existing(arguments.output_folder, arguments.overwrite, "--output_folder")
    write_average(arguments.checkpoints, folder, arguments.storage_dtype)
    print(f"{len(arguments.checkpoints)} checkpoints, stored as {arguments.storage_dtype}: {folder}")


if __name__ == "__main__":
    main()
