"""A refinement as data: the texts, marks and bounds of all steps are those of `generate`."""

import json

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lvnar_hf.generation_lvnar import LvnarGenerateOutput
from lvnar_hf.steps import align, refinement_steps

MODEL = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
SENTENCES = ["I bought a new lamp yesterday.", "Hello.", "Don't worry, he won't find out unless you tell him."]


def test_steps_are_those_of_generate():
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    options = {"tokenizer": tokenizer, "return_dict_in_generate": True}
    output = model.generate(**batch, **options, num_refinement_steps=6, output_scores=True)
    refinements = refinement_steps(output, tokenizer)
    assert json.loads(json.dumps(refinements)) == refinements
    assert sum(step["num_changed_words"] for step in refinements[0]["steps"]) > 0
    assert {r["has_converged"] for r in refinements} == {True}
    for row, refinement in enumerate(refinements):
        steps = refinement["steps"]
        assert [step["step"] for step in steps] == list(range(int(output.num_steps_taken[row]) + 1))
        assert refinement["output"] == tokenizer.decode(output.sequences[row], skip_special_tokens=True)
        for step in steps:
            number = step["step"]
            alone = model.generate(**batch, tokenizer=tokenizer, num_refinement_steps=number)[row]
            assert step["text"] == tokenizer.decode(alone, skip_special_tokens=True)
            assert step["bound"] == pytest.approx(float(output.lower_bounds[row, number]))
            assert [word["text"] for word in step["words"]] == step["text"].split()
            before = steps[number - 1]["text"] if number else step["text"]
            assert step["runs"] == align(before.split(), step["text"].split(), " ")
            marks = [run["kind"] for run in step["runs"] for _ in run["after"].split()]
            assert [word["mark"] for word in step["words"]] == marks
        assert not steps[0]["num_changed_words"] and not steps[-1]["num_changed_words"]
    assert refinement_steps(model.generate(**batch, **options), tokenizer)[1]["steps"][0]["bound"] is None
    with pytest.raises(ValueError, match="no translations of single steps"):
        refinement_steps(LvnarGenerateOutput(torch.tensor([[1]])), tokenizer)
