"""Test sets: sacreBLEU's by name, datasets of the Hub, ASPEC, line-aligned files."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from training.sections import DataArguments


@dataclass
class TestSetArguments:
    """One test set, from one of four kinds of source."""

    __test__ = False  # not for pytest

    test_set: str | None = field(
        default=None,
        metadata={"help": "sacreBLEU's name, for example wmt14/full; beside another source, a name for the record"},
    )
    source_file: str | None = field(default=None, metadata={"help": "source text, a sentence a line, plain or .gz"})
    target_file: str | None = field(default=None, metadata={"help": "reference translations, line-aligned"})
    dataset: str | None = field(default=None, metadata={"help": "dataset of the Hub or folder, with `translation`"})
    dataset_config: str | None = field(default=None, metadata={"help": "its configuration, for example de-en"})
    dataset_revision: str | None = field(default=None, metadata={"help": "its revision: branch, tag or commit"})
    split: str = field(default="test", metadata={"help": "its split"})
    aspec_folder: str | None = field(default=None, metadata={"help": "ASPEC-JE: the folder with test/test.txt"})
    source_language: str | None = field(default=None, metadata={"help": "code, for example en"})
    target_language: str | None = field(default=None, metadata={"help": "code, for example de"})
    num_sentences: int | None = field(default=None, metadata={"help": "evenly spaced; by default, all"})

    def __post_init__(self) -> None:
        if self.num_sentences is not None and self.num_sentences < 1:
            raise ValueError(f"num_sentences is {self.num_sentences}; it must be at least 1.")


@dataclass
class TestSet:
    """Sentences, their references, and where they stand in the test set, counted from 1."""

    __test__ = False  # not for pytest

    name: str
    source_texts: list[str]
    target_texts: list[str]
    line_numbers: list[int]
    source_language: str | None
    target_language: str | None


def load_test_set(arguments: TestSetArguments) -> TestSet:
    """Read the one test set that the arguments name.

    Raises:
        ValueError: no source or several; a test set or language pair that sacreBLEU does not have; different numbers
            of lines, or none.
        FileNotFoundError: for a file that is not there.
        OSError: sacreBLEU cannot download the test set.
    """
    from training.data.corpora import TextPairs, load_pairs, load_text_pairs

    languages = (arguments.source_language, arguments.target_language)
    kinds = {
        "--source_file with --target_file": bool(arguments.source_file or arguments.target_file),
        "--dataset": arguments.dataset is not None,
        "--aspec_folder": arguments.aspec_folder is not None,
    }
    named = [kind for kind, is_given in kinds.items() if is_given]
    if len(named) > 1 or (not named and arguments.test_set is None):
        raise ValueError(
            f"Named are {' and '.join(named) or 'no sentences'}; name one of: {', '.join(kinds)}, or --test_set with a "
            "name of sacreBLEU's."
        )
    pairs: TextPairs
    if arguments.source_file or arguments.target_file:
        sides = (arguments.source_file, arguments.target_file)
        source_files, target_files = ([side] if side else [] for side in sides)
        pairs = load_text_pairs(source_files, target_files)
        name = Path(str(arguments.source_file)).name
    elif arguments.dataset is not None:
        where = DataArguments(*languages, dataset=arguments.dataset, dataset_config=arguments.dataset_config)
        where.dataset_revision, where.valid_split = arguments.dataset_revision, arguments.split
        pairs = load_pairs(where, "valid")
        name = ", ".join(filter(None, (arguments.dataset, arguments.dataset_config, arguments.split)))
    elif arguments.aspec_folder is not None:
        pairs = load_pairs(DataArguments(*languages, aspec_folder=arguments.aspec_folder), "test")
        name = "ASPEC test"
    else:
        name = str(arguments.test_set)
        source_file, target_file = _sacrebleu_files(name, *languages)
        pairs = load_text_pairs([source_file], [target_file])
    rows = list(pairs)
    if not rows:
        raise ValueError(f"There is not a sentence in {name}.")
    rows = [rows[i] for i in evenly_spaced(len(rows), arguments.num_sentences)]
    return TestSet(
        arguments.test_set or name,
        [row["source"] for row in rows],
        [row["target"] for row in rows],
        [row["row_id"] + 1 for row in rows],
        *languages,
    )


def evenly_spaced(num_lines: int, num_sentences: int | None) -> list[int]:
    """Line indices from 0, in order: all of them, or `num_sentences` evenly spaced ones."""
    if num_sentences is None or num_sentences >= num_lines:
        return list(range(num_lines))
    return [i * num_lines // num_sentences for i in range(num_sentences)]


def _sacrebleu_files(name: str, source_language: str | None, target_language: str | None) -> tuple[str, str]:
    """Source and first reference, downloaded if they are not in sacreBLEU's folder yet."""
    import sacrebleu.utils

    known = sacrebleu.utils.get_available_testsets()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, cutoff=0.5)) or "none"
        raise ValueError(
            f"sacreBLEU has no test set {name!r}; near: {near}; all: sacrebleu --list. Your own text: --source_file "
            "and --target_file."
        )
    pair = f"{source_language}-{target_language}"
    pairs = sacrebleu.utils.get_langpairs_for_testset(name)
    if pair not in pairs:
        raise ValueError(
            f"{name} has no pair {pair}, by --source_language and --target_language; it has {', '.join(pairs)}."
        )
    try:
        source = sacrebleu.utils.get_source_file(name, pair)
        reference = sacrebleu.utils.get_reference_files(name, pair)[0]
    except (OSError, SystemExit) as error:
        raise OSError(
            f"sacreBLEU cannot download {name} ({error}). Where there is no network, give --source_file and "
            "--target_file."
        ) from error
    return source, reference
