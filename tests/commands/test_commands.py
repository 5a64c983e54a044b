"""What every command does at its edges: --help, wrong names, missing packages, Ctrl-C, pipes, outputs."""

import copy
import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

import numpy as np
import pytest
import torch
from conftest import ROOT, make_model, tiny_config
from transformers import AutoTokenizer, pipeline

from lvnar_hf import hub
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_export import export_onnx
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import StaleError, folder_weights_fingerprint, weights_fingerprint
from training import demo, publish, score, translate
from training.command import explain
from training.line_translator import load_translator
from training.loop import run as runs
from training.outputs import refuse_existing, refuse_missing_folder
from training.translation_quality.measures import corpus_scores

SCRIPTS = sorted(path.name for path in (ROOT / "training").glob("*.py") if "__main__" in path.read_text("utf-8"))
SCRIPTS.remove("report.py")  # takes no arguments


HEAVY = ("demo.py", "export.py", "publish.py", "translate.py")  # they import torch before they parse


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in HEAVY])
def test_help_is_shown_soon(script):
    """In at most 3 s of the processor's time: what is heavy is imported after parsing."""
    process = subprocess.Popen(
        [sys.executable, f"training/{script}", "--help"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and "usage:" in output
    assert script != "score.py" or "95 %" in output
    assert usage.ru_utime + usage.ru_stime < 3.0


def test_every_script_explains_its_end_and_shadows_no_library():
    assert len(SCRIPTS) >= 15
    for script in SCRIPTS:
        assert "import training.command" in (ROOT / "training" / script).read_text("utf-8"), script
    # A script that is started by its path has its folder first on Python's own.
    names = {path.stem for path in (ROOT / "training").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not names & (sys.stdlib_module_names | set(packages_distributions())) - {"training", "__init__"}


@pytest.mark.parametrize(
    ("error", "script", "line"),
    [
        (ModuleNotFoundError("x", name="accelerate"), "train.py", "pip install 'lvnar-hf[train]'"),
        (ModuleNotFoundError("x", name="matplotlib.pyplot"), "analyse.py", "pip install 'lvnar-hf[eval]'"),
        (KeyboardInterrupt(), "train.py", "the same command with --resume"),
        (KeyboardInterrupt(), "translate.py", "the same command again"),
    ],
)
def test_how_a_script_ends(error, script, line):
    assert line in explain(type(error), error, script) and "\n" not in explain(type(error), error, script)


def test_what_needs_its_traceback_keeps_it():
    assert explain(ValueError, ValueError("x"), "train.py") is None
    assert explain(ModuleNotFoundError, ModuleNotFoundError("x", name="own_module"), "train.py") is None


def test_a_missing_package_is_named_by_the_command_itself(tmp_path):
    """By a process that cannot import accelerate."""
    (tmp_path / "accelerate.py").write_text("raise ModuleNotFoundError('none', name='accelerate')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "training/translate.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    line = "translate.py needs accelerate, which is not installed: pip install 'lvnar-hf[train]'"
    assert result.stderr.strip().endswith(line)


@pytest.mark.parametrize("name", ["./runs/x", "/no/such", "a/b/c", "tests/nothing", "~/model", "../model"])
def test_a_mistyped_path_is_refused_at_once(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        refuse_missing_folder(name)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_translator(name)
    assert refuse_missing_folder("user/name") == "user/name" and refuse_missing_folder("tests") == "tests"


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(NotADirectoryError, match="is a file: name another --output"):
            refuse_existing(path, True, "--output")
    assert refuse_existing(tmp_path / "new" / "out", False, "--output")


@pytest.fixture(scope="module")
def exported(tiny_repository, tmp_path_factory):
    folder = shutil.copytree(tiny_repository, tmp_path_factory.mktemp("exported") / "model")
    model = make_model(tiny_config(vocab_size=500))
    export_onnx(model, folder)
    Shortlist(torch.ones(500, 2).int(), torch.tensor([5, 6]).int(), torch.tensor(-0.5)).save(folder)
    return folder


def test_a_graph_and_a_shortlist_of_other_weights_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    for precision in ("float32", "int8"):
        LvnarOnnxModel.from_pretrained(folder, precision, shortlist=True)
    assert load_translator(str(folder), "auto").engine == "onnx-int8"
    other = make_model(tiny_config(vocab_size=500), seed=1)
    other.save_pretrained(folder)
    assert folder_weights_fingerprint(folder) == weights_fingerprint(other.state_dict())
    for precision in ("float32", "int8"):
        with pytest.raises(StaleError, match=r"model(_int8)?\.onnx was made from other weights.*export\.py"):
            LvnarOnnxModel.from_pretrained(folder, precision)
    with pytest.warns(UserWarning, match="PyTorch translates instead"):
        assert load_translator(str(folder), "auto").engine == "torch"
    export_onnx(other, folder)
    with pytest.raises(StaleError, match=r"shortlist\.safetensors was made from other weights"):
        LvnarOnnxModel.from_pretrained(folder, shortlist=True)
    for file in folder.glob("model*.safetensors"):  # the weights need not be there
        file.unlink()
    LvnarOnnxModel.from_pretrained(folder)


def test_the_onnx_engine_is_copied_and_pickled(exported):
    engine = LvnarOnnxModel.from_pretrained(exported)
    input_ids = torch.tensor([[5, 6, 7, 1]])
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert torch.equal(other.generate(input_ids), engine.generate(input_ids))


def test_a_numpy_number_of_steps(tiny_model):
    input_ids = torch.tensor([[5, 6, 7, 1]])
    expected = tiny_model.generate(input_ids, num_refinement_steps=2, max_length=5)
    found = tiny_model.generate(input_ids, num_refinement_steps=np.int64(2), max_length=np.int32(5))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="num_refinement_steps"):
        tiny_model.generate(input_ids, num_refinement_steps=np.bool_(True))


def test_translate_from_a_gzip_pipe_to_standard_output(tiny_repository):
    texts = ["Tom laughed.", "", "Where is the station?"]
    command = ["training/translate.py", "--model", str(tiny_repository), "--input_file", "-", "--output_file", "-"]
    result = subprocess.run(
        [sys.executable, *command, "--num_workers", "1"],
        cwd=ROOT,
        input=gzip.compress("".join(text + "\n" for text in texts).encode()),
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    translator = pipeline("translation", model=str(tiny_repository))
    expected = [translator(text)[0]["translation_text"].replace("\n", " ").replace("\r", " ") for text in texts]
    assert result.stdout.decode().split("\n") == [*expected, ""]
    assert json.loads(result.stderr.decode().strip().split("\n")[-1])["sentences"] == 3


def test_a_broken_gzip_pipe_is_refused(monkeypatch):
    broken = gzip.compress(b"some text\n" * 1000)[:40]
    with open(os.pipe()[0], "rb") as unused, monkeypatch.context() as patch:
        import io

        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(broken))))
        with pytest.raises(ValueError, match="not a whole gzip file"):
            translate.spool_standard_input()
        assert unused


def test_the_demo_speaks_ascii_where_it_must():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "training/demo.py", "The boys are tall.", "Five young girls."]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert result.returncode == 0 and result.stdout.decode("ascii").count("1 step") == 2, result.stderr[-2000:]
    assert demo.MODEL.is_dir()


def test_several_references_each():
    hypotheses, references = ["das ist gut so", "es ist so"], ["das ist gut so", "ja das ist so"]
    one = corpus_scores(hypotheses, references)
    nested = corpus_scores(hypotheses, [[text] for text in references])
    assert nested == one
    both = [list(texts) for texts in zip(references, hypotheses, strict=True)]
    best = corpus_scores(hypotheses, both)
    assert best["chrf"]["score"] == pytest.approx(100) and best["bleu"]["score"] > one["bleu"]["score"]
    for wrong in ([["a"], ["b", "c"]], [["a"], []], [["a"], "b"], ["a", ["b"]]):
        with pytest.raises(ValueError, match="Every hypothesis needs a reference"):
            corpus_scores(hypotheses, wrong)


def test_the_metric_takes_nested_references():
    import evaluate as evaluate_library

    metric = evaluate_library.load(str(ROOT / "training" / "translation_quality"))
    flat = metric.compute(predictions=["das ist gut so"], references=["das ist gut so"])
    assert metric.compute(predictions=["das ist gut so"], references=[["das ist gut so"]]) == flat


def test_options_of_another_kind_of_model_are_refused(tiny_repository, tmp_path):
    (tmp_path / "test.en").write_text("Tom laughed.\n")
    files = ["--source_file", str(tmp_path / "test.en"), "--target_file", str(tmp_path / "test.en")]
    arguments = ["--model", str(tiny_repository), "--output_folder", str(tmp_path / "out"), *files]
    with pytest.raises(ValueError, match="--num_beams means nothing"):
        score.main([*arguments, "--num_beams", "3"])
    assert not (tmp_path / "out").exists()
    folder = shutil.copytree(tiny_repository, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "source_language": "en", "target_language": "de"}))
    arguments[1] = str(folder)
    with pytest.raises(ValueError, match="'xx', and this model's is 'en'"):
        score.main([*arguments, "--source_language", "xx", "--target_language", "de"])


def test_publish_refuses_a_bad_id(tiny_repository):
    with pytest.raises(SystemExit, match="--repo_id must be user/name"):
        publish.main(["--model", str(tiny_repository), "--repo_id", "bad id/x/y"])


def test_the_published_card_names_the_repository(tmp_path):
    folder = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
    card = (hub.assemble(folder, tmp_path / "out", repo_id="someone/mine") / "README.md").read_text("utf-8")
    assert 'model="someone/mine"' in card and '"someone/mine",' in card and "translation_en_to_de" in card
    assert "NAMESPACE" not in card and "model_cards/" not in card
    for target in re.findall(r"\]\(([^)]+)\)", card):
        assert "://" in target or (tmp_path / "out" / target).exists()
    text = "[a](x.md) [b](https://c.org/x) [d](#e) [f](README.md)"
    assert hub.published_card(text, "m", tmp_path / "out", None) == "a [b](https://c.org/x) [d](#e) [f](README.md)"


def test_a_run_that_has_taken_no_step_is_no_run(tmp_path, monkeypatch):
    """A failed start is no obstacle to the next one; what another program has put there is."""
    from training.recipe import DataArguments, ModelArguments, OptimizationArguments

    data = DataArguments(tokenizer_folder=str(tmp_path / "none"))
    arguments = OptimizationArguments(output_folder=str(tmp_path / "run"))

    def start() -> None:
        runs.run_training(data, ModelArguments(), arguments, lambda tokenizer: None)

    for _ in range(2):
        with pytest.raises((OSError, ValueError), match="none"):  # there is no tokenizer
            start()
        assert (tmp_path / "run" / "run.json").exists()
    arguments.resume = True
    with pytest.raises((OSError, ValueError), match="none"):
        start()
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1}\n')
    arguments.resume = False
    with pytest.raises(FileExistsError, match="--resume"):
        start()
    shutil.rmtree(tmp_path / "run")
    arguments.resume = True
    with pytest.raises(FileNotFoundError, match="There is no run to go on with"):
        start()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    arguments.resume = False
    with pytest.raises(FileExistsError, match="not empty"):
        start()


def test_a_wheel_is_enough_to_verify_and_publish(tiny_repository, tmp_path):
    """Installed from a wheel, in a process that does not see the project's folder."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "lvnar_hf"):
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copied(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-index"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    for command in (
        ["wheel", *options, "--no-build-isolation", "-w", str(wheels), str(source)],
        ["install", *options, "--target", str(site), "lvnar-hf", "--find-links", str(wheels)],
    ):
        result = subprocess.run([*pip, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-2000:]
    folder = shutil.copytree(tiny_repository, tmp_path / "model")
    (folder / "README.md").write_text("---\npipeline_tag: translation\n---\n")
    code = (
        "import sys; from lvnar_hf import hub; assert hub.__file__.startswith(sys.argv[3]), hub.__file__\n"
        "print(hub.verify(hub.assemble(sys.argv[1], sys.argv[2])))"
    )
    arguments = [str(folder), str(tmp_path / "out"), str(site)]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(AutoTokenizer.from_pretrained(folder)) == 500
