"""Distillation: what the teacher says is what is written, whoever is killed on the way."""

import gzip
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from launches import kill_and_see_all_end, run_apart, start, wait_until

from lvnar_hf import train_tokenizer
from lvnar_hf.decoding import make_batches
from lvnar_hf.files.text import one_line
from lvnar_hf.jobs.executors import progress, run_tasks
from lvnar_hf.jobs.file_translation import translate_file
from tests.distillation.test_teacher_engines import make_teacher_model
from training import distil, teacher
from training.data.corpora import TextPairs, load_raw_pairs
from training.distillation.backends import (
    CTranslate2Engine,
    SearchSettings,
    TeacherOutput,
)
from training.distillation.degeneration import is_loop, most_repeats
from training.distillation.run import Distillation, make_plan
from training.distillation.teacher import load_teacher
from training.sections import DataArguments

SETTINGS = {"on_degenerate": "reference", "shard_size": 4, "num_beams": 2}
FILES = ("train.source.txt", "train.target.txt", "degenerate.jsonl")
SEARCH = SearchSettings(num_beams=4, length_penalty=1.0, max_target_length=12, max_batch_tokens=100)


def text_pairs(sources: list[str], targets: list[str]) -> TextPairs:
    return TextPairs(lambda: zip(sources, targets, strict=True), lambda: "test")


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def lines(file: Path) -> list[str]:
    return file.read_bytes().decode().removesuffix("\n").split("\n")


class StubEngine:
    """Says what it is told to, by the source's text."""

    name = "stub"
    description = {"engine": "stub"}

    def __init__(self, tokenizer, translation_of: Callable[[str], TeacherOutput]):
        self.tokenizer, self.translation_of = tokenizer, translation_of
        self.seen: list[str] = []

    def translate(self, source_ids, on_progress=lambda tokens: None):
        outputs = []
        for ids in source_ids:
            source = self.tokenizer.decode(ids, skip_special_tokens=True)
            self.seen.append(source)
            outputs.append(self.translation_of(source))
            on_progress(len(ids))
        return outputs

    def say(self, text: str, is_cut: bool = False) -> TeacherOutput:
        ids = self.tokenizer(text_target=text)[
            "labels" if "labels" in self.tokenizer(text_target=text) else "input_ids"
        ]
        return TeacherOutput(ids[:-1], is_cut)


def echo(tokenizer) -> StubEngine:
    """Translates a sentence into itself, twice."""
    engine = StubEngine(tokenizer, lambda source: engine.say(f"{source} / {source}"))
    return engine


def do_task(run: Distillation, shard: int, engine: StubEngine) -> None:
    """What a process does of one shard."""
    run.engine, data = engine, None
    for step in run.pipeline:
        data = step(data, shard, run.num_shards)
    assert not any(data)


# degenerate translations


@pytest.mark.parametrize(
    ("ids", "repeats"),
    [
        ("", 0),
        ("a", 1),
        ("abc", 1),
        ("aa", 2),
        ("xaaaay", 4),
        ("abab", 2),
        ("abcabcabcab", 3),
        ("xabcdabcdabcdabcdy", 4),
        ("abcdeabcdeabcdeabcde", 1),
    ],
)
def test_most_repeats(ids, repeats):
    assert most_repeats([ord(letter) for letter in ids]) == repeats


def test_a_loop_is_one_that_neither_source_nor_reference_has():
    loop = [5, 6, 7, 7, 7, 7]
    assert is_loop(loop, [1, 2, 3], [4, 5, 6])
    assert not is_loop([5, 6, 7, 7, 7], [1, 2, 3], [4, 5, 6])
    assert not is_loop(loop, [8, 8, 1], [4, 5, 6]), "4 is not more than twice 2"
    assert not is_loop(loop, [1, 2, 3], [4, 5, 9, 9, 9])
    assert is_loop([7] * 9, [1, 2, 3], [4, 9, 9, 9, 9])
    assert not is_loop([], [], [])


def test_one_line_keeps_what_ends_no_line():
    assert one_line("a\nb\r\nc\rd\u2028e\x85f\x0cg") == "a b c d\u2028e\x85f\x0cg"


SENTENCES = {
    "good one": ("a good translation", "ref good"),
    "nothing": ("", "ref empty"),
    "again": ("no no no no no no no no", "ref loop"),
    "long": ("never ends", "ref cut"),
    "": (None, "ref empty source"),
    "far " * 30: (None, "ref too long"),
    "more\u2028or less": ("one\u2028two", "ref separator"),
}
KIND_OF = {"nothing": "empty", "again": "loop", "long": "cut", "": "empty_source", "far " * 30: "source_too_long"}


@pytest.mark.parametrize("on_degenerate", ["reference", "drop", "keep"])
def test_degenerate_translations_are_counted_and_handled(tmp_path, sample_tokenizer, on_degenerate):
    engine = StubEngine(
        sample_tokenizer,
        lambda source: engine.say(
            next(said for text, (said, _) in SENTENCES.items() if sample_tokenizer.normalize(text) == source),
            is_cut=source == "long",
        ),
    )
    pairs = text_pairs(list(SENTENCES), [reference for _, reference in SENTENCES.values()])
    run = Distillation(tmp_path, pairs, sample_tokenizer, 25, {**SETTINGS, "on_degenerate": on_degenerate})
    assert not run.prepare()
    run_tasks(run, engine)
    result = run.merge({"teacher": "stub"})
    assert len(engine.seen) == 5 and "" not in engine.seen, "what the teacher cannot take, it is not given"

    expected = {}
    for source, (said, reference) in SENTENCES.items():
        if source not in KIND_OF:
            expected[source] = sample_tokenizer.normalize(said)
        elif on_degenerate == "reference":
            expected[source] = reference
        elif on_degenerate == "keep":
            expected[source] = said or ""
    assert lines(tmp_path / FILES[0]) == list(expected)
    assert lines(tmp_path / FILES[1]) == list(expected.values())
    assert result["counts"] == {
        "lines": 7,
        "without_reference": 0,
        "repeated": 0,
        "translated": 5,
        "dropped": 5 if on_degenerate == "drop" else 0,
        "written": 2 if on_degenerate == "drop" else 7,
        "degenerate": {"empty_source": 1, "source_too_long": 1, "empty": 1, "loop": 1, "cut": 1},
    }
    degenerate = [json.loads(line) for line in lines(tmp_path / FILES[2])]
    assert {line["source"]: line["kind"] for line in degenerate} == KIND_OF
    assert json.loads((tmp_path / "distillation.json").read_text()) == result
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "distillation.json"])


@pytest.mark.parametrize("on_degenerate", ["reference", "drop", "keep"])
def test_each_source_is_translated_once_and_needs_no_reference(tmp_path, sample_tokenizer, on_degenerate):
    rows = {
        ("one", "eins"): "x",
        ("two", "zwei"): "x",
        ("one", "ein"): None,  # repeated
        ("nothing", "nichts"): "nichts",  # the teacher says nothing, and the reference stands for it
        ("nothing", "kein"): None,
        ("", "leer"): "leer",
        ("three", ""): "x",  # without a reference from here on
        ("two", ""): None,
        ("", " "): None,
        ("nothing at all", ""): "dropped",
        ("far " * 30, ""): "dropped",
        ("three", " "): None,
    }
    engine = StubEngine(sample_tokenizer, lambda source: engine.say("" if "nothing" in source else "x"))
    pairs = text_pairs(*map(list, zip(*rows, strict=True)))
    run = Distillation(tmp_path, pairs, sample_tokenizer, 25, {**SETTINGS, "on_degenerate": on_degenerate})
    run.prepare()
    run_tasks(run, engine)
    counts = run.merge({})["counts"]
    assert sorted(engine.seen) == ["nothing", "nothing at all", "one", "three", "two"]
    expected = [
        (source, "" if on_degenerate == "keep" and said != "x" else said)
        for (source, _), said in rows.items()
        if said == "x" or (said is not None and (on_degenerate == "keep" or (on_degenerate, said) in TAKEN))
    ]
    written = list(zip(lines(tmp_path / FILES[0]), lines(tmp_path / FILES[1]), strict=True))
    assert written == expected and len(written) == {"reference": 5, "drop": 3, "keep": 7}[on_degenerate]
    assert counts == {
        "lines": 12,
        "without_reference": 6,
        "repeated": 5,
        "translated": 5,
        "dropped": 7 - len(written),
        "written": len(written),
        "degenerate": {"empty_source": 1, "source_too_long": 1, "empty": 2, "loop": 0, "cut": 0},
    }


TAKEN = [("reference", "nichts"), ("reference", "leer")]


def test_newlines_inside_a_text_become_spaces(tmp_path, sample_tokenizer):
    pairs = text_pairs(["one\ntwo", "three"], ["eins\r\nzwei", "drei"])
    run = Distillation(tmp_path, pairs, sample_tokenizer, None, SETTINGS)
    run.prepare()
    run_tasks(run, StubEngine(sample_tokenizer, lambda source: TeacherOutput([], False)))
    run.merge({})
    assert lines(tmp_path / FILES[0]) == ["one two", "three"]
    assert lines(tmp_path / FILES[1]) == ["eins zwei", "drei"]


# order, shards, settings


def test_the_plan_puts_the_longest_first_and_leaves_out_what_cannot_be_translated(tmp_path, sample_tokenizer):
    sources = ["x", "x x x x", " ", "x x", "x " * 50, "y"]
    plan = make_plan(text_pairs(sources, sources), sample_tokenizer, 40, tmp_path / "copy")
    assert plan.order.tolist() == [1, 3, 0, 5]
    assert plan.lengths.tolist() == sorted(plan.lengths.tolist(), reverse=True)
    assert plan.kinds.tolist() == [0, 0, 1, 0, 2, 0]


@pytest.mark.parametrize("max_tokens", [1, 7, 100])
def test_batches_hold_every_sentence_once_within_the_budget(max_tokens):
    lengths = [9, 8, 8, 3, 3, 3, 2, 1, 1]
    batches = make_batches(lengths, max_tokens)
    assert [index for batch in batches for index in batch] == list(range(9))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= max_tokens
    assert make_batches([], 5) == []


@pytest.fixture
def sample_pairs(sample_texts) -> TextPairs:
    sources, targets = (side[:30] for side in sample_texts)
    return text_pairs([*sources[:7], "", *sources[7:]], [*targets[:7], "leer", *targets[7:]])


def run_all(folder: Path, pairs: TextPairs, tokenizer, **changes) -> dict:
    run = Distillation(folder, pairs, tokenizer, 40, {**SETTINGS, **changes})
    assert not run.prepare()
    run_tasks(run, echo(tokenizer))
    return run.merge({})


def test_another_size_of_shards_gives_the_same_text(tmp_path, sample_pairs, sample_tokenizer):
    run_all(tmp_path / "a", sample_pairs, sample_tokenizer)
    run_all(tmp_path / "b", sample_pairs, sample_tokenizer, shard_size=1000)
    assert read(tmp_path / "a") == read(tmp_path / "b")


def test_the_result_is_left_alone_when_it_is_there(tmp_path, sample_pairs, sample_tokenizer):
    run_all(tmp_path, sample_pairs, sample_tokenizer)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    for overwrite in (False, True):
        assert run.prepare(overwrite)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / FILES[1]).write_text("changed\n")
    with pytest.raises(ValueError, match=r"train\.target\.txt is not as distillation\.json says"):
        run.prepare()


def test_other_settings_are_refused_with_the_difference(tmp_path, sample_pairs, sample_tokenizer):
    begun = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    begun.prepare()
    do_task(begun, 0, echo(sample_tokenizer))
    begun.close()
    other = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, {**SETTINGS, "num_beams": 5})
    with pytest.raises(ValueError, match=r"other settings: num_beams: 2 then, 5 now\. Give .* --overwrite"):
        other.prepare()
    other_text = text_pairs(["another", "corpus"], ["x", "y"])
    with pytest.raises(ValueError, match="other settings: corpus_fingerprint: "):
        Distillation(tmp_path, other_text, sample_tokenizer, 40, SETTINGS).prepare()
    # The same settings go on, told to overwrite or not; others begin anew.
    again = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    assert not again.prepare(overwrite=True)
    assert 0 not in again._unfinished_shards()
    again.close()
    assert not other.prepare(overwrite=True)
    assert 0 in other._unfinished_shards()
    run_tasks(other, echo(sample_tokenizer))
    other.merge({})
    with pytest.raises(ValueError, match=r"num_beams: 5 then, 2 now"):
        again.prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "distillation.json"])


def test_a_folder_with_something_else_in_it_is_refused(tmp_path, sample_pairs, sample_tokenizer):
    (tmp_path / "thesis.txt").write_text("mine")
    run = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    with pytest.raises(FileExistsError, match="--distilled_folder, or give --overwrite"):
        run.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert not run.prepare(overwrite=True)
    run.close()


@pytest.mark.parametrize(("name", "value"), [("on_degenerate", "ignore"), ("shard_size", 0)])
def test_settings_that_mean_nothing_are_refused(tmp_path, sample_pairs, sample_tokenizer, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be"):
        Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, {**SETTINGS, name: value})


@pytest.mark.parametrize("damage", ["lost", "doubled", "moved"])
def test_a_lost_or_doubled_line_is_noticed(tmp_path, sample_pairs, sample_tokenizer, damage):
    run = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    run.prepare()
    run_tasks(run, echo(sample_tokenizer))
    first, second = (run._shard_file(shard).read_text().splitlines(keepends=True) for shard in (0, 1))
    if damage == "lost":
        first.pop()
    elif damage == "doubled":
        first.append(second[1])
    else:  # two rows have each other's translations
        one, two = json.loads(first[1]), json.loads(first[2])
        first[1] = json.dumps({**two, "row_id": one["row_id"]}) + "\n"
    run._shard_file(0).write_text("".join(first))
    with pytest.raises(RuntimeError, match=r"does not hold the rows|is in the shards 0 and 1|of another sentence"):
        run.merge({})
    assert not (tmp_path / "distillation.json").exists() and run._shard_file(0).exists()
    run.close()


def test_a_finished_shard_is_not_translated_again(tmp_path, sample_pairs, sample_tokenizer):
    run = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    run.prepare()
    # As a process is sent it, which has no corpus.
    helper = pickle.loads(pickle.dumps(run))
    engine = echo(sample_tokenizer)
    do_task(helper, 2, engine)  # and is killed before datatrove notes it
    do_task(helper, 2, engine)
    assert 2 not in run._unfinished_shards() and not hasattr(helper, "pairs")
    assert run_tasks(run, engine) and run_tasks(run, engine)
    assert not run._unfinished_shards() and sorted(engine.seen) == sorted(set(engine.seen))
    run.merge({})


def test_an_engine_that_fails_fails_the_run_which_goes_on(tmp_path, sample_pairs, sample_tokenizer):
    run = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    run.prepare()
    engine = echo(sample_tokenizer)
    good = engine.translation_of
    engine.translation_of = lambda source: good(source) if len(engine.seen) < 10 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        run_tasks(run, engine)
    assert len(run._unfinished_shards()) == run.num_shards - 2
    run_tasks(run, echo(sample_tokenizer))
    run.merge({})


def test_the_progress_is_in_tokens_of_all_processes(tmp_path, sample_pairs, sample_tokenizer):
    run = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    run.prepare()
    engine = echo(sample_tokenizer)
    do_task(run, 0, engine)
    first, second = (int(run.plan.lengths[4 * shard : 4 * shard + 4].sum()) for shard in (0, 1))
    assert first > second, "longest first"
    with progress(run) as look:
        assert (look().n, look().total) == (first, run.plan.lengths.sum())
        run.on_progress(5)
        assert look().n == first + 5
        do_task(run, 1, engine)
        assert look().n == first + second + 5
    run.close()


def test_a_second_run_waits_for_the_first(tmp_path, sample_pairs, sample_tokenizer, capsys):
    first = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
    first.prepare()
    with multiprocessing.pool.ThreadPool(1) as pool:
        second = Distillation(tmp_path, sample_pairs, sample_tokenizer, 40, SETTINGS)
        waiting = pool.apply_async(second.prepare)
        run_tasks(first, echo(sample_tokenizer))
        time.sleep(0.2)
        assert not waiting.ready()
        first.merge({})
        assert waiting.get(timeout=30), "finished by the first"
    assert "another run is at work" in capsys.readouterr().err
    assert not (tmp_path / "unfinished").exists()


# the command


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, sample_texts, sample_tokenizer) -> Path:
    """A corpus of 40 pairs, one of them with an empty source, and a teacher."""
    folder = tmp_path_factory.mktemp("distil")
    for name, side in zip(("train.en", "train.de"), sample_texts, strict=True):
        (folder / name).write_text("\n".join([*side[:39], "" if name == "train.en" else "leer"]) + "\n", "utf-8")
    make_teacher_model(len(sample_tokenizer)).save_pretrained(folder / "teacher")
    sample_tokenizer.save_pretrained(folder / "teacher")
    return folder


def flags(workplace: Path, folder: Path, **changes) -> list[str]:
    values = {
        "train_source_files": workplace / "train.en",
        "train_target_files": workplace / "train.de",
        "teacher": workplace / "teacher",
        "distilled_folder": folder,
        "num_beams": 2,
        "max_target_length": 12,
        "max_batch_tokens": 60,
        "shard_size": 7,
        "on_degenerate": "keep",
        **changes,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def unbroken(workplace) -> Path:
    """The result of a run that was never stopped, one process."""
    distil.main(flags(workplace, workplace / "unbroken"))
    return workplace / "unbroken"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_command_writes_what_the_teacher_says(workplace, unbroken, sample_tokenizer, sample_texts):
    teacher = load_teacher(str(workplace / "teacher"))
    sources = sample_texts[0][:39]
    encoded = sample_tokenizer(sources)["input_ids"]
    taken = [len(ids) <= 40 for ids in encoded]
    assert taken.count(False) == 1, "one is longer than the teacher's 40 positions"
    engine = CTranslate2Engine(teacher, SearchSettings(2, 1.0, 12, 60))
    outputs = iter(engine.translate([ids for ids in encoded if len(ids) <= 40]))
    texts = [
        one_line(sample_tokenizer.decode(next(outputs).ids, skip_special_tokens=True)) if is_taken else ""
        for is_taken in taken
    ]
    assert lines(unbroken / FILES[0]) == [*sources, ""]
    assert lines(unbroken / FILES[1]) == [*texts, ""] and len(set(texts)) > 10
    result = json.loads((unbroken / "distillation.json").read_text())
    assert result["counts"]["lines"] == result["counts"]["written"] == 40 and result["counts"]["translated"] == 38
    degenerate = result["counts"]["degenerate"]
    assert degenerate["empty_source"] == degenerate["source_too_long"] == 1 and degenerate["loop"] > 5
    (description,) = result["engines"]
    assert description["engine"] == "ctranslate2" and description["compute_type"] == "float32"
    assert result["num_beams"] == 2 and result["teacher_fingerprint"] == teacher.fingerprint
    assert result["tokenizer"] == {"class": "LvnarTokenizer", "vocab_size": 500, "target_vocab_size": 500}
    assert result["sentences_per_second"] > 0 and result["num_processes"] == 1


def test_the_transformers_engine_does_the_same_job(workplace, tmp_path, unbroken):
    result = distil.main(flags(workplace, tmp_path / "out", engine="transformers"))
    assert result["engines"][0]["engine"] == "transformers" and result["engines"][0]["early_stopping"] is False
    assert read(tmp_path / "out")[FILES[0]] == read(unbroken)[FILES[0]]
    assert result["counts"]["written"] == 40


def test_two_vocabularies(workplace, tmp_path, sample_texts):
    tokenizer = train_tokenizer(*sample_texts, vocab_size=400, target_vocab_size=450, joint=False, max_length=40)
    make_teacher_model(400, 450).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    written = []
    for engine in ("ctranslate2", "transformers"):
        folder = tmp_path / engine
        result = distil.main(flags(workplace, folder, teacher=tmp_path / "teacher", engine=engine, num_beams=1))
        assert result["tokenizer"] == {"class": "LvnarTokenizer", "vocab_size": 400, "target_vocab_size": 450}
        written.append(lines(folder / FILES[1]))
    assert sum(map(str.__eq__, *written)) >= 38


def test_what_is_missing_is_said(workplace, tmp_path):
    with pytest.raises(ValueError, match="Give --teacher"):
        distil.main([])
    with pytest.raises(ValueError, match="Give --distilled_folder"):
        distil.main(["--teacher", str(workplace / "teacher")])
    with pytest.raises(ValueError, match="compute_type is int3"):
        distil.main(flags(workplace, tmp_path / "out", compute_type="int3"))
    assert not (tmp_path / "out").exists(), "nothing is begun that could not be done"
    with pytest.raises(ValueError, match="num_beams: 2 then, 3 now"):
        distil.main(flags(workplace, tmp_path / "out"))
        distil.main(flags(workplace, tmp_path / "out", num_beams=3))


def test_the_engines_are_compared_on_the_same_sentences(workplace, tmp_path):
    distil.main(
        [
            *flags(workplace, tmp_path / "out", compute_type="int8"),
            *("--benchmark_sentences", "10", "--benchmark_rounds", "1"),
            *("--benchmark_file", str(tmp_path / "folder" / "times.json")),
        ]
    )
    result = json.loads((tmp_path / "folder" / "times.json").read_text())
    assert list(result["engines"]) == [
        "transformers",
        "transformers, early_stopping",
        "ctranslate2 float32",
        "ctranslate2 int8",
    ]
    for engine in result["engines"].values():
        assert engine["sentences_per_second"] > 0 and engine["bleu"]["signature"]
    assert result["engines"]["ctranslate2 float32"]["equal_to_transformers_early_stopping"] == 1.0
    assert not (tmp_path / "out").exists()


# killed


def run_until(given: list[str] | dict, renames: int, when: str) -> None:
    """Distil, or, with options, translate a file; die before or after so many files got their names."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    replace, seen = os.replace, 0

    def counted(source, target):
        nonlocal seen
        seen += 1
        if seen == renames and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if seen == renames:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    if isinstance(given, dict):
        translate_file(**given)
    else:
        distil.main(given)


# One process after another, from nothing to a result: plan, run.json, six shards, three texts, distillation.json.
MOMENTS = [
    (1, "after"),  # a plan, but no run.json: all begins anew
    (2, "before"),
    (3, "after"),  # one shard
    (2, "before"),  # two
    (2, "after"),  # four
    (3, "before"),  # six, and no text
    (2, "before"),  # one text
    (3, "after"),  # three texts, and no distillation.json
    (4, "before"),
    (4, "after"),  # the run's own files are still there
]


def run_killed(*arguments) -> int | None:
    """`run_until` in a process of its own; its exit code."""
    process = start(run_until, *arguments)
    process.join(120)
    return process.exitcode


@pytest.mark.thorough  # tests/commands/test_translate.py has the same of the same writers
def test_killed_before_and_after_every_rename(workplace, tmp_path, unbroken):
    argv = flags(workplace, tmp_path / "out")
    for moment in MOMENTS:
        assert run_killed(argv, *moment) == -signal.SIGKILL
    assert read(tmp_path / "out") == read(unbroken) and (tmp_path / "out" / "unfinished").exists()
    distil.main(argv)
    assert read(tmp_path / "out") == read(unbroken)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "distillation.json"])
    result = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert result["processes_of_all_runs"] == 4, "several processes had a share in it"


def test_killed_and_continued_with_another_number_of_processes(workplace, tmp_path, sample_texts):
    for name, side in zip(("train.en", "train.de"), sample_texts, strict=True):
        (tmp_path / name).write_text("".join(text + "\n" for text in side), "utf-8")
    changes = {
        "train_source_files": tmp_path / "train.en",
        "train_target_files": tmp_path / "train.de",
        "monolingual_source_files": tmp_path / "mono.en.gz",
        "on_degenerate": "reference",
        "shard_size": 2,
    }
    # Of 20 lines, the text has five already; the random teacher loops, so that most of the rest is dropped.
    mono = [*(f"one more {number}" for number in range(15)), *sample_texts[0][:5]]
    (tmp_path / "mono.en.gz").write_bytes(gzip.compress("".join(text + "\n" for text in mono).encode()))

    distil.main(flags(workplace, tmp_path / "unbroken", **changes))
    argv = flags(workplace, tmp_path / "out", **changes)
    process = run_apart(ROOT / "training" / "distil.py", *argv, "--num_processes", "2")
    wait_until(lambda: len(list(tmp_path.glob("out/unfinished/shard-*.jsonl"))) > 1, process)
    kill_and_see_all_end(process.pid, process)
    shards = list((tmp_path / "out" / "unfinished").glob("shard-*.jsonl"))
    assert 2 <= len(shards) < 100 and not (tmp_path / "out" / "distillation.json").exists()
    assert run_killed(argv, 3, "after") == -signal.SIGKILL
    distil.main([*argv, "--num_processes", "2"])
    assert read(tmp_path / "out") == read(tmp_path / "unbroken")
    result = json.loads((tmp_path / "out" / "distillation.json").read_text())
    counts, num_distinct = result["counts"], len({*sample_texts[0], *mono})
    assert result["num_processes"] == 2 and (counts["lines"], counts["without_reference"]) == (320, 20)
    assert counts["repeated"] == 320 - num_distinct and num_distinct == len(set(sample_texts[0])) + 15
    assert counts["written"] + counts["dropped"] == num_distinct and counts["dropped"] <= 15
    assert result["processes_of_all_runs"] >= 3, "of three runs"


def test_back_translation_takes_the_lines_alone(workplace, tmp_path, monkeypatch):
    """They become targets of the other direction's training text."""
    texts = [f"one more {number}" for number in range(9)]
    (tmp_path / "mono.txt").write_text("".join(text + "\n" for text in [*texts, texts[0]]), "utf-8")
    monolingual = {"monolingual_source_files": tmp_path / "mono.txt", "only_monolingual": "true"}
    distil.main(flags(workplace, tmp_path / "back", **monolingual))
    result = json.loads((tmp_path / "back" / "distillation.json").read_text())
    assert result["counts"]["lines"] == 10 and result["counts"]["written"] == 9
    files = {f"train_{side}_files": [str(workplace / "train.en")] for side in ("source", "target")}
    sources, targets = load_raw_pairs(DataArguments(**files, back_translated_folder=str(tmp_path / "back"))).columns()
    assert targets[40:] == texts and sources[40:] == lines(tmp_path / "back" / "train.target.txt")

    def is_read(texts, *others):
        raise RuntimeError(f"{len(texts)} pairs")

    monkeypatch.setattr("training.loop.run.augment_pairs", is_read)
    argv = ["--back_translated_folder", str(tmp_path / "back"), "--output_folder", str(tmp_path / "teacher")]
    argv += [text for name, (file,) in files.items() for text in (f"--{name}", file)]
    with pytest.raises(RuntimeError, match="49 pairs"):
        teacher.main([*argv, "--tokenizer_folder", str(workplace / "teacher")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "runs/none/best"}, "There is no folder runs/none/best"),
        ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
        ({"student": "tests", "student_beam_size": 1}, "student_beam_size is 1; it must be at least 2"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(workplace, tmp_path, changes, message):
    command = [sys.executable, "training/distil.py", *flags(workplace, tmp_path / "out", **changes)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"distil.py: {message}")
