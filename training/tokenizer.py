"""Train the tokenizer of a model on its training text.

    python training/tokenizer.py --config training/configs/tatoeba_en_de.yaml

It reads the sections data, tokenizer and model of the recipe that `training/train.py` then reads; or flags:

    python training/tokenizer.py --train_source_files train.en --train_target_files train.de --vocab_size 8000 \
        --tokenizer_folder runs/tokenizer
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lvnar_hf.tokenization_lvnar import LvnarTokenizer, train_tokenizer
from training.outputs import refuse_existing
from training.recipe import DataArguments, ModelArguments, TokenizerArguments, parse_recipe
from training.text import check_parallel, read_files


def main(argv: list[str] | None = None) -> LvnarTokenizer:
    """Train, save, and print the vocabulary sizes and the tokens per sentence.

    Raises:
        FileExistsError: the tokenizer folder is not empty and `--overwrite` is not given.
        ValueError: what `parse_recipe`, `check_parallel` and `train_tokenizer` refuse; no tokenizer folder.
    """
    sections = {"data": DataArguments, "tokenizer": TokenizerArguments, "model": ModelArguments}
    data, arguments, model = parse_recipe(sections, argv)
    if model.tokenizer_folder is None:
        raise ValueError("Give --tokenizer_folder, or name it in section model of the recipe.")
    folder = refuse_existing(model.tokenizer_folder, arguments.overwrite, "--tokenizer_folder")
    check_parallel(data.train_source_files, data.train_target_files)
    source_texts, target_texts = list(read_files(data.train_source_files)), list(read_files(data.train_target_files))
    tokenizer = train_tokenizer(
        source_texts,
        target_texts,
        vocab_size=arguments.vocab_size,
        target_vocab_size=arguments.target_vocab_size,
        joint=arguments.joint,
        normalization=arguments.normalization,
        min_character_count=arguments.min_character_count,
        max_length=model.max_position_embeddings,
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
