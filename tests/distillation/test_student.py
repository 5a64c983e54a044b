"""A student's candidates that its teacher chooses from, and what the teacher translates itself."""

import json

import pytest
import torch
from conftest import FIXTURES, make_model, tiny_config
from transformers import BatchEncoding

from tests.distillation.test_teacher_engines import make_teacher_model
from training import distil
from training.distillation.backends import SearchSettings, StudentSettings, make_engine
from training.distillation.student import digits_of
from training.distillation.teacher import load_teacher

SEARCH = SearchSettings(num_beams=2, length_penalty=1.0, max_target_length=12, max_batch_tokens=60)
SOURCES = ["I met Tom in Boston.", "We ate.", "Is it 7 or 8?", "She sings well, and he dances."]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, sample_tokenizer):
    """Folders of a student and a teacher with random weights."""
    folder = tmp_path_factory.mktemp("pair")
    size = len(sample_tokenizer)
    for name, model in (
        ("student", make_model(tiny_config(alignment="ctc", upsampling_ratio=2.0, vocab_size=size))),
        ("teacher", make_teacher_model(size)),
    ):
        model.save_pretrained(folder / name)
        sample_tokenizer.save_pretrained(folder / name)
    return folder


def engine_of(pair, name="transformers", **changes):
    settings = StudentSettings(str(pair / "student"), **{"beam_size": 4, "least_log_prob": -1e9, **changes})
    teacher = load_teacher(str(pair / "teacher"))
    return make_engine(name, teacher, SEARCH, "default", "cpu", settings), teacher


def encode(teacher, texts=SOURCES):
    return sorted(teacher.tokenizer(list(texts))["input_ids"], key=len, reverse=True)


def test_the_teacher_chooses_among_the_students_candidates(pair, monkeypatch):
    engine, teacher = engine_of(pair)
    monkeypatch.setattr("training.distillation.student.digits_of", lambda text: [])
    sources, told = encode(teacher), []
    found = engine.translate(sources, told.append)
    assert sum(told) == sum(map(len, sources))
    for ids, output in zip(sources, found, strict=True):
        search = {"beam_size": 4, "num_refinement_steps": 1, "num_return_candidates": 4, "rescorer": teacher.model}
        expected = engine.model.generate(
            input_ids=torch.tensor([ids]), **search, candidate_score="rescorer", return_dict_in_generate=True
        )
        best = expected.candidates[0, int(expected.candidate_scores[0].argmax())].tolist()
        assert output.ids == [token for token in best if token > 2] and not output.is_cut
    own = engine.own.translate(sources)
    assert [o.ids for o in found] != [o.ids for o in own]


def test_what_the_teacher_finds_unlikely_it_translates_itself(pair, monkeypatch):
    monkeypatch.setattr("training.distillation.student.digits_of", lambda text: [])
    engine, teacher = engine_of(pair, least_log_prob=0.0)
    sources, told = encode(teacher), []
    assert engine.translate(sources, told.append) == engine.own.translate(sources)
    assert sum(told) == sum(map(len, sources))
    # A bound between the scores parts the sentences.
    scores = []
    generate = engine.model.generate

    def spy(**options):
        output = generate(**options)
        scores.extend(output.candidate_scores[:, 0].tolist())
        return output

    monkeypatch.setattr(engine.model, "generate", spy)
    engine.translate(sources)
    bound = sorted(scores)[1]
    some, _ = engine_of(pair, least_log_prob=bound)
    everything, _ = engine_of(pair)
    expected = [
        student if score >= bound else own
        for score, student, own in zip(
            scores, everything.translate(sources), engine.own.translate(sources), strict=True
        )
    ]
    assert some.translate(sources) == expected


def test_digits_must_be_those_of_the_source(pair, monkeypatch):
    engine, teacher = engine_of(pair)
    (ids,) = teacher.tokenizer(["Is it 7 or 8?"])["input_ids"]
    own = engine.own.translate([ids])
    assert engine.translate([ids]) == own  # random weights say other digits
    monkeypatch.setattr("training.distillation.student.digits_of", lambda text: [])
    assert engine.translate([ids]) != own


@pytest.mark.parametrize(("text", "digits"), [("a 31, ３", ["1", "3", "3"]), ("drei", []), ("", [])])
def test_digits_of(text, digits):
    assert digits_of(text) == digits


def test_a_student_of_another_kind_is_refused(pair, tmp_path, sample_tokenizer):
    make_model(tiny_config(vocab_size=len(sample_tokenizer))).save_pretrained(tmp_path / "length")
    sample_tokenizer.save_pretrained(tmp_path / "length")
    teacher = load_teacher(str(pair / "teacher"))
    with pytest.raises(ValueError, match="no alignment 'ctc'"):
        make_engine("transformers", teacher, SEARCH, "default", "cpu", StudentSettings(str(tmp_path / "length")))


def test_a_student_with_another_vocabulary_is_refused(pair, monkeypatch):
    teacher = load_teacher(str(pair / "teacher"))
    teacher.tokenizer = type(
        "Other", (), {"get_vocab": lambda self: {}, "__call__": lambda self, *a, **k: BatchEncoding({"input_ids": []})}
    )()
    with pytest.raises(ValueError, match="another vocabulary than its teacher"):
        make_engine("transformers", teacher, SEARCH, "default", "cpu", StudentSettings(str(pair / "student")))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"folder": "nosuch"}, FileNotFoundError, "There is no folder nosuch"),
        ({"beam_size": 1}, ValueError, "student_beam_size is 1"),
        ({"least_log_prob": 0.8}, ValueError, "student_least_log_prob is 0.8"),
    ],
)
def test_impossible_settings_are_refused(pair, changes, error, message):
    with pytest.raises(error, match=message):
        StudentSettings(**{"folder": str(pair / "student"), **changes})


def test_the_command_writes_what_both_say(pair, tmp_path):
    sample = FIXTURES / "tatoeba_en-de"
    lines = {}
    for side in ("en", "de"):
        lines[side] = (sample / f"test.{side}").read_text("utf-8").split("\n")[:20]
        (tmp_path / f"train.{side}").write_text("\n".join(lines[side]) + "\n", "utf-8")
    flags = ["--train_source_files", str(tmp_path / "train.en"), "--train_target_files", str(tmp_path / "train.de")]
    flags += ["--source_language", "en", "--target_language", "de", "--teacher", str(pair / "teacher")]
    flags += ["--num_beams", "2", "--max_target_length", "12", "--distilled_folder", str(tmp_path / "out")]
    flags += ["--student", str(pair / "student"), "--student_beam_size", "2", "--student_least_log_prob=-50"]
    result = distil.main(flags)
    assert result["student_beam_size"] == 2 and result["student_least_log_prob"] == -50
    assert result["engines"][0]["engine"] == "student" and result["counts"]["written"] > 10
    assert distil.main(flags) is None  # it is finished
    with pytest.raises(ValueError, match="student_beam_size"):
        distil.main([*flags, "--student_beam_size", "3"])
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["student"] == str(pair / "student")
