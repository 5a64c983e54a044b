"""Train the tokenizer of a model on its training text.

    python training/tokenizer.py --config training/configs/tatoeba_en_de.yaml

It reads the sections data and tokenizer of the recipe that the later stages then read; or flags:

    python training/tokenizer.py --train_source_files train.en --train_target_files train.de --vocab_size 8000 \
        --tokenizer_folder runs/tokenizer
"""

from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.outputs import refuse_existing
from training.recipe import parse_recipe
from training.sections import DataArguments, TokenizerArguments

if TYPE_CHECKING:
    from lvnar_hf import LvnarTokenizer

COUNTED_PAIRS = 10_000
OWN_OPTIONS = ("list_translated_words", "overwrite")


def main(argv: list[str] | None = None) -> "LvnarTokenizer":
    """Train, save, and print the vocabulary sizes and the tokens per sentence, over the first `COUNTED_PAIRS`.

    Raises:
        FileExistsError: the tokenizer folder is not empty and `--overwrite` is not given.
        ValueError: what `parse_recipe`, `load_pairs` and `train_tokenizer` refuse; no tokenizer folder.
        FileNotFoundError: text, or KyTea's model, is not there.
        ImportError: a segmenter or sentencepiece is not installed.
    """
    data, arguments = parse_recipe({"data": DataArguments, "tokenizer": TokenizerArguments}, argv)

    from lvnar_hf import train_tokenizer
    from lvnar_hf.names_lvnar import only_in_pieces, translated_words
    from training.data.corpora import load_distillation_text, load_pairs

    if data.tokenizer_folder is None:
        raise ValueError("Give --tokenizer_folder, or name it in section data of the recipe.")
    folder = refuse_existing(data.tokenizer_folder, arguments.overwrite, "--tokenizer_folder")
    pairs = load_pairs(data, "train")
    tokenizer = train_tokenizer(
        (row["source"] for row in pairs),
        (row["target"] for row in pairs),
        **{name: value for name, value in asdict(arguments).items() if name not in OWN_OPTIONS},
        # Stored with the tokenizer, for the segmenter alone.
        source_language=None if arguments.source_segmenter == "none" else data.source_language,
        target_language=None if arguments.target_segmenter == "none" else data.target_language,
    )
    if arguments.list_translated_words:
        text = ((row["source"], row["target"] or None) for row in load_distillation_text(data))
        tokenizer.translated_words = only_in_pieces(translated_words(text), tokenizer)
        print(f"words that are no names: {len(tokenizer.translated_words)}")
    tokenizer.save_pretrained(folder)
    rows = list(islice(pairs, COUNTED_PAIRS))
    for side, size in (("source", len(tokenizer)), ("target", tokenizer.target_vocab_size)):
        ids = tokenizer.encode_texts([row[side] for row in rows], target=side == "target")
        print(f"{side}: vocabulary {size}, {sum(map(len, ids)) / max(len(ids), 1):.2f} tokens per sentence with </s>")
    return tokenizer


if __name__ == "__main__":
    main()
