"""Parallel text from where it is kept: line-aligned files, JSON lines, parquet, datasets of the Hub, ASPEC.

Nothing is copied. `TextPairs` knows how to read its corpus from the start, as often as asked, and
holds no row of it; only token ids are written to disk, by `training.data.encoding`.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow.parquet

from lvnar_hf.files.atomic import hash_file
from lvnar_hf.files.text import check_files, check_parallel, read_files, read_lines
from training.sections import DataArguments

# A source and its target; None and None for a line of which nobody can tell which part is which.
Pair = tuple[str, str] | tuple[None, None]
ROWS_AT_ONCE = 1000
MALFORMED_LINES_NAMED = 3  # of each file; the rest is counted
ASPEC_SEPARATOR = " ||| "


class TextPairs:
    """Parallel text that is read from its source each time it is iterated; rows `row_id`, `source`, `target`.

    `row_id` is the position in the corpus as read, from 0. A malformed line counts as a row, with both sides empty.

    Args:
        read: starts to read the corpus from its beginning.
        make_key: a JSON value that changes whenever the text may have changed: of what its files hold, not of their
            places and times. Called when it is first asked for, since every file is read for it.
        max_rows: rows read at most; None: all.

    Raises, when iterated:
        ValueError, FileNotFoundError: what the source's reader refuses.
    """

    column_names = ["row_id", "source", "target"]

    def __init__(self, read: Callable[[], Iterator[Pair]], make_key: Callable[[], Any], max_rows: int | None = None):
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_train_rows is {max_rows}; it must be at least 1, or null for all rows.")
        self._read, self._make_key, self._max_rows = read, make_key, max_rows
        self._num_rows: int | None = None
        self.counts: dict[str, int] = {}  # what reading to the end has counted, if the reader counts

    @cached_property
    def key(self) -> dict[str, Any]:
        """Names the text, with the rows that are read of it."""
        return {"corpus": self._make_key(), "max_rows": self._max_rows}

    def read(self) -> Iterator[Pair]:
        """The pairs in order, with (None, None) for a malformed line."""
        return islice(self._read(), self._max_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row_id, (source, target) in enumerate(self.read()):
            yield {"row_id": row_id, "source": source or "", "target": target or ""}

    def __len__(self) -> int:
        """The number of rows; the corpus is read for it, once."""
        if self._num_rows is None:
            self._num_rows = sum(1 for _ in self.read())
        return self._num_rows

    def columns(self) -> tuple[list[str], list[str]]:
        """All sources and all targets, in memory, by one reading."""
        pairs = list(self.read())
        return [source or "" for source, _ in pairs], [target or "" for _, target in pairs]

    def __getitem__(self, column: str) -> list[Any]:
        """A whole column, in memory."""
        if column not in self.column_names:
            raise KeyError(f"{column!r}; the columns are {', '.join(self.column_names)}.")
        return [row[column] for row in self]


def load_pairs(data: DataArguments, split: Literal["train", "valid", "test"]) -> TextPairs:
    """The parallel text of a recipe, from the one kind of source that its section `data` names; ASPEC alone has "test".

    Raises:
        ValueError: no kind of source is named or several; a language is missing, or is no key of `translation`; a file
            is of an unknown kind; ASPEC without ja and en, or parts other than 1, 2 and 3.
        FileNotFoundError: for a file or folder that is not there.
        What cannot be seen before all is read, such as different numbers of lines, is raised when the rows are read.
    """
    kinds = {
        "text files (train_source_files, train_target_files, valid_source_files, valid_target_files)": bool(
            data.train_source_files or data.train_target_files or data.valid_source_files or data.valid_target_files
        ),
        "JSON lines or parquet (train_files, valid_files)": bool(data.train_files or data.valid_files),
        "dataset": data.dataset is not None,
        "aspec_folder": data.aspec_folder is not None,
    }
    named = [kind for kind, is_given in kinds.items() if is_given]
    if len(named) != 1:
        raise ValueError(
            f"Section data names {' and '.join(named) or 'no text'}; it must name one of: {'; '.join(kinds)}."
        )
    max_rows = data.max_train_rows if split == "train" else None
    if data.dataset is not None:
        return _load_dataset(data, data.train_split if split == "train" else data.valid_split, max_rows)
    if data.aspec_folder is not None:
        return _load_aspec(data, split, max_rows)
    if data.train_files or data.valid_files:
        files = data.train_files if split == "train" else data.valid_files
        return _load_translation_files(files, _languages(data), split, max_rows)
    if split == "train":
        return load_text_pairs(data.train_source_files, data.train_target_files, max_rows)
    return load_text_pairs(data.valid_source_files, data.valid_target_files)


def load_raw_pairs(data: DataArguments) -> TextPairs:
    """The training text; then, if there is a `back_translated_folder`, its pairs turned round: the targets are real.

    Raises:
        ValueError, FileNotFoundError: what `load_pairs` refuses; the folder does not hold a finished distillation.
    """
    pairs = load_pairs(data, "train")
    if data.back_translated_folder is None:
        return pairs
    back = _load_distillation(data.back_translated_folder)

    def read() -> Iterator[Pair]:
        yield from pairs.read()
        for text, translation in back.read():
            if text is not None and translation is not None:  # whole lines never are
                yield translation, text

    return TextPairs(read, lambda: {"pairs": pairs.key, "back_translated": back.key}, data.max_train_rows)


def load_distillation_text(data: DataArguments, only_monolingual: bool = False) -> TextPairs:
    """What a teacher translates: the training text, then the lines of `monolingual_source_files`, "" for their targets.

    Args:
        only_monolingual: without the training text.

    Raises:
        ValueError, FileNotFoundError: what `load_pairs` refuses; a monolingual file that is not there, or none where
            they are all.
    """
    files = data.monolingual_source_files
    if only_monolingual and not files:
        raise ValueError("only_monolingual without monolingual_source_files: there is nothing to translate.")
    pairs = None if only_monolingual else load_pairs(data, "train")
    if pairs is not None and not files:
        return pairs
    check_files(files)

    def read() -> Iterator[Pair]:
        if pairs is not None:
            yield from pairs.read()
        yield from ((line, "") for line in read_files(files))

    of_pairs = {} if pairs is None else {"pairs": pairs.key}
    return TextPairs(read, lambda: {**of_pairs, "monolingual": file_hashes(files)})


def load_distilled_pairs(data: DataArguments) -> TextPairs:
    """The training text with the teacher's translations as targets, as `training/distil.py` leaves it.

    Raises:
        ValueError: there is no `distilled_folder` in section `data`.
        FileNotFoundError: the folder does not hold a finished distillation.
    """
    if data.distilled_folder is None:
        raise ValueError("Give --distilled_folder, or name it in section data of the recipe.")
    return _load_distillation(data.distilled_folder, data.max_train_rows)


def _load_distillation(folder: str, max_rows: int | None = None) -> TextPairs:
    """Sources and translations that are whole: `distillation.json` is written last."""
    names = ("train.source.txt", "train.target.txt", "distillation.json")
    files = [str(Path(folder) / name) for name in names]
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no {file}; training/distil.py writes it.")
    return load_text_pairs(files[:1], files[1:2], max_rows)


def load_text_pairs(source_files: Sequence[str], target_files: Sequence[str], max_rows: int | None = None) -> TextPairs:
    """Line-aligned files, plain or .gz; several files of a side are read one after another.

    Raises:
        FileNotFoundError, ValueError: what `check_parallel` refuses; different numbers of lines and lines that are not
            UTF-8 when reading first begins, before the first row.
    """
    if not source_files or not target_files:
        raise ValueError(f"Both sides need text files; given source {source_files}, target {target_files}.")
    check_files([*source_files, *target_files])
    is_checked = False

    def read() -> Iterator[Pair]:
        nonlocal is_checked
        if not is_checked:
            check_parallel(source_files, target_files)
            is_checked = True
        return zip(read_files(source_files), read_files(target_files), strict=True)

    return TextPairs(read, lambda: {"source": file_hashes(source_files), "target": file_hashes(target_files)}, max_rows)


# rows with a `translation` column


def _load_translation_files(
    files: Sequence[str], languages: tuple[str, str], split: str, max_rows: int | None
) -> TextPairs:
    """JSON lines (.json, .jsonl, also .gz) and parquet, one file after another."""
    if not files:
        raise ValueError(f"Give {split}_files: JSON lines or parquet with a translation column.")
    check_files(files)
    for file in files:
        if not file.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")):
            raise ValueError(f"{file}: it must be JSON lines (.json, .jsonl, also .gz) or parquet (.parquet).")

    def read() -> Iterator[Pair]:
        for file in files:
            rows = _read_parquet(file) if file.endswith(".parquet") else _read_json_lines(file)
            yield from (_pick(row, languages, where) for where, row in rows)

    next(read(), None)  # a wrong language shows in the first row
    return TextPairs(read, lambda: {"files": file_hashes(files), "languages": languages}, max_rows)


def _read_json_lines(file: str) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and its translation; an empty line is no row."""
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON, of which each line must hold one object ({error})") from error
        if not isinstance(row, dict) or "translation" not in row:
            raise ValueError(f'{where}: it must be an object with "translation", and is {line[:80]!r}.')
        yield where, row["translation"]


def _read_parquet(file: str) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and its translation."""
    with pyarrow.parquet.ParquetFile(file) as parquet:
        if "translation" not in parquet.schema_arrow.names:
            raise ValueError(f"{file}: no column translation; there are {parquet.schema_arrow.names}.")
        for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=["translation"]):
            for translation in batch.column("translation").to_pylist():
                yield file, translation


def _load_dataset(data: DataArguments, split: str, max_rows: int | None) -> TextPairs:
    """A dataset of the Hub, or a folder that mirrors one.

    A folder is read where it lies, whatever `streaming` says: the copy that `datasets` would make of it is not renewed
    when a file of the folder changes.
    """
    name, languages = str(data.dataset), _languages(data)
    builder = datasets.load_dataset_builder(name, data.dataset_config, revision=data.dataset_revision)
    is_streamed = data.streaming or Path(name).is_dir()

    def read() -> Iterator[Pair]:
        if is_streamed:
            rows = builder.as_streaming_dataset(split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split)
        for batch in rows.iter(ROWS_AT_ONCE):
            if "translation" not in batch:
                raise ValueError(f"{name}: no column translation; there are {list(batch)}.")
            yield from (_pick(translation, languages, name) for translation in batch["translation"])

    next(read(), None)
    # On the Hub, the addresses of the files name the commit; without files, the builder is all that is known.
    files = [str(file) for names in (builder.config.data_files or {}).values() for file in names]
    key = {"config": builder.config.name, "split": split, "languages": languages}
    key |= {} if files else {"dataset": name, "revision": data.dataset_revision, "hash": builder.hash}
    return TextPairs(read, lambda: {**key, "files": file_hashes(files)}, max_rows)


def _languages(data: DataArguments) -> tuple[str, str]:
    if data.source_language is None or data.target_language is None:
        raise ValueError(
            "Give --source_language and --target_language: the keys of translation, for example en and de."
        )
    return data.source_language, data.target_language


def _pick(translation: Any, languages: tuple[str, str], where: str) -> Pair:
    """The two sides of a translation; null is an empty side, and a line break inside a sentence becomes a space."""
    if not isinstance(translation, dict):
        raise ValueError(f"{where}: translation must hold a text for each language, and is {translation!r}.")
    if unknown := [language for language in languages if language not in translation]:
        raise ValueError(f"{where}: no language {', '.join(unknown)} in translation; there are {sorted(translation)}.")
    source, target = (translation[language] or "" for language in languages)
    try:
        (source + target).encode()
    except (TypeError, AttributeError, UnicodeEncodeError) as error:
        raise ValueError(f"{where}: the sides are no texts: {translation!r} ({error}).") from error
    # One sentence is one line wherever it is written out.
    return source.replace("\n", " "), target.replace("\n", " ")


# ASPEC


def _load_aspec(data: DataArguments, split: str, max_rows: int | None) -> TextPairs:
    """ASPEC-JE's training parts one after another, its dev set, or its test set."""
    folder, direction = Path(str(data.aspec_folder)), (data.source_language, data.target_language)
    if sorted(map(str, direction)) != ["en", "ja"]:
        raise ValueError(f"ASPEC is ja to en or en to ja; source_language, target_language are {direction}.")
    if not data.aspec_parts or not set(data.aspec_parts) <= {1, 2, 3}:
        raise ValueError(f"aspec_parts is {data.aspec_parts}; it must name some of 1, 2 and 3.")
    if split != "train":
        files = [folder / ("dev/dev.txt" if split == "valid" else "test/test.txt")]
        check_files(files)
    else:
        files = [_find_aspec_part(folder, part) for part in data.aspec_parts]

    def read() -> Iterator[Pair]:
        for file in files:
            yield from _read_aspec(file, is_japanese_first=direction[0] == "ja", has_score=split == "train")

    return TextPairs(read, lambda: {"aspec": file_hashes(files), "direction": direction}, max_rows)


def _find_aspec_part(folder: Path, part: int) -> Path:
    spellings = [folder / "train" / f"train-{part}.txt", folder / "train" / f"train{part}.txt"]
    for file in spellings:
        if file.is_file():
            return file
    raise FileNotFoundError(f"There is neither {spellings[0]} nor {spellings[1]}.")


def _read_aspec(file: Path, is_japanese_first: bool, has_score: bool) -> Iterator[Pair]:
    """The pairs of a file; a malformed line gives (None, None), with a warning for the first few.

    Raises:
        ValueError: every line is malformed: the file is in another layout.
    """
    layout = f"{'score ||| ' if has_score else ''}document id ||| sentence no. ||| Japanese ||| English"
    num_lines = num_malformed = 0
    complaint = ""
    for num_lines, line in enumerate(read_lines(file), start=1):
        fields = _split_aspec(line, has_score)
        if fields is not None:
            yield fields if is_japanese_first else (fields[1], fields[0])
            continue
        num_malformed += 1
        complaint = complaint or f"{file}, line {num_lines} is not {layout!r}: {line[:80]!r}"
        if num_malformed <= MALFORMED_LINES_NAMED:
            warnings.warn(f"{file}, line {num_lines} is left out, being not {layout!r}: {line[:80]!r}", stacklevel=2)
        yield None, None
    if not num_lines:
        raise ValueError(f"There is not a line in {file}.")
    if num_malformed == num_lines:
        raise ValueError(f"All {num_lines} lines are malformed. {complaint}")
    if num_malformed > MALFORMED_LINES_NAMED:
        warnings.warn(f"{file}: {num_malformed} malformed lines of {num_lines} are left out.", stacklevel=2)


def _split_aspec(line: str, has_score: bool) -> tuple[str, str] | None:
    """Japanese and English of a line; None for a line whose fields cannot be told apart.

    A sentence may hold the separator: then there are too many fields, and nobody can say in which of the two. The
    number of the sentence and the score are looked at too, since a missing field and a separator too many cancel out.
    """
    line += " " if line.endswith(ASPEC_SEPARATOR.rstrip()) else ""
    fields = line.split(ASPEC_SEPARATOR)
    if len(fields) != (5 if has_score else 4):
        return None
    *score, _, number, japanese, english = fields
    if not number.strip().isdigit() or (score and not _is_number(score[0])):
        return None
    # Two separators that share a space: the field between them is empty, or a sentence begins with one.
    if any(side.strip().startswith("|||") or side.strip().endswith("|||") for side in (japanese, english)):
        return None
    return japanese.strip(), english.strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def file_hashes(files: Sequence[str | Path]) -> list[list[str]]:
    """How each file's name ends, by which it is read, and SHA-256 of what it holds; of a remote one, its address."""
    return [[Path(file).suffix, hash_file(Path(file))] if Path(file).exists() else [str(file)] for file in files]
