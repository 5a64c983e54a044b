"""Make the text of the recipes `tatoeba_en_de` and `tatoeba_en_de_ctc` of the download that it comes from.

    python training/corpus.py --download deu-eng/deu.txt --output_folder data/tatoeba_en-de

The download is deu-eng.zip of https://www.manythings.org/anki/, unpacked. The pairs of validation and test text are
those that the published results are on, in the same order; all others are training text, in the order of the download.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from lvnar_hf.files.atomic import atomic_file
from lvnar_hf.files.outputs import refuse_existing
from lvnar_hf.files.text import check_files
from training.data.tatoeba import read_download, read_split, split_pairs

SIDES = ("en", "de")


@dataclass
class CorpusArguments:
    """Where the text comes from and where it goes."""

    download: str = field(metadata={"help": "deu.txt, plain or as .gz"})
    output_folder: str = field(metadata={"help": "train, valid and test go here, each as NAME.en and NAME.de"})
    allow_missing: bool = field(
        default=False,
        metadata={"help": "of validation and test text, take what is there: a later download lacks what was corrected"},
    )
    overwrite: bool = field(default=False, metadata={"help": "write over files that are there"})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Split, write six files, print and return what is in them.

    Raises:
        FileExistsError: one of the files is there, and `--overwrite` is not given.
        FileNotFoundError: the download is not there.
        ValueError: it is of another form, or lacks pairs of validation or test text and `--allow_missing` is not given.
    """
    (arguments,) = HfArgumentParser(CorpusArguments).parse_args_into_dataclasses(argv)
    folder, names = Path(arguments.output_folder), ("train", "valid", "test")
    for name in names:
        for side in SIDES:
            refuse_existing(folder / f"{name}.{side}", arguments.overwrite, "--output_folder")
    check_files([arguments.download])
    split = split_pairs(read_download(arguments.download), read_split())
    if any(split.missing.values()) and not arguments.allow_missing:
        raise ValueError(
            f"{arguments.download} lacks pairs, {split.missing}: it is another edition. To go on with those that are "
            "there, whose scores are then of fewer sentences, give --allow_missing."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for number, side in enumerate(SIDES):
            with atomic_file(folder / f"{name}.{side}") as unfinished:
                unfinished.write_bytes("".join(pair[number] + "\n" for pair in getattr(split, name)).encode())
    counts = {name: len(getattr(split, name)) for name in names}
    result = {**counts, "missing": split.missing, "left_out_as_overlapping": split.num_overlapping}
    print(result)
    return result


if __name__ == "__main__":
    main()
