"""Every kind of source gives the rows that were written, and a hostile line is refused or counted, never misread."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from lvnar_hf.files.text import check_parallel
from training.data.corpora import (
    load_distillation_text,
    load_distilled_pairs,
    load_pairs,
    load_raw_pairs,
    load_text_pairs,
)
from training.sections import DataArguments

LANGUAGES = {"source_language": "de", "target_language": "en"}
# A sentence each way that other readers split, strip or refuse.
SENTENCES = [
    ("Ein Mann schläft.", "A man sleeps."),
    ("a\u2028b\u0085c\x0cd\x1ce", "1 ||| 2"),
    (' "quoted", \\n ', "tab\there"),
    ("日本語", "𝄞 é e\u0301"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` and this package cache goes to the folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def write(tmp_path):
    """Write a file of lines; return its path as text."""

    def write(name: str, lines: list[str], end: str = "\n", start: str = "") -> str:
        data = (start + "".join(line + end for line in lines)).encode()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(tmp_path / name)

    return write


def sides(pairs) -> list[tuple[str, str]]:
    """The text of the rows, whose numbers must be their positions."""
    rows = list(pairs)
    assert [row["row_id"] for row in rows] == list(range(len(rows)))
    return [(row["source"], row["target"]) for row in rows]


# text files


def test_files_of_a_side_are_read_one_after_another(write, tmp_path):
    source = [write("a.en", ["one", "two"]), write("b.en.gz", ["three"])]
    target = [write("all.de", ["eins", "zwei", "drei"])]
    assert check_parallel(source, target) == 3
    pairs = load_text_pairs(source, target)
    assert pairs.column_names == ["row_id", "source", "target"]
    assert pairs["row_id"] == [0, 1, 2] and len(pairs) == 3
    assert pairs["source"] == ["one", "two", "three"] and pairs["target"] == ["eins", "zwei", "drei"]
    assert sides(pairs) == sides(pairs) == [("one", "eins"), ("two", "zwei"), ("three", "drei")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.en", "all.de", "b.en.gz"]  # nothing is copied


def test_an_unknown_column_is_refused(write):
    with pytest.raises(KeyError, match="'input_ids'; the columns are row_id, source, target"):
        load_text_pairs([write("x.en", ["a"])], [write("x.de", ["b"])])["input_ids"]


def test_different_numbers_of_lines_are_refused_before_the_first_row(write):
    pairs = load_text_pairs([write("x.en", ["a"] * 3)], [write("x.de", ["a"] * 2)])
    with pytest.raises(ValueError, match=r"different numbers of lines: 3 in \[.*x\.en'\], 2 in \[.*x\.de'\]"):
        next(iter(pairs))


def test_the_file_and_line_that_is_not_utf8_are_named(write, tmp_path):
    (tmp_path / "bad.de").write_bytes("gut\nschön\n".encode() + "schön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.de, line 3: not valid UTF-8"):
        list(load_text_pairs([write("x.en", ["a"] * 3)], [str(tmp_path / "bad.de")]))


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:20] + b"\xff" * 9 + data[29:]])
def test_a_damaged_gzip_file_is_named(write, damage):
    file = Path(write("x.en.gz", [f"line {i * i}" for i in range(200)]))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.en\.gz, after line \d+: not a whole gzip file"):
        list(load_text_pairs([str(file)], [write("x.de", ["a"] * 200)]))


def test_a_missing_file_is_named(write):
    with pytest.raises(FileNotFoundError, match=r"no text file /nowhere/x\.de"):
        load_text_pairs([write("x.en", ["a"])], ["/nowhere/x.de"])


def test_no_files_are_refused(write):
    with pytest.raises(ValueError, match=r"Both sides need text files; given source \['.*'\], target \[\]"):
        load_text_pairs([write("x.en", ["a"])], [])


def test_empty_files_are_refused(write):
    with pytest.raises(ValueError, match=r"not a line in \['.*x\.en'\] and \['.*x\.de'\]"):
        list(load_text_pairs([write("x.en", [])], [write("x.de", [])]))


def test_line_separators_of_unicode_do_not_end_a_line(write):
    odd = ["a\u2028b", "c\u0085d", "e\x0cf\x1cg", "h\ri", "", "last"]
    pairs = load_text_pairs([write("x.en", odd)], [write("x.de", ["1", "2", "3", "4", "5", "6"])])
    assert sides(pairs) == list(zip(odd, "123456", strict=True))


@pytest.mark.parametrize("name", ["x.en", "x.en.gz"])
def test_line_ends_of_windows_and_a_byte_order_mark_are_no_text(write, name):
    source = write(name, ["one", "\ufefftwo", ""], end="\r\n", start="\ufeff")
    pairs = load_text_pairs([source], [write("x.de", ["1", "2", "3"])])
    assert pairs["source"] == ["one", "\ufefftwo", ""]  # the mark inside a file is a character


def test_an_edited_file_has_another_key(write):
    target = [write("x.de", ["1", "2"])]
    keys = [load_text_pairs([write("x.en", ["a", "b"])], target).key]
    stamp = os.stat(write("x.en", ["a", "b"]))
    source = write("x.en", ["b", "a"])  # the same size and time
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    keys.append(load_text_pairs([source], target).key)
    keys.append(load_text_pairs([source], target, max_rows=1).key)
    keys.append(load_text_pairs(target, [source]).key)
    assert len(set(map(json.dumps, keys))) == 4
    os.utime(source, ns=(1, 1))
    assert keys[1] == load_text_pairs([source], target).key == load_text_pairs([write("y.en", ["b", "a"])], target).key


# which kind

SPLIT_SIDES = [(split, side) for split in ("train", "valid") for side in ("source", "target")]


def test_one_kind_of_source_must_be_named(write):
    with pytest.raises(ValueError, match=r"Section data names no text; it must name one of: text files .*aspec_folder"):
        load_pairs(DataArguments(), "train")
    two = DataArguments(dataset="wmt/wmt14", aspec_folder="aspec")
    with pytest.raises(ValueError, match="Section data names dataset and aspec_folder; it must name one"):
        load_pairs(two, "train")


def test_the_row_limit_is_for_training(write):
    files = {f"{split}_{side}_files": [write(f"{split}.{side}", ["a", "b", "c"])] for split, side in SPLIT_SIDES}
    data = DataArguments(**files, max_train_rows=2)
    assert sides(load_pairs(data, "train")) == [("a", "a"), ("b", "b")]
    assert len(load_pairs(data, "train")) == 2 and len(load_pairs(data, "valid")) == 3
    with pytest.raises(ValueError, match="max_train_rows is 0; it must be at least 1"):
        load_pairs(DataArguments(**files, max_train_rows=0), "train")


def test_the_split_that_is_asked_for_must_have_files(write):
    data = DataArguments(train_source_files=[write("x", ["a"])], train_target_files=[write("y", ["a"])])
    assert sides(load_pairs(data, "train")) == [("a", "a")]
    with pytest.raises(ValueError, match=r"Both sides need text files; given source \[\], target \[\]"):
        load_pairs(data, "valid")


# rows with a translation column


def translations(pairs=SENTENCES) -> list[dict[str, str | None]]:
    return [{"de": source, "en": target} for source, target in pairs]


def write_parquet(file: Path, rows: list[dict[str, str | None]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table({"id": range(len(rows)), "translation": rows}), file, row_group_size=2)
    return str(file)


def json_lines(rows: list) -> list[str]:
    return [json.dumps({"translation": row}, ensure_ascii=False) for row in rows]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz"])
def test_json_lines_give_the_rows_of_their_translation_column(write, name):
    file = write(name, json_lines(translations()), end="\r\n", start="\ufeff")
    second = write("y.jsonl", ["", *json_lines(translations([("x", "y")]))])  # an empty line is no row
    data = DataArguments(train_files=[file, second], valid_files=[second], **LANGUAGES)
    assert sides(load_pairs(data, "train")) == [*SENTENCES, ("x", "y")]
    assert sides(load_pairs(data, "valid")) == [("x", "y")]


def test_parquet_gives_the_rows_of_its_translation_column(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", translations())
    data = DataArguments(train_files=[file], source_language="en", target_language="de", max_train_rows=3)
    assert sides(load_pairs(data, "train")) == [(english, german) for german, english in SENTENCES[:3]]


def test_null_is_empty_and_a_line_break_is_a_space(write, tmp_path):
    odd = [("a\nb", "c\r\nd"), (None, "e"), ("f", "")]
    expected = [("a b", "c\r d"), ("", "e"), ("f", "")]
    for file in (
        write("x.jsonl", json_lines(translations(odd))),
        write_parquet(tmp_path / "x.parquet", translations(odd)),
    ):
        assert sides(load_pairs(DataArguments(train_files=[file], **LANGUAGES), "train")) == expected


def test_an_unknown_language_names_those_that_exist(write, tmp_path):
    for file in (
        write("x.jsonl", json_lines(translations())),
        write_parquet(tmp_path / "x.parquet", translations()),
    ):
        data = DataArguments(train_files=[file], source_language="de", target_language="fr")
        with pytest.raises(ValueError, match=rf"{file}.*: no language fr in translation; there are \['de', 'en'\]"):
            load_pairs(data, "train")


def test_languages_must_be_given(write):
    data = DataArguments(train_files=[write("x.jsonl", json_lines(translations()))], source_language="de")
    with pytest.raises(ValueError, match="Give --source_language and --target_language"):
        load_pairs(data, "train")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON, of which each line must hold one object"),
        ("[]", 'must be an object with "translation"'),
        ('{"text": "a"}', 'must be an object with "translation"'),
        ('{"translation": ["a", "b"]}', "translation must hold a text for each language"),
        ('{"translation": {"de": "a"}}', r"no language en in translation; there are \['de'\]"),
        ('{"translation": {"de": "a", "en": 5}}', "the sides are no texts"),
        (r'{"translation": {"de": "\ud800", "en": "b"}}', "the sides are no texts"),
    ],
)
def test_a_line_that_is_no_row_is_named(write, line, complaint):
    file = write("x.jsonl", [*json_lines(translations()), line])
    pairs = load_pairs(DataArguments(train_files=[file], **LANGUAGES), "train")
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 5: .*{complaint}"):
        list(pairs)


def test_other_files_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match=r"x\.csv: it must be JSON lines .* or parquet"):
        load_pairs(DataArguments(train_files=[write("x.csv", ["de,en"])], **LANGUAGES), "train")
    with pytest.raises(FileNotFoundError, match=r"no text file /nowhere/x\.jsonl"):
        load_pairs(DataArguments(train_files=["/nowhere/x.jsonl"], **LANGUAGES), "train")
    with pytest.raises(ValueError, match="Give valid_files"):
        load_pairs(DataArguments(train_files=[write("x.jsonl", [])], **LANGUAGES), "valid")
    pa.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: no column translation; there are \['text'\]"):
        load_pairs(DataArguments(train_files=[str(tmp_path / "x.parquet")], **LANGUAGES), "train")


# a dataset of the Hub, or a mirror


@pytest.fixture
def mirror(tmp_path) -> Path:
    """A folder with the layout and the schema of wmt/wmt14: training text in two files."""
    folder = tmp_path / "wmt14"
    write_parquet(folder / "de-en" / "train-00000-of-00002.parquet", translations(SENTENCES[:3]))
    write_parquet(folder / "de-en" / "train-00001-of-00002.parquet", translations(SENTENCES[3:]))
    write_parquet(folder / "de-en" / "validation-00000-of-00001.parquet", translations([("g", "v")]))
    lines = ["---", "configs:", "- config_name: de-en", "  data_files:"]
    for split in ("train", "validation"):
        lines += [f"  - split: {split}", f"    path: de-en/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def wmt14(folder: Path | str, **changes) -> DataArguments:
    return DataArguments(**{"dataset": str(folder), "dataset_config": "de-en", **LANGUAGES, **changes})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mirror_is_read_where_it_lies(mirror, tmp_path, streaming):
    assert sides(load_pairs(wmt14(mirror, streaming=streaming), "train")) == SENTENCES
    assert sides(load_pairs(wmt14(mirror, streaming=streaming), "valid")) == [("g", "v")]
    english_german = wmt14(mirror, source_language="en", target_language="de", max_train_rows=2)
    assert sides(load_pairs(english_german, "train")) == [(english, german) for german, english in SENTENCES[:2]]
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_changed_mirror_is_read_again(mirror):
    before = load_pairs(wmt14(mirror), "train").key
    for file in mirror.rglob("*.parquet"):
        os.utime(file, ns=(1, 1))
    assert load_pairs(wmt14(mirror), "train").key == before, "what the files hold counts, not their times"
    write_parquet(mirror / "de-en" / "train-00001-of-00002.parquet", translations([("neu", "new")]))
    after = load_pairs(wmt14(mirror), "train")
    assert sides(after) == [*SENTENCES[:3], ("neu", "new")]
    assert before != after.key == load_pairs(wmt14(mirror), "train").key
    assert load_pairs(wmt14(mirror), "valid").key != after.key


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_is_streamed_or_copied(mirror, tmp_path, monkeypatch, streaming):
    """The Hub is played by the mirror; what the library does with the real one is its own."""
    load, asked = datasets.load_dataset_builder, []

    def load_builder(name, config, revision):
        asked.append((name, config, revision))
        return load(str(mirror), config, cache_dir=str(tmp_path / "hub"))

    monkeypatch.setattr("datasets.load_dataset_builder", load_builder)
    data = wmt14("wmt/wmt14", dataset_revision="main", streaming=streaming)
    assert sides(load_pairs(data, "train")) == SENTENCES
    assert asked == [("wmt/wmt14", "de-en", "main")]
    assert bool(list((tmp_path / "hub").rglob("*.arrow"))) is not streaming


def test_what_a_dataset_lacks_is_named(mirror):
    with pytest.raises(ValueError, match=r"no language fr in translation; there are \['de', 'en'\]"):
        load_pairs(wmt14(mirror, target_language="fr"), "train")
    with pytest.raises(ValueError, match=r"'fr-en' not found. Available: \['de-en'\]"):
        load_pairs(wmt14(mirror, dataset_config="fr-en"), "train")
    with pytest.raises(ValueError, match=r"dev.*\['train', 'validation'\]"):
        load_pairs(wmt14(mirror, valid_split="dev"), "valid")
    for file in mirror.glob("de-en/*"):
        pa.parquet.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(ValueError, match=r"no column translation; there are \['text'\]"):
        load_pairs(wmt14(mirror), "valid")


# ASPEC

JAPANESE_ENGLISH = [("水は沸騰した。", "Water boiled."), ("結果を示す。", "Results are shown; p < 0.05."), ("", "")]


def aspec_lines(pairs=JAPANESE_ENGLISH, has_score: bool = True) -> list[str]:
    score = ["1.333"] if has_score else []
    return [" ||| ".join([*score, "F-81A0093829", str(n), *pair]) for n, pair in enumerate(pairs, start=1)]


def aspec(folder: Path, source="ja", target="en", **changes) -> DataArguments:
    return DataArguments(aspec_folder=str(folder), source_language=source, target_language=target, **changes)


@pytest.mark.parametrize("spelling", ["train-{}", "train{}"])
def test_aspec_is_read_as_it_is_distributed(write, tmp_path, spelling, recwarn):
    for part in (1, 2, 3):
        write(f"train/{spelling.format(part)}.txt", aspec_lines([(f"日{part}", f"e{part}")]))
    write("dev/dev.txt", aspec_lines(has_score=False))
    assert sides(load_pairs(aspec(tmp_path), "train")) == [("日1", "e1"), ("日2", "e2"), ("日3", "e3")]
    two = aspec(tmp_path, "en", "ja", aspec_parts=[3, 1], max_train_rows=2)
    assert sides(load_pairs(two, "train")) == [("e3", "日3"), ("e1", "日1")]
    assert sides(load_pairs(aspec(tmp_path), "valid")) == JAPANESE_ENGLISH
    assert not recwarn.list
    assert load_pairs(aspec(tmp_path), "train").key != load_pairs(aspec(tmp_path, "en", "ja"), "train").key


# What stands in a line of train-1.txt, and what must be made of it; None: it is malformed.
ASPEC_LINES = [
    ("1.0 ||| D ||| 1 ||| 日 ||| a", ("日", "a")),
    ("0.05 ||| D ||| 12 ||| a|||b ||| x || y", ("a|||b", "x || y")),  # no separators: they have no spaces
    ("1 ||| D ||| 1 ||| 日\u2028本\u0085 ||| a\u2029b", ("日\u2028本", "a\u2029b")),
    ("1.0 ||| D ||| 1 ||| 日 ||| a ||| b", None),  # a separator in a sentence, but in which?
    ("1.0 ||| D ||| 1 ||| 日 ||| 本 ||| a", None),
    ("D ||| 1 ||| 日 ||| a", None),  # no score
    ("D ||| 1 ||| 日 ||| a ||| b", None),  # no score, and a separator in a sentence: as many fields as there should be
    ("1.0 ||| 1 ||| 日 ||| a ||| b", None),  # no document, the same
    ("1.0 ||| D ||| 日 ||| a", None),
    ("1.0 ||| D ||| 日 ||| a ||| b", None),
    ("1.0 ||| D ||| 1 ||| 日", None),
    ("", None),
    ("1.0 ||| D ||| 1 |||  ||| a", ("", "a")),  # an empty side
    ("1.0 ||| D ||| 1 ||| 日 ||| ", ("日", "")),
    ("1.0 ||| D ||| 1 ||| 日 |||", ("日", "")),
    ("1.0 ||| D ||| 1 ||| ||| a", None),  # two separators that share a space: 4 fields
    ("1.0 ||| D ||| 1 ||| ||| a ||| b", None),  # the same, and one in the sentence: 5 fields
    ("1.0\t|||\tD ||| 1 ||| 日 ||| a", None),
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_hostile_lines_of_aspec_are_read_rightly_or_counted(write, tmp_path, start, end):
    file = write("train/train-1.txt", [line for line, _ in ASPEC_LINES], end=end, start=start)
    pairs = load_pairs(aspec(tmp_path, aspec_parts=[1]), "train")
    with pytest.warns(UserWarning) as caught:
        rows = list(pairs.read())
    assert rows == [pair or (None, None) for _, pair in ASPEC_LINES]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 4  # three lines by their number, then the count of all
    assert messages[0].startswith(f"{file}, line 4 is left out, being not 'score ||| document id")
    num_malformed = sum(pair is None for _, pair in ASPEC_LINES)
    assert f"{file}: {num_malformed} malformed lines of {len(ASPEC_LINES)} are left out" in messages[3]
    with pytest.warns(UserWarning):
        assert sides(pairs) == [pair or ("", "") for _, pair in ASPEC_LINES]  # they keep their row


def test_aspec_in_another_layout_is_refused(write, tmp_path):
    write("train/train1.txt", aspec_lines(has_score=False))
    with (
        pytest.raises(ValueError, match=r"All 3 lines are malformed\. .*train1\.txt, line 1 is not 'score"),
        pytest.warns(),
    ):
        list(load_pairs(aspec(tmp_path, aspec_parts=[1]), "train"))
    write("dev/dev.txt", [])
    with pytest.raises(ValueError, match=r"not a line in .*dev\.txt"):
        list(load_pairs(aspec(tmp_path), "valid"))


def test_what_aspec_lacks_is_named(write, tmp_path):
    write("train/train-1.txt", aspec_lines())
    with pytest.raises(FileNotFoundError, match=r"neither .*train-2\.txt nor .*train2\.txt"):
        load_pairs(aspec(tmp_path), "train")
    with pytest.raises(FileNotFoundError, match=r"no text file .*dev/dev\.txt"):
        load_pairs(aspec(tmp_path), "valid")
    for parts in ([], [0], [1, 4]):
        with pytest.raises(ValueError, match=r"aspec_parts is .*; it must name some of 1, 2 and 3"):
            load_pairs(aspec(tmp_path, aspec_parts=parts), "train")
    for languages in (("ja", "ja"), ("ja", None), ("de", "en")):
        with pytest.raises(ValueError, match="ASPEC is ja to en or en to ja"):
            load_pairs(aspec(tmp_path, *languages), "train")


# the teacher's translations


def test_text_without_a_translation_follows_the_pairs(write):
    two = {"train_source_files": [write("a.en", ["one"]), write("b.en", ["two"])]}
    two |= {"train_target_files": [write("a.de", ["eins"]), write("b.de", ["zwei"])]}
    pairs = load_distillation_text(DataArguments(**two))
    assert sides(pairs) == sides(load_pairs(DataArguments(**two), "train")) == [("one", "eins"), ("two", "zwei")]
    mono = [write("c.en", ["three", "one"]), write("d.en.gz", ["four"])]
    data = DataArguments(**two, monolingual_source_files=mono)
    text = load_distillation_text(data)
    assert sides(text) == [("one", "eins"), ("two", "zwei"), ("three", ""), ("one", ""), ("four", "")]
    assert sides(load_pairs(data, "train")) == sides(pairs), "the teacher learns from pairs alone"
    assert json.dumps(text.key) != json.dumps(pairs.key)
    limited = load_distillation_text(DataArguments(**two, monolingual_source_files=mono, max_train_rows=1))
    assert sides(limited) == [("one", "eins"), ("three", ""), ("one", ""), ("four", "")]
    with pytest.raises(FileNotFoundError, match="no text file /nowhere/x"):
        load_distillation_text(DataArguments(**two, monolingual_source_files=["/nowhere/x"]))
    alone = load_distillation_text(data, only_monolingual=True)
    assert sides(alone) == sides(text)[2:] and json.dumps(alone.key) != json.dumps(text.key)
    with pytest.raises(ValueError, match="only_monolingual without monolingual_source_files"):
        load_distillation_text(DataArguments(**two), only_monolingual=True)


def test_back_translations_follow_the_pairs_turned_round(write, tmp_path):
    """The other direction's teacher translated "drei" and "vier"; here they are targets."""
    files = {
        "train_source_files": [write("a.en", ["one", "two"])],
        "train_target_files": [write("a.de", ["eins", "zwei"])],
    }
    data = DataArguments(**files, back_translated_folder=str(tmp_path / "back"), max_train_rows=3)
    with pytest.raises(FileNotFoundError, match=r"no .*back/train\.source\.txt; training/distil\.py writes it"):
        load_raw_pairs(data)
    for name, lines in (("source.txt", ["drei", "vier"]), ("target.txt", ["three", "four"])):
        write(f"back/train.{name}", lines)
    write("back/distillation.json", ["{}"])
    pairs, plain = load_raw_pairs(data), load_pairs(data, "train")
    assert sides(pairs) == [("one", "eins"), ("two", "zwei"), ("three", "drei")], "three rows are asked for"
    assert json.dumps(pairs.key) != json.dumps(plain.key)
    assert load_raw_pairs(DataArguments(**files, max_train_rows=3)).key == plain.key
    assert sides(load_distillation_text(data)) == sides(plain), "nobody translates them again"


def test_distilled_text_is_read_from_its_folder(write, tmp_path):
    data = DataArguments(distilled_folder=str(tmp_path), dataset="wmt/wmt14")
    with pytest.raises(FileNotFoundError, match=r"no .*train\.source\.txt; training/distil\.py writes it"):
        load_distilled_pairs(data)
    write("train.source.txt", ["eins", "zwei"])
    write("train.target.txt", ["one", "two"])
    with pytest.raises(FileNotFoundError, match=r"no .*distillation\.json"):  # it is written when the rest is whole
        load_distilled_pairs(data)
    write("distillation.json", ["{}"])
    assert sides(load_distilled_pairs(data)) == [("eins", "one"), ("zwei", "two")]
    with pytest.raises(ValueError, match="Give --distilled_folder"):
        load_distilled_pairs(DataArguments())
