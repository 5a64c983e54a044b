"""What loading this model may not do: run code that lies beside the weights, unpickle, or read outside the folder.

What is unusual: transformers 4 takes a folder on this machine for trusted, and every version opens the files that an
index of shards names, whatever they are. This model takes neither.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

# Where transformers looks for the classes; in a tokenizer's entry, the second place is for another kind of tokenizer.
CONFIG_AUTO_MAP = {
    "AutoConfig": "configuration_lvnar.LvnarConfig",
    "AutoModelForSeq2SeqLM": "modeling_lvnar.LvnarForConditionalGeneration",
}
TOKENIZER_AUTO_MAP = {"AutoTokenizer": ["tokenization_lvnar.LvnarTokenizer", None]}
# And where `pipeline("translation")` looks for its own.
CUSTOM_PIPELINES = {
    "translation": {
        "impl": "pipeline_lvnar.LvnarTranslationPipeline",
        "pt": ["AutoModelForSeq2SeqLM"],
        "type": "text",
    }
}

_INDEX_ENDING = ".safetensors.index.json"
_ENDING = ".safetensors"


def shard_names(index_file: Path) -> list[str]:
    """The files that an index of shards names.

    Raises:
        ValueError: it is no index, or names a file in another folder, or one that is not safetensors.
    """
    try:
        weight_map = json.loads(index_file.read_text("utf-8"))["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{index_file} is no index of shards: {type(error).__name__}: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_file}: weight_map must name the file of each tensor.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(_ENDING):
            raise ValueError(f"{index_file} names the file {name!r}; it must be a safetensors file in the same folder.")
    return names


class SafeLoadingMixin:
    """For a model of transformers; before its other base classes."""

    @staticmethod
    def _refuse_foreign_shards(name: Any = None, subfolder: str = "") -> None:
        """Refuse indices, in a folder on this machine, that name what `shard_names` refuses."""
        folder = Path(os.fspath(name), subfolder or "") if isinstance(name, (str, os.PathLike)) else None
        if folder is not None and folder.is_dir():
            for index_file in sorted(folder.glob(f"*{_INDEX_ENDING}")):
                shard_names(index_file)

    @classmethod
    def _load_pretrained_model(cls, *args: Any, **kwargs: Any) -> Any:
        # Private to transformers: here each version hands on the files that it is about to open, of the Hub's too.
        for file in kwargs.get("checkpoint_files", args[2] if len(args) > 2 else None) or ():
            if not str(file).endswith(_ENDING):
                raise ValueError(
                    f"{file} is not safetensors, and weights in other formats are not loaded: store them with "
                    "model.save_pretrained(folder)."
                )
        return super()._load_pretrained_model(*args, **kwargs)  # type: ignore[misc]

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        """None, with or without trust: transformers would put it in the place of this model's own `generate`.

        Raises:
            OSError: always; for transformers, there is none then.
        """
        raise OSError("This model loads no custom_generate: its `generate` is its own.")
