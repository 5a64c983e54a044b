"""Train the tokenizer of a model on line-aligned text.

    python training/tokenizer.py --source_files train.en --target_files train.de --vocab_size 8000 \
        --output_folder runs/tokenizer

The same arguments may stand in a YAML file: `python training/tokenizer.py --config training/configs/x.yaml`.
"""

import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import HfArgumentParser

from lvnar_hf.tokenization_lvnar import LvnarTokenizer, train_tokenizer
from training.text import read_lines


@dataclass
class TokenizerArguments:
    """What to train on, how large, and where to."""

    source_files: list[str] = field(metadata={"help": "source text, a sentence a line; .gz is unpacked"})
    target_files: list[str] = field(metadata={"help": "target text, a sentence a line; .gz is unpacked"})
    output_folder: str = field(metadata={"help": "where the tokenizer goes"})
    vocab_size: int = field(default=8000, metadata={"help": "ids of the joint, or else of the source vocabulary"})
    target_vocab_size: int | None = field(
        default=None, metadata={"help": "ids of the target vocabulary with --joint false; vocab_size if not given"}
    )
    joint: bool = field(default=True, metadata={"help": "one vocabulary for both sides"})
    normalization: str = field(default="nfc", metadata={"help": "Unicode form: nfc, nfkc or none"})
    min_character_count: int = field(default=5, metadata={"help": "rarer characters are spelt in bytes"})
    max_length: int | None = field(default=None, metadata={"help": "model_max_length, in tokens with </s>"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})

    def __post_init__(self) -> None:
        # A YAML file may name one file without a list.
        self.source_files = [self.source_files] if isinstance(self.source_files, str) else self.source_files
        self.target_files = [self.target_files] if isinstance(self.target_files, str) else self.target_files


def main(argv: list[str] | None = None) -> LvnarTokenizer:
    """Train, save, and print the vocabulary sizes and the tokens per sentence.

    Raises:
        FileExistsError: the output folder is not empty and `--overwrite` is not given.
        ValueError: what `read_lines` and `train_tokenizer` refuse; sides with unequal numbers of lines.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser(TokenizerArguments)  # type: ignore[arg-type]
    if argv[:1] == ["--config"]:
        if len(argv) != 2:
            parser.error("--config takes one YAML file and no other argument goes with it")
        (arguments,) = parser.parse_yaml_file(argv[1])
    else:
        (arguments,) = parser.parse_args_into_dataclasses(argv)
    folder = Path(arguments.output_folder)
    if folder.exists() and any(folder.iterdir()) and not arguments.overwrite:
        raise FileExistsError(f"{folder} is not empty: name another --output_folder, or give --overwrite")
    source_texts = list(chain.from_iterable(map(read_lines, arguments.source_files)))
    target_texts = list(chain.from_iterable(map(read_lines, arguments.target_files)))
    if len(source_texts) != len(target_texts):
        raise ValueError(f"{len(source_texts)} source lines but {len(target_texts)} target lines")
    tokenizer = train_tokenizer(
        source_texts,
        target_texts,
        vocab_size=arguments.vocab_size,
        target_vocab_size=arguments.target_vocab_size,
        joint=arguments.joint,
        normalization=arguments.normalization,
        min_character_count=arguments.min_character_count,
        max_length=arguments.max_length,
    )
    tokenizer.save_pretrained(folder)
    encoded = tokenizer(source_texts[:10000], text_target=target_texts[:10000])
    for side, size, ids in (
        ("source", len(tokenizer), encoded["input_ids"]),
        ("target", tokenizer.target_vocab_size, encoded["labels"]),
    ):
        print(f"{side}: vocabulary {size}, {sum(map(len, ids)) / max(len(ids), 1):.2f} tokens a sentence with </s>")
    return tokenizer


if __name__ == "__main__":
    main()
