"""A text's translation after each step, for the page; and the Space with it."""

import dataclasses
import time
import unittest.mock

import pytest
import yaml
from conftest import ROOT
from loopback_hub import Fault, point_client_at, running_hub
from transformers import pipeline

from lvnar_hf.commands.app import app
from lvnar_hf.hub.publishing import PublishError
from lvnar_hf.hub.space import assemble_space, push_space
from lvnar_hf.jobs.line_translator import load_translator
from lvnar_hf.serving.refinement import TextStep, compare_words, refine_text, uncertain_spans

TEXT = "I bought a new lamp yesterday.\n\n- Where is the station?"


def test_the_steps_are_what_lvnar_translate_gives_until_none_changes():
    translator = load_translator(str(ROOT / "model_cards" / "lvnar-tatoeba-en-de"), preserve_format=True)
    with unittest.mock.patch.object(translator.model, "generate", wraps=translator.model.generate) as generate:
        steps = refine_text(translator, TEXT, 20)
    assert generate.call_count == 1  # for all steps together
    assert [step.step for step in steps] == list(range(len(steps))) and 3 <= len(steps) < 10
    scored = pipeline("translation", model=translator.model, tokenizer=translator.tokenizer)

    def scores(step: int) -> dict:
        return scored(TEXT, num_refinement_steps=step, return_confidence=True)[0]

    uncertain = []
    for step in steps:
        (text,) = dataclasses.replace(translator, num_refinement_steps=step.step).translate([TEXT]).texts
        assert step.text == text and step.text.count("\n\n- ") == 1
        assert " ".join(run["after"] for run in step.runs if run["after"]) == step.text
        spans = uncertain_spans(translator, TEXT, step.step)
        words = [step.text[start:end] for start, end in spans]
        assert words == [word["text"] for word in scores(step.step)["words"] if word["is_uncertain"]]
        uncertain += words
    assert uncertain and all(word and not word.isspace() for word in uncertain)
    assert uncertain_spans(dataclasses.replace(translator, engine="onnx-int8"), TEXT, 0) == []
    assert not steps[0].is_changed and steps[1].is_changed and not steps[-1].is_changed
    assert all(step.bound < 0 and step.seconds > 0 for step in steps)
    slow = translator.model.posterior.register_forward_hook(lambda *_: time.sleep(0.5))  # which a step begins with
    none, one = refine_text(translator, TEXT, 1)
    slow.remove()
    assert one.seconds - none.seconds > 0.5 and none.seconds < one.seconds
    (blank,) = refine_text(translator, " \n", 4)
    assert blank.text == " \n" and blank.bound is None
    (other,) = refine_text(dataclasses.replace(translator, engine="onnx-int8"), "!", 0)
    assert other.bound is None


def test_words_are_compared_and_characters_where_there_are_no_spaces():
    runs = compare_words("a b c", "a x c d")
    assert [(run["kind"], run["before"], run["after"]) for run in runs] == [
        ("kept", "a", "a"),
        ("replaced", "b", "x"),
        ("kept", "c", "c"),
        ("inserted", "", "d"),
    ]
    assert [run["kind"] for run in compare_words("猫が好き", "犬が好き")] == ["replaced", "kept"]
    assert [run["kind"] for run in compare_words("a b", "a")] == ["kept", "removed"]


def test_a_space_is_written_shown_and_sent_when_asked(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "space"
    command = ["publish", "--space", "--model", "user/model", "--repo-id", "user/page", "--output-folder", str(folder)]
    with running_hub() as hub:
        point_client_at(hub, monkeypatch)
        app(command, standalone_mode=False)
        assert "dry run: nothing sent" in capsys.readouterr().out and hub.requests == []
        metadata = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1])
        assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py" and metadata["models"] == ["user/model"]
        assert len(metadata["short_description"]) <= 60
        environment = (ROOT / "tests" / "environments" / "app.txt").read_text("utf-8")
        assert f"gradio=={metadata['sdk_version']}\n" in environment
        assert "build_page('user/model')" in (folder / "app.py").read_text("utf-8")
        assert (folder / "lvnar_hf" / "serving" / "page.py").is_file() and not list(folder.rglob("*.pyc"))
        app([*command, "--overwrite", "--push"], standalone_mode=False)
        assert "published: commit" in capsys.readouterr().out
        sent = hub.repositories["user/page"].files()
        assert sent["app.py"] == (folder / "app.py").read_bytes() and "lvnar_hf/version.py" in sent
        hub.faults.append(Fault("POST", "/commit/", status=403))
        with pytest.raises(PublishError, match="was not sent whole"):
            push_space(folder, "user/page")
    with pytest.raises(FileExistsError, match="not empty"):
        assemble_space(folder, "user/model")
    (folder / "app.py").unlink()
    with pytest.raises(FileExistsError, match="something else"):
        assemble_space(folder, "user/model", overwrite=True)
    with pytest.raises(ValueError):
        assemble_space(tmp_path / "other", "no id")


def test_runs_join_as_the_text_stands():
    for text, words in (("a b c", "a x c"), ("猫が好き", "犬が好き")):
        step = TextStep(1, words, compare_words(text, words), 0.0, None)
        assert step.joiner.join(run["after"] for run in step.runs) == words
