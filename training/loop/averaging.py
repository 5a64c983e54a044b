"""The mean of checkpoints' weights, stored as a model."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

import lvnar_hf  # noqa: F401  (registers the model)
from lvnar_hf.loading import load_model, load_tokenizer


def average_weights(folders: list[str]) -> PreTrainedModel:
    """The model of the first folder, with the mean of the weights of all, taken in float64.

    Raises:
        ValueError: if a checkpoint has other weights than the first, by name or shape.
    """
    first = load_model(folders[0], dtype=torch.float32)
    sums = {name: tensor.double() for name, tensor in first.state_dict().items()}
    for folder in folders[1:]:
        weights = load_model(folder, dtype=torch.float32).state_dict()
        different = {n for n in sums.keys() | weights.keys() if n not in sums or n not in weights}
        different |= {n for n in sums.keys() & weights.keys() if sums[n].shape != weights[n].shape}
        if different:
            raise ValueError(f"{folder} and {folders[0]} differ in the weights {sorted(different)[:5]}.")
        for name, tensor in weights.items():
            sums[name] += tensor.double()
    first.load_state_dict({name: (total / len(folders)).float() for name, total in sums.items()})
    return first


def write_average(
    folders: list[str],
    output_folder: Path,
    storage_dtype: str,
    max_shard_size: str = "5GB",
    blank_penalty: float | None = None,
) -> None:
    """Write the mean of model folders, with the first one's tokenizer, in files of weights up to a size.

    Args:
        blank_penalty: takes the place of the configuration's; None: that stays.

    Raises:
        ValueError: if a checkpoint has other weights than the first, or they are not finite in that precision; for a
            penalty below 0.
    """
    model = average_weights(folders).to(getattr(torch, storage_dtype))
    if names := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"In {storage_dtype}, weights are not finite numbers: {names[:5]}. Store them in float32.")
    if blank_penalty is not None:
        model.config = type(model.config).from_dict({**model.config.to_dict(), "blank_penalty": blank_penalty})
    model.save_pretrained(output_folder, max_shard_size=max_shard_size)
    load_tokenizer(folders[0]).save_pretrained(output_folder)
    # `dtype="auto"`, the default of transformers 5, follows this entry: 16 bits save space, not time, on most CPUs.
    config_file = output_folder / "config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
