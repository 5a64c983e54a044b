"""Test sets, scores, the metric for `evaluate.load`, and what the command writes."""

import json
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import sacrebleu.utils
from conftest import ROOT, SAMPLE
from sacrebleu.metrics import BLEU, CHRF
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from lvnar_hf.loading import load_model, load_tokenizer
from training import score
from training.data.evaluation_sets import TestSetArguments, load_test_set
from training.quality.decoding import refine_texts, translate_texts
from training.quality.elbo import can_be_scored, elbo_of_sequences
from training.translation_quality import bleu as bleu_module
from training.translation_quality.bleu import bleu_by_length, corpus_scores, repeated_share, words


@pytest.fixture
def hypotheses(sample_texts) -> list[str]:
    return [text.replace("nicht", "kein").lower() for text in sample_texts[1]]


# scores


def test_scores_carry_their_signatures_and_are_sacrebleus(sample_texts, hypotheses):
    _, references = sample_texts
    scores = corpus_scores(hypotheses, references)
    assert scores["bleu"]["score"] == BLEU().corpus_score(hypotheses, [references]).score
    assert "tok:13a" in scores["bleu"]["signature"] and "case:mixed" in scores["bleu"]["signature"]
    assert "tok:intl" in scores["bleu_intl_lowercased"]["signature"]
    assert "case:lc" in scores["bleu_intl_lowercased"]["signature"]
    assert scores["bleu_intl_lowercased"]["score"] > scores["bleu"]["score"]
    assert scores["chrf"]["signature"].startswith("nrefs:1")
    assert corpus_scores(["ein Wort"] * 2, ["ein Wort mehr ."] * 2)["length_ratio"] == 0.5
    with pytest.raises(ValueError, match="300 hypotheses, but 299 references"):
        corpus_scores(hypotheses, references[1:])
    with pytest.raises(ValueError, match="not 0"):
        corpus_scores([], [])
    with pytest.raises(ValueError, match="num_bootstrap is 1"):
        corpus_scores(hypotheses, references, num_bootstrap=1)


def test_resamples_of_which_some_match_nothing():
    """As those of a model that has only begun; sacreBLEU's own chrF raises TypeError there."""
    hypotheses, references = ["", "", "a", "", ""] * 3, ["Tom lachte laut."] * 15
    low, high = corpus_scores(hypotheses, references, num_bootstrap=200)["chrf"]["interval_95"]
    assert 0 <= low < CHRF().corpus_score(hypotheses, [references]).score < high


def test_bleu_is_that_of_the_sacrebleu_command(sample_texts, hypotheses, tmp_path):
    """Score, signature and bootstrap interval, on the same files."""
    _, references = sample_texts
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "bleu", "chrf"]
    command += ["--confidence", "--confidence-n", "200", "-w", "6"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    scores = corpus_scores(hypotheses, references, num_bootstrap=200)
    for expected, name in zip(json.loads(output), ("bleu", "chrf"), strict=True):
        assert expected["score"] == pytest.approx(scores[name]["score"], abs=1e-5)
        assert expected["signature"] == scores[name]["signature"]
        interval = expected["confidence_mean"] + expected["confidence_var"] * -1, expected["confidence_mean"]
        low, high = scores[name]["interval_95"]
        assert (low, (low + high) / 2) == pytest.approx(interval, abs=1e-4)
        assert low < scores[name]["score"] < high


def test_the_papers_setting_follows_the_corpus(monkeypatch):
    """ASPEC: Moses' tokens, which part a sign from a word and do not escape it."""
    texts = ["It is 'good', isn't it?", "Yes & no."]
    tokens = ["It is ' good ' , isn 't it ?", "Yes & no ."]
    scores = corpus_scores(texts, tokens, "ja", "en")
    assert "bleu_intl_lowercased" not in scores
    assert "tok:none" in scores["bleu_moses"]["signature"] and "moses:sacremoses" in scores["bleu_moses"]["signature"]
    assert bleu_module.moses_tokens("Yes & no.") == "Yes & no ."
    assert "bleu_moses" not in corpus_scores(texts, texts, "en", "de")
    monkeypatch.setattr(bleu_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install sacremoses"):
        corpus_scores(texts, texts, "ja", "en")


def test_bleu_by_source_length(sample_texts, hypotheses):
    _, references = sample_texts
    lengths = [1 + index % 50 for index in range(300)]
    rows = bleu_by_length(hypotheses, references, lengths)
    assert [row["source_tokens"] for row in rows] == [[1, 5], [6, 10], [11, 20], [21, 40], [41, None]]
    assert [row["num_sentences"] for row in rows] == [30, 30, 60, 120, 60]
    inside = [i for i, length in enumerate(lengths) if 6 <= length <= 10]
    expected = BLEU().corpus_score([hypotheses[i] for i in inside], [[references[i] for i in inside]]).score
    assert rows[1]["bleu"] == expected
    assert [row["source_tokens"] for row in bleu_by_length(["a"], ["a"], [7])] == [[6, 10]]


def test_repeated_share():
    assert repeated_share([[1, 1, 1, 2], [2, 1], []]) == pytest.approx(2 / 6)
    assert repeated_share([]) == repeated_share([[]]) == 0.0
    assert words(["Ja, ja."]) == [["Ja", ",", "ja", "."]]


def test_the_metric_loads_without_a_network(sample_texts, hypotheses, tmp_path, monkeypatch):
    _, references = sample_texts
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked for"))
    metric = evaluate.load(str(ROOT / "training" / "translation_quality"), cache_dir=str(tmp_path))
    result = metric.compute(predictions=hypotheses, references=references, num_bootstrap=50)
    scores = corpus_scores(hypotheses, references, num_bootstrap=50)
    for name in ("bleu", "bleu_intl_lowercased", "chrf"):
        assert result[name] == scores[name]["score"]
        assert result[f"{name}_signature"] == scores[name]["signature"]
        assert result[f"{name}_interval_95"] == scores[name]["interval_95"]
    assert result["length_ratio"] == scores["length_ratio"]
    twice = metric.compute(predictions=["gut gut", "so ."], references=["gut", "so ."])
    assert twice["repeated_words"] == 0.25 and twice["repeated_words_in_references"] == 0.0


# translations


def test_translations_keep_their_order_and_empty_texts_stay_empty(either_repository, sample_texts):
    model = AutoModelForSeq2SeqLM.from_pretrained(either_repository).eval()
    tokenizer = AutoTokenizer.from_pretrained(either_repository)
    texts = [*sample_texts[0][:9], "", "  ", "very long " * 40]
    together = translate_texts(model, tokenizer, texts, batch_size=4, num_refinement_steps=1)
    assert together == [translate_texts(model, tokenizer, [t], num_refinement_steps=1)[0] for t in texts]
    assert together[9:11] == ["", ""] and all(together[:9]) and translate_texts(model, tokenizer, []) == []


@pytest.mark.parametrize("num_steps", [0, 3])
def test_hypotheses_are_those_of_the_pipeline(either_repository, sample_texts, num_steps):
    texts = sample_texts[0][:20]
    translator = pipeline("translation", model=str(either_repository), device="cpu")
    options = {"truncation": True, "preserve_format": False}  # what a test set holds is translated as it is
    results = translator(texts, batch_size=7, num_refinement_steps=num_steps, **options)
    refinements = refine_texts(translator.model, translator.tokenizer, texts, num_steps, batch_size=5)
    assert [r.texts[-1] for r in refinements] == [r["translation_text"] for r in results]
    for refinement in refinements:
        assert len(refinement.texts) == len(refinement.target_ids) == refinement.num_steps_taken + 1 <= num_steps + 1
        assert refinement.has_converged == (refinement.target_ids[-1] in refinement.target_ids[-2:-1])


# test sets


def test_sacrebleus_test_sets_by_name(tmp_path, monkeypatch):
    dataset = sacrebleu.DATASETS["wmt14/full"]
    monkeypatch.setattr(dataset, "_outdir", str(tmp_path))  # as sacreBLEU leaves it after a download
    for field in dataset.fieldnames("en-de"):
        text = {"src": "One\u2028two.\nThree.\n", "ref": "Eins\u2028zwei.\nDrei.\n"}.get(field, "news\nnews\n")
        Path(dataset._get_txt_file_path("en-de", field)).write_text(text, "utf-8")
    test_set = load_test_set(TestSetArguments("wmt14/full", source_language="en", target_language="de"))
    assert (test_set.name, test_set.source_texts) == ("wmt14/full", ["One\u2028two.", "Three."])
    assert test_set.target_texts == ["Eins\u2028zwei.", "Drei."]
    with pytest.raises(ValueError, match=r"has no pair en-ja, .*; it has .*en-de"):
        load_test_set(TestSetArguments("wmt14/full", source_language="en", target_language="ja"))
    with pytest.raises(ValueError, match=r"no test set 'wmt14/ful'; near: wmt14/full.*--source_file"):
        load_test_set(TestSetArguments("wmt14/ful"))

    def refuse(*_):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(sacrebleu.DATASETS["wmt13"], "_outdir", str(tmp_path / "wmt13"))
    monkeypatch.setattr(sacrebleu.DATASETS["wmt13"], "_rawdir", str(tmp_path / "wmt13" / "raw"))
    with pytest.raises(OSError, match=r"cannot download wmt13 \(no route to host\).*--source_file"):
        load_test_set(TestSetArguments("wmt13", source_language="en", target_language="de"))


def test_test_sets_of_every_kind(tmp_path):
    rows = [{"translation": {"de": "Eins.", "en": "One."}}, {"translation": {"de": "Zwei.", "en": "Two."}}]
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    languages = {"source_language": "en", "target_language": "de"}
    mirror = load_test_set(TestSetArguments(dataset=str(tmp_path / "mirror"), **languages))
    assert (mirror.source_texts, mirror.target_texts) == (["One.", "Two."], ["Eins.", "Zwei."])
    assert mirror.name.endswith("mirror, test")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test.txt").write_text("A-1 ||| 1 ||| 猫 ||| A cat.\n", "utf-8")
    aspec = load_test_set(TestSetArguments(aspec_folder=str(tmp_path), source_language="ja", target_language="en"))
    assert (aspec.name, aspec.source_texts, aspec.target_texts) == ("ASPEC test", ["猫"], ["A cat."])
    files = {"source_file": str(SAMPLE / "test.en"), "target_file": str(SAMPLE / "test.de")}
    assert len(load_test_set(TestSetArguments("Tatoeba", num_sentences=7, **files)).source_texts) == 7
    assert load_test_set(TestSetArguments("Tatoeba", **files)).name == "Tatoeba"
    assert load_test_set(TestSetArguments(**files)).name == "test.en"
    with pytest.raises(ValueError, match="no sentences; name one of"):
        load_test_set(TestSetArguments())
    with pytest.raises(ValueError, match="--dataset and --aspec_folder"):
        load_test_set(TestSetArguments(dataset="x", aspec_folder="y"))
    with pytest.raises(ValueError, match="Both sides need text files"):
        load_test_set(TestSetArguments(source_file=files["source_file"]))
    with pytest.raises(FileNotFoundError, match="no text file nowhere"):
        load_test_set(TestSetArguments(source_file="nowhere", target_file="nowhere"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="not a line"):
        load_test_set(TestSetArguments(source_file=str(tmp_path / "empty"), target_file=str(tmp_path / "empty")))


# the command


def test_a_search_is_scored(either_repository, tmp_path):
    lines = ["Tom laughed.", "I am here.", "Who is it?", "It was cold."]
    (tmp_path / "test.en").write_text("\n".join(lines) + "\n", "utf-8")
    arguments = ["--model", str(either_repository), "--source_file", str(tmp_path / "test.en"), "--target_file"]
    arguments += [str(tmp_path / "test.en"), "--output_folder", str(tmp_path / "out"), "--num_bootstrap", "0"]
    arguments += ["--num_elbo_samples", "0", "--num_refinement_steps", "1", "--num_latent_candidates", "4"]
    metrics = score.main([*arguments, "--latent_noise_scale", "2.0"])
    assert metrics["search"] == {"num_latent_candidates": 4, "latent_noise_scale": 2.0}
    model, tokenizer = load_model(either_repository).eval(), load_tokenizer(either_repository)
    expected = [
        tokenizer.decode(ids, skip_special_tokens=True)
        for line in lines
        for ids in model.generate(
            **tokenizer(line, return_tensors="pt"), tokenizer=tokenizer, num_refinement_steps=1, **metrics["search"]
        )
    ]
    written = (tmp_path / "out" / metrics["results"][0]["hypotheses"]).read_text("utf-8").split("\n")[:-1]
    assert written == [" ".join(text.split("\n")) for text in expected]


def test_evaluation_writes_what_it_scored(either_repository, tmp_path):
    is_ctc = "ctc" in either_repository.name
    files = {side: tmp_path / f"test.{side}" for side in ("en", "de")}
    for side, path in files.items():
        path.write_text("\n".join((SAMPLE / f"test.{side}").read_text("utf-8").split("\n")[:20]) + "\n", "utf-8")
    arguments = ["--model", str(either_repository), "--source_file", str(files["en"]), "--output_folder"]
    arguments += [str(tmp_path / "out"), "--num_elbo_samples", "2", "--num_refinement_steps", "0", "2"]
    arguments += ["--num_bootstrap", "20"]
    metrics = score.main([*arguments, "--target_file", str(files["de"])])
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    sources, references = (path.read_text("utf-8").split("\n")[:-1] for path in files.values())
    for result in metrics["results"]:
        assert result["hypotheses"] == f"hypotheses.{result['num_refinement_steps']}-steps.txt"
        hypotheses = (tmp_path / "out" / result["hypotheses"]).read_text("utf-8").split("\n")[:-1]
        assert result["bleu"]["score"] == BLEU().corpus_score(hypotheses, [references]).score
        assert result["chrf"]["score"] == CHRF().corpus_score(hypotheses, [references]).score > 0
        assert result["bleu"]["interval_95"][0] <= result["bleu"]["interval_95"][1]
        repeated = result["repeated_tokens"]
        if is_ctc:
            assert repeated["after_removal"] == repeated["before_removal"]
        else:
            assert repeated["after_removal"]["subwords"] < repeated["before_removal"]["subwords"]
        assert repeated["after_removal"]["words"] == repeated_share(words(hypotheses))
        assert sum(row["num_sentences"] for row in result["bleu_by_source_length"]) == 20
        assert 0 <= result["mean_steps_taken"] <= result["num_refinement_steps"]
    assert metrics["remove_repetitions"] is not is_ctc
    model, tokenizer = (auto.from_pretrained(either_repository) for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    ids = zip(tokenizer(sources)["input_ids"], tokenizer(text_target=references)["input_ids"], strict=True)
    pairs = [pair for pair in ids if max(map(len, pair)) <= 40]  # the model takes no more
    pairs = [pair for pair in pairs if can_be_scored(model, *pair)]
    elbo = elbo_of_sequences(model.eval(), *zip(*pairs, strict=True), num_samples=2, seed=1)["elbo"].sum()
    expected = float(elbo) / sum(len(target) for _, target in pairs)
    assert metrics["elbo_of_references"]["elbo"] == pytest.approx(expected, rel=1e-5)
    assert metrics["elbo_of_references"]["num_sentences"] == len(pairs) == 19
    assert ("length_nll" in metrics["elbo_of_references"]) is not is_ctc
    before = (tmp_path / "out" / "metrics.json").read_text()
    with pytest.raises(FileExistsError, match="--output_folder, or give --overwrite"):
        score.main([*arguments, "--target_file", str(files["de"])])
    assert (tmp_path / "out" / "metrics.json").read_text() == before
    with pytest.raises(ValueError, match=r"20 in .*test\.en.*1000 in"):
        score.main([*arguments, "--overwrite", "--target_file", str(SAMPLE / "test.de")])
