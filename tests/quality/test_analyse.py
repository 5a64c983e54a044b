"""What refinement does, step by step: the numbers, the figures drawn from them, and the marked examples."""

import copy
import html
import importlib
import json
import re
import shutil
import sys

import pytest
import torch
from conftest import SAMPLE
from matplotlib.image import imread
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lvnar_hf import train_tokenizer
from lvnar_hf.confidence_lvnar import FILE, Calibration, Curve
from lvnar_hf.ctc_lvnar import ctc_cell_mask
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.fingerprints import folder_weights_fingerprint
from lvnar_hf.steps import align
from lvnar_hf.words_lvnar import is_unspaced, split_subwords, split_words
from training import analyse
from training.data.evaluation_sets import evenly_spaced
from training.quality import refinement as analysis
from training.quality.decoding import Refinement, refine_texts, translate_texts
from training.quality.elbo import ELBO_PARTS, elbo_of_sequences
from training.quality.oracles import oracle_scores
from training.quality.refinement import summarise_stopping
from training.reports.examples import (
    choose_examples,
    describe_example,
    escape_html,
    escape_markdown,
    mark_html,
    mark_markdown,
    render_html,
    render_markdown,
)
from training.reports.figures import plot_elbo_and_bleu, plot_stopping, save_figure
from training.translation_quality.bleu import corpus_scores

MAX_STEPS, NUM_SAMPLES, SEED = 4, 3, 7
HOSTILE = "<script>alert(1)</script> & | `x` **b** ~~s~~ \\ $y$ [a](b) _c_\u2028next\u0085\r\x0b\u202eback\ttab"


@pytest.fixture(scope="module")
def analysed(either_repository, tmp_path_factory):
    """One run of the command on 20 lines, one of them blank and one hostile: data, folder, sources, references."""
    folder = tmp_path_factory.mktemp("analysis")
    texts = {}
    for side in ("en", "de"):
        texts[side] = (SAMPLE / f"test.{side}").read_text("utf-8").split("\n")[:20]
    texts["en"][4], texts["en"][7], texts["de"][7] = " ", HOSTILE, HOSTILE
    for side, lines in texts.items():
        (folder / f"test.{side}").write_bytes("".join(line + "\n" for line in lines).encode())
    files = ["--source_file", str(folder / "test.en"), "--target_file", str(folder / "test.de")]
    numbers = ["--max_steps", str(MAX_STEPS), "--num_elbo_samples", str(NUM_SAMPLES), "--seed", str(SEED)]
    options = ["--output_folder", str(folder / "out"), "--batch_size", "8", "--num_examples", "20"]
    data = analyse.main(["--model", str(either_repository), *files, *numbers, *options, "--test_set", "a$b$ & c"])
    sources, references = ([line.removesuffix("\r") for line in texts[side]] for side in ("en", "de"))
    return data, folder / "out", sources, references


@pytest.fixture(scope="module")
def loaded(either_repository):
    model, tokenizer = (auto.from_pretrained(either_repository) for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    return model.eval(), tokenizer


def test_the_command_writes_what_it_returns(analysed, either_repository):
    data, folder, _, _ = analysed
    assert json.loads((folder / "analysis.json").read_text("utf-8")) == data
    assert (folder / "examples.md").read_text("utf-8") == render_markdown(data)
    assert (folder / "examples.html").read_text("utf-8") == render_html(data)
    for name in ("elbo_and_bleu.png", "stopping.png"):
        height, width = imread(folder / name).shape[:2]
        assert width == 5.6 * 200 and height >= 4 * 200
    assert (data["model"], data["test_set"], data["seed"]) == (str(either_repository), "a$b$ & c", SEED)
    assert (data["num_sentences"], data["num_blank_sources"], data["num_elbo_sentences"]) == (20, 1, 19)
    assert "confidence" not in data and not (folder / "reliability.png").exists()  # of a model without a calibration
    assert "tok:13a" in data["bleu_signature"] and data["versions"]["torch"] == torch.__version__ and data["machine"]


def test_a_calibrated_model_has_its_reliability_drawn(tiny_ctc_repository, tmp_path, sample_texts):
    model = shutil.copytree(tiny_ctc_repository, tmp_path / "model")
    curve = Curve((0.0, 1.0), (0.2, 0.4))
    fingerprint = folder_weights_fingerprint(model)
    write_json(model / FILE, Calibration(curve, curve, 0.3, fingerprint).to_dict())
    sources, references = (texts[:12] for texts in sample_texts)
    for name, lines in (("en", sources), ("de", references)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), "utf-8")
    numbers = ["--max_steps", "1", "--num_elbo_samples", "1", "--num_examples", "1"]
    files = ["--source_file", str(tmp_path / "en"), "--target_file", str(tmp_path / "de")]
    data = analyse.main(["--model", str(model), *files, *numbers, "--output_folder", str(tmp_path / "out")])
    measured = data["confidence"]
    # Untrained, hardly a word is right, while the curve says that a fifth is, or more.
    assert measured["num_words"] > 12 and 0.1 < measured["error"] < 0.4
    assert all(0.2 <= one["confidence"] <= 0.4 for one in measured["bins"])
    assert json.loads((tmp_path / "out" / "analysis.json").read_text("utf-8"))["confidence"] == measured
    assert imread(tmp_path / "out" / "reliability.png").shape[1] == 5.6 * 200


def test_bleu_by_step_is_that_of_translations_with_this_many_steps(analysed, loaded):
    data, _, sources, references = analysed
    assert [row["step"] for row in data["steps"]] == list(range(MAX_STEPS + 1))
    for row in data["steps"]:
        hypotheses = translate_texts(*loaded, sources, num_refinement_steps=row["step"])
        hypotheses = [" ".join(text.split("\n")) for text in hypotheses]
        assert row["bleu"] == corpus_scores(hypotheses, references)["bleu"]["score"]
        shown = {example["line"]: example for example in data["examples"]}
        if row["step"] == MAX_STEPS:
            assert all(example["output"] == hypotheses[line - 1] for line, example in shown.items())


def test_elbo_by_step_is_that_of_the_translations_before_repetition_removal(analysed, loaded):
    data, _, sources, _ = analysed
    model, tokenizer = loaded
    sources = [text for text in sources if text.strip()]
    source_ids = tokenizer(sources, truncation=True, max_length=model.config.max_position_embeddings)["input_ids"]
    for row in data["steps"]:
        target_ids = []
        for ids in source_ids:
            translation = model.generate(
                torch.tensor([ids]), num_refinement_steps=row["step"], remove_repetitions=False
            )
            target_ids.append(translation[0].tolist())
        num_tokens = sum(map(len, target_ids))
        assert row["num_target_tokens"] == num_tokens
        parts = elbo_of_sequences(model, source_ids, target_ids, NUM_SAMPLES, SEED, batch_size=5)
        names = ["elbo", "token_nll", "kl"] + ["length_nll"] * (model.config.alignment == "length")
        assert [name for name in row if name in ELBO_PARTS] == names
        for name in names:
            assert row[name] == pytest.approx(float(parts[name].sum()) / num_tokens, rel=1e-4)
    for example in data["examples"]:
        line = sources.index(example["source"])
        final = example["steps"][-1]["elbo"] * len(target_ids[line])
        assert final == pytest.approx(float(parts["elbo"][line]), rel=1e-4)


def test_stopping_agrees_with_the_steps_that_generate_takes(analysed, loaded):
    data, _, sources, _ = analysed
    model, tokenizer = loaded
    taken, rest = [], 0
    for text in filter(str.strip, sources):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=40)["input_ids"]])
        output = model.generate(ids, num_refinement_steps=MAX_STEPS + 1, return_dict_in_generate=True)
        taken.append(min(int(output.num_steps_taken), MAX_STEPS))
        rest += int(output.num_steps_taken) > MAX_STEPS  # it had to go on, so step MAX_STEPS had changed something
    stopping = data["stopping"]
    assert stopping["not_converged"]["num_sentences"] == rest
    for row in stopping["steps"]:
        assert row["num_sentences"] == taken.count(row["step"]) - (rest if row["step"] == MAX_STEPS else 0)
    assert sum(row["share"] for row in stopping["steps"]) + stopping["not_converged"]["share"] == pytest.approx(1)
    assert stopping["mean_steps_taken"] == pytest.approx(sum(taken) / len(taken))
    assert len(set(taken)) > 1, "the sentences should differ, or this shows little"


def test_sentences_that_never_stop_are_counted_apart_from_those_that_stop_at_the_last_step():
    stops = Refinement([3], [[4], [5], [5]], ["a", "b", "b"], has_converged=True)
    goes_on = Refinement([3], [[4], [5], [4]], ["a", "b", "a"], has_converged=False)
    stopping = summarise_stopping([stops, goes_on, goes_on, stops, goes_on], max_steps=2)
    assert [row["num_sentences"] for row in stopping["steps"]] == [0, 2]
    assert stopping["not_converged"] == {"num_sentences": 3, "share": 0.6}
    assert (stops.num_changes, goes_on.num_changes) == (1, 2)
    assert [goes_on.text_at(step) for step in range(6)] == ["a", "b", "a", "b", "a", "b"]
    assert [stops.ids_at(step) for step in range(5)] == [[4], [5], [5], [5], [5]]
    at_once = Refinement([3], [[4], [4]], ["a", "a"], has_converged=True)
    assert choose_examples({3: at_once, 1: goes_on, 8: stops, 2: stops}, 4) == [2, 8, 3, 1]


def test_a_sentence_is_translated_once_and_its_elbo_computed_only_where_it_is_new(loaded, sample_texts, monkeypatch):
    model, tokenizer = loaded
    calls, scored = [], []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))

    def record(model, source_ids, target_ids, *options):
        scored.extend(zip(map(tuple, source_ids), map(tuple, target_ids), strict=True))
        return elbo_of_sequences(model, source_ids, target_ids, *options)

    monkeypatch.setattr(analysis, "elbo_of_sequences", record)
    refinements = refine_texts(model, tokenizer, sample_texts[0][:10], max_steps=3, batch_size=4)
    by_step = analysis.elbo_by_step(model, refinements, 3, NUM_SAMPLES, SEED)
    assert len(calls) == 3 and [len(of_step) for of_step in by_step] == [10] * 4
    distinct = {(tuple(r.source_ids), tuple(ids)) for r in refinements for ids in r.target_ids}
    assert len(scored) == len(set(scored)) and set(scored) == distinct


def test_sentences_evenly_spaced():
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, None) == evenly_spaced(3, 5) == [0, 1, 2]


def test_the_figures_show_their_data(analysed, tmp_path):
    data = analysed[0]
    upper, lower = plot_elbo_and_bleu(data).axes
    for axes, name in ((upper, "elbo"), (lower, "bleu")):
        (line,) = axes.lines
        assert list(line.get_xdata()) == [row["step"] for row in data["steps"]]
        assert list(line.get_ydata()) == [row[name] for row in data["steps"]]
    assert "nats" in upper.get_ylabel() and "BLEU" in lower.get_ylabel() and "step" in lower.get_xlabel()
    lines = (upper.lines[0], lower.lines[0])
    for style in ("get_color", "get_marker", "get_linestyle"):
        assert len({getattr(line, style)() for line in lines}) == 2

    figure = plot_stopping(data)
    assert "a$b$ & c" in figure.get_suptitle()
    (axes,) = figure.axes
    stopping = data["stopping"]
    shares = [*(row["share"] for row in stopping["steps"]), stopping["not_converged"]["share"]]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [100 * share for share in shares] and sum(heights) == pytest.approx(100)
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == pytest.approx(range(1, MAX_STEPS + 2))
    assert axes.patches[-1].get_hatch() and not axes.patches[0].get_hatch()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[-1].startswith(f"> {MAX_STEPS}\n") and labels[0] == f"1\n{heights[0]:.1f}"
    assert list(axes.lines[0].get_ydata()) == pytest.approx([sum(heights[: i + 1]) for i in range(MAX_STEPS)])
    assert "%" in axes.get_ylabel()
    save_figure(figure, tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").shape[:2] == (800, 1120)


def test_changed_words_are_found_by_alignment():
    runs = align(split_words("the cat cat sat on mat today"), split_words(" the black cat sat upon  the mat"), " ")
    assert [(run["kind"], run["before"], run["after"], run["num_words"]) for run in runs] == [
        ("kept", "the", "the", 1),
        ("replaced", "cat", "black", 1),
        ("kept", "cat sat", "cat sat", 2),
        ("replaced", "on", "upon the", 2),
        ("kept", "mat", "mat", 1),
        ("removed", "today", "", 1),
    ]
    assert mark_markdown(runs) == "the ~~cat~~ → **black** cat sat ~~on~~ → **upon the** mat ~~− today~~"
    assert mark_html(runs) == (
        "the <del>cat</del> → <mark>black</mark> cat sat <del>on</del> → <mark>upon the</mark> mat <del>− today</del>"
    )
    inserted = align(["a", "c"], ["a", "b", "c"], " ")
    assert mark_markdown(inserted) == "a **+ b** c" and mark_html(inserted) == "a <ins>+ b</ins> c"
    # A token that stands in every hundredth place is no noise to the alignment.
    many = ["x", *"abcdefgh"] * 30
    assert [run["kind"] for run in align(many, [*many, "new"], " ")] == ["kept", "inserted"]


def test_text_without_spaces_is_aligned_by_subwords():
    texts = ["猫が好きです。", "犬が好きです。", "猫が寝る。", "犬が寝る。", "私は猫が好きです。", "私は犬が好きです。"]
    tokenizer = train_tokenizer(texts, texts, vocab_size=276, min_character_count=1, max_length=40)
    assert is_unspaced(["私は猫が好きですから、犬は好きではありません。"])
    assert not is_unspaced(["Die Donaudampfschifffahrt ist lang."]) and not is_unspaced([""])
    first, second = (tokenizer.encode_texts([text])[0] for text in ("私は猫が好きです。", "私は犬が好きです。"))
    refinement = Refinement([3], [first, second], ["", ""], has_converged=False)
    runs = describe_example(tokenizer, refinement, None, unspaced=True)["steps"][1]["runs"]
    assert [(run["kind"], run["before"], run["after"]) for run in runs] == [
        ("kept", "私は", "私は"),
        ("replaced", "猫", "犬"),
        ("kept", "が好きです。", "が好きです。"),
    ]
    assert mark_markdown(runs) == "私は ~~猫~~ → **犬** が好きです。"
    # 虎 is not in the vocabulary: three bytes, one piece.
    ids = tokenizer.encode_texts(["虎 が好き"])[0]
    pieces = split_subwords(tokenizer, ids)
    assert "".join(pieces) == "虎 が好き" and pieces[0] == "虎" and 2 < len(pieces) < len(ids)
    assert split_subwords(tokenizer, ids[:2]) and split_subwords(tokenizer, []) == []
    assert mark_markdown(align([*pieces, " "], pieces, "")).endswith("~~− ␣~~")


def test_hostile_text_is_shown_and_not_interpreted(analysed):
    data = analysed[0]
    shown = HOSTILE
    for character in "\u2028\u0085\r\x0b\u202e\t":
        shown = shown.replace(character, f"⟨U+{ord(character):04X}⟩")
    assert html.unescape(escape_markdown(HOSTILE)) == html.unescape(escape_html(HOSTILE)) == shown
    assert not set(escape_markdown(HOSTILE)) & set("<>|`*~\\$[]_") and not set(escape_html(HOSTILE)) & set("<>")
    hostile = {**copy.deepcopy(data), "model": HOSTILE, "test_set": HOSTILE}
    runs = [{"kind": kind, "before": HOSTILE, "after": HOSTILE} for kind in ("kept", "replaced", "inserted", "removed")]
    hostile["examples"][0]["steps"][0].update(runs=runs)
    page = render_html(hostile)
    assert "<script" not in page and page.count(escape_html(HOSTILE)) >= 2 + 5
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags == {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "em"),
        *("table", "thead", "tbody", "tr", "th", "td", "ins", "del", "mark"),
    }
    assert "http" not in page and "src=" not in page
    document = render_markdown(hostile)
    assert document.splitlines() == document.split("\n")[:-1], "no character of a sentence may end a line"
    for line in document.split("\n"):
        assert line.count("|") == 4 * line.startswith("|"), line


def test_examples_show_every_step(analysed):
    data = analysed[0]
    changes = [(not example["has_converged"], -example["num_changes"]) for example in data["examples"]]
    assert len(changes) == 19 and changes == sorted(changes)
    assert any(step["num_changed_words"] for example in data["examples"] for step in example["steps"])
    for example in data["examples"]:
        before = ""
        for index, step in enumerate(example["steps"]):
            assert step["step"] == index
            if index:
                assert " ".join(run["before"] for run in step["runs"] if run["before"]) == " ".join(before.split())
            assert " ".join(run["after"] for run in step["runs"] if run["after"]) == " ".join(step["text"].split())
            before = step["text"]
        assert example["has_converged"] or index == MAX_STEPS
        assert not (example["has_converged"] and example["steps"][-1]["num_changed_words"])
    document = render_markdown(data)
    stops = sum(example["has_converged"] for example in data["examples"])
    assert document.count("*nothing changes: it stops*") == stops and 0 < stops < 19
    same_words = [s for e in data["examples"] for s in e["steps"][1:] if not s["num_changed_words"]]
    assert document.count("*the same words of other subwords*") == len(same_words) - stops
    is_removed = data["remove_repetitions"]
    assert document.count("| output, repetitions removed") == (19 if is_removed else 0)
    assert len(same_words) > stops or not is_removed
    assert document.count("\n## Example ") == 19 and document.count("; still changing |") == 19 - stops


def test_errors_say_what_is_wrong(tiny_repository, tmp_path, monkeypatch):
    for name, text in (("one", "a b\n"), ("two", "a\nb\n"), ("none", ""), ("blank", "\n \n")):
        (tmp_path / name).write_text(text, "utf-8")

    def run(source, target, *options, model=tiny_repository):
        files = ["--source_file", str(tmp_path / source), "--target_file", str(tmp_path / target)]
        analyse.main(["--model", str(model), *files, "--output_folder", str(tmp_path / "out"), *options])

    with pytest.raises(ValueError, match=r"different numbers of lines: 1 in .*one.*, 2 in .*two"):
        run("one", "two")
    with pytest.raises(ValueError, match="not a line in"):
        run("none", "none")
    with pytest.raises(FileNotFoundError, match="missing"):
        run("missing", "one")
    with pytest.raises(ValueError, match="All 2 source lines are blank"):
        run("blank", "two")
    with pytest.raises(ValueError, match="max_steps is 0; it must be at least 1"):
        run("one", "one", "--max_steps", "0")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "marian"}')
    with pytest.raises(ValueError, match="of type 'marian'; only models of type 'lvnar'"):
        run("one", "one", model=tmp_path / "other")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(FileExistsError, match="--output_folder"):
        run("one", "one")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "training.reports.figures")
    with pytest.raises(ImportError, match=r"pip install -c constraints\.txt matplotlib"):
        importlib.import_module("training.reports.figures")


def test_a_translation_that_cannot_be_scored_is_left_out_of_the_elbo_alone(tiny_repository):
    model, tokenizer = (auto.from_pretrained(tiny_repository) for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    model.eval()
    texts = ["Tom.", "It is a very long way to the station, and Tom has no time."]
    length = len(tokenizer(texts[1])["input_ids"])
    assert length > model.config.max_length_offset + 3
    model.generation_config.max_length = 3
    data, refinements, elbos = analysis.analyse_refinement(model, tokenizer, texts, texts, 1, NUM_SAMPLES, SEED)
    assert len(refinements) == 2 and set(elbos) == {0} and data["num_elbo_sentences"] == 1
    example = describe_example(tokenizer, refinements[1], elbos.get(1), unspaced=False)
    assert {step["elbo"] for step in example["steps"]} == {None}
    with pytest.raises(ValueError, match="length that the model can score"):
        analysis.analyse_refinement(model, tokenizer, texts[1:], texts[1:], 1, NUM_SAMPLES, SEED)


def test_oracles_are_told_what_they_are_told(tiny_repository, sample_texts):
    """Without a hint it is `generate`'s first pass; with the length, every translation has the reference's."""
    model, tokenizer = (auto.from_pretrained(tiny_repository) for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    model.eval().generation_config.remove_repetitions = False
    pairs = [pair for pair in zip(*sample_texts, strict=True) if max(map(len, pair)) < 30][:20]
    sources, references = map(list, zip(*pairs, strict=True))
    lengths: list[list[int]] = []
    decode = model.decode
    model.decode = lambda source, z, mask: lengths.append(sorted(mask.sum(-1).tolist())) or decode(source, z, mask)
    scores = oracle_scores(model, tokenizer, sources, references)
    wanted = [len(ids) for ids in tokenizer(text_target=references)["input_ids"]]
    assert lengths[1] == lengths[3] == sorted(wanted)
    model.decode = decode
    hypotheses = translate_texts(model, tokenizer, sources, num_refinement_steps=0)
    assert scores["bleu"]["nothing"] == corpus_scores(hypotheses, references)["bleu"]["score"]
    batch = tokenizer(sources, padding=True, return_tensors="pt")
    predicted = (model.generate(**batch, num_refinement_steps=0) != model.config.pad_token_id).sum(-1)
    assert scores["length_accuracy"] == sum(map(int.__eq__, predicted.tolist(), wanted)) / 20
    assert scores["mean_length_difference"] == pytest.approx((int(predicted.sum()) - sum(wanted)) / 20)
    assert list(scores["bleu"]) == ["nothing", "length", "latents", "length and latents"]
    with pytest.raises(ValueError, match="none of the references a probability"):
        oracle_scores(model, tokenizer, ["x"], ["word " * 80])


def test_oracles_of_a_ctc_model_cannot_be_told_a_length(tiny_ctc_repository, sample_texts):
    model, tokenizer = (auto.from_pretrained(tiny_ctc_repository) for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    model.eval()
    pairs = [pair for pair in zip(*sample_texts, strict=True) if max(map(len, pair)) < 30][:20]
    sources, references = map(list, zip(*pairs, strict=True))
    scores = oracle_scores(model, tokenizer, sources, references, batch_size=7)
    assert list(scores["bleu"]) == ["nothing", "latents"] and scores["num_sentences"] == 20
    batch = tokenizer(sources, padding=True, return_tensors="pt")
    targets = tokenizer(text_target=references, padding=True, return_tensors="pt")
    translations = {"nothing": model.generate(**batch, num_refinement_steps=0)}
    with torch.no_grad():
        source = model.encode(batch["input_ids"], batch["attention_mask"])
        latents, _ = model.infer_posterior(source, targets["input_ids"], targets["attention_mask"])
        mask = ctc_cell_mask(batch["attention_mask"], model.config.upsampling_ratio)
        translations["latents"] = model.likeliest_targets(model.decode(source, latents, mask), mask)
    for given, sequences in translations.items():
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
        assert scores["bleu"][given] == corpus_scores(texts, references)["bleu"]["score"]
    differences = (translations["nothing"] != 0).sum(-1) - targets["attention_mask"].sum(-1)
    assert scores["length_accuracy"] == float((differences == 0).double().mean())
    assert scores["mean_length_difference"] == pytest.approx(float(differences.double().mean()))
