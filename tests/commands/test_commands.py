"""What every command does at its edges: --help, wrong names, missing packages, Ctrl-C, pipes, outputs; and `lvnar`."""

import copy
import gzip
import io
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
from conftest import ROOT, SAMPLE, make_model, tiny_config
from safetensors import safe_open
from transformers import pipeline
from typer import BadParameter

from lvnar_hf import hub
from lvnar_hf.commands.app import app
from lvnar_hf.commands.errors import explain
from lvnar_hf.commands.translate import translate
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.shortlist import Shortlist
from lvnar_hf.files.fingerprints import StaleError, folder_weights_fingerprint, weights_fingerprint
from lvnar_hf.files.outputs import refuse_existing, refuse_missing_folder
from lvnar_hf.files.text import spool
from lvnar_hf.jobs.line_translator import load_translator
from training import score
from training.command import GO_ON
from training.loop import run as runs
from training.translation_quality.bleu import corpus_scores

SCRIPTS = sorted(path.name for path in (ROOT / "training").glob("*.py") if "__main__" in path.read_text("utf-8"))
SCRIPTS.remove("report.py")  # takes no arguments


OFTEN_ASKED = {"train.py", "distil.py", "score.py", "benchmark.py"}


@pytest.mark.parametrize(
    "script",
    [pytest.param(script, marks=[] if script in OFTEN_ASKED else pytest.mark.thorough) for script in SCRIPTS],
)
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
    assert len(SCRIPTS) >= 14
    for script in SCRIPTS:
        assert "import training.command" in (ROOT / "training" / script).read_text("utf-8"), script
    # A script that is started by its path has its folder first on Python's own.
    names = {path.stem for path in (ROOT / "training").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not names & (sys.stdlib_module_names | set(packages_distributions())) - {"training", "__init__"}


@pytest.mark.parametrize(
    ("error", "command", "line"),
    [
        (ModuleNotFoundError("x", name="accelerate"), "train.py", "pip install 'lvnar-hf[train]'"),
        (ModuleNotFoundError("x", name="matplotlib.pyplot"), "analyse.py", "pip install 'lvnar-hf[eval]'"),
        (KeyboardInterrupt(), "train.py", "the same command with --resume"),
        (KeyboardInterrupt(), "lvnar translate", "the same command again"),
    ],
)
def test_how_a_command_ends(error, command, line):
    explained = explain(error, command, *filter(None, [GO_ON.get(command)]))
    assert line in explained and "\n" not in explained


def test_what_needs_its_traceback_keeps_it():
    assert explain(ValueError("x"), "train.py") is None
    assert explain(ModuleNotFoundError("x", name="own_module"), "train.py") is None


def test_a_mistake_in_a_recipe_is_one_line(tmp_path):
    """By the script itself: a recipe that is not there, is not YAML, or has a key too many."""
    (tmp_path / "other.yaml").write_text("data: [")
    (tmp_path / "key.yaml").write_text("data:\n  nothing: 1\n")
    cases = {
        "none.yaml": "There is no recipe",
        "other.yaml": "is not YAML: while parsing",
        "key.yaml": "section data: unknown keys ['nothing']",
    }
    for name, message in cases.items():
        command = [sys.executable, "training/train.py", "--config", str(tmp_path / name)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1
        assert result.stderr.startswith("train.py: ") and message in result.stderr


def test_a_missing_package_is_named_by_the_command_itself(tmp_path, tiny_repository):
    """By a process that cannot import sacrebleu."""
    (tmp_path / "sacrebleu").mkdir()
    (tmp_path / "sacrebleu" / "__init__.py").write_text("raise ModuleNotFoundError('none', name='sacrebleu')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    files = ["--source_file", str(SAMPLE / "test.en"), "--target_file", str(SAMPLE / "test.de")]
    languages = ["--source_language", "en", "--target_language", "de"]
    command = [sys.executable, "training/score.py", "--model", str(tiny_repository), *files, *languages]
    command += ["--output_folder", str(tmp_path / "scores")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    line = "score.py needs sacrebleu, which is not installed: pip install 'lvnar-hf[train]'"
    assert result.stderr.strip().endswith(line)


# lvnar


def run_lvnar(*arguments: str, **options) -> subprocess.CompletedProcess:
    """`python -m lvnar_hf`, in a process of its own."""
    options = {"text": True, "stdin": subprocess.DEVNULL, **options}
    if "input" in options:
        options.pop("stdin")
    command = [sys.executable, "-m", "lvnar_hf", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, **options)


@pytest.mark.parametrize(
    "command", ["", *(command.name or command.callback.__name__ for command in app.registered_commands)]
)
def test_help_is_shown_without_what_takes_seconds(command):
    """A second on a quiet machine; here, what would take the seconds is not imported."""
    code = (
        "import sys; from lvnar_hf.commands.app import app\n"
        "try: app(sys.argv[1:], prog_name='lvnar')\n"
        "finally: print({'torch', 'transformers', 'huggingface_hub', 'numpy'} & sys.modules.keys())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and f"Usage: lvnar {command}" in result.stdout
    assert result.stdout.endswith("set()\n"), result.stdout


def test_one_argument_is_a_file_or_a_text_and_two_are_files(tiny_repository, tmp_path, monkeypatch, capfd):
    model, file = str(tiny_repository), tmp_path / "in.txt"
    file.write_text("Tom laughed.\nWhere is the station?\n")
    how = {"num_workers": 1, "device": "cpu"}
    translator = pipeline("translation", model=model, device="cpu")
    first, second = (translator(text)[0]["translation_text"] for text in ("Tom laughed.", "Where is the station?"))
    assert translate(model, "Tom laughed.", **how) is None
    assert capfd.readouterr().out == first + "\n"
    translate(model, str(file), str(tmp_path / "out.txt"), **how)
    assert (tmp_path / "out.txt").read_text() == f"{first}\n{second}\n"
    assert json.loads(capfd.readouterr().out)["sentences"] == 2
    for arguments in ([str(file)], [str(file), "-"], [None], ["-"], ["-", "-"]):
        with file.open() as standard_input:
            monkeypatch.setattr(sys, "stdin", standard_input)
            result = translate(model, *arguments, **how)
        printed = capfd.readouterr()
        assert printed.out == f"{first}\n{second}\n" and json.loads(printed.err.split("\n")[-2]) == result
    translate(model, "Tom laughed.\n\n- Where is the station?", **how)
    assert capfd.readouterr().out == f"{first}\n\n- {second}\n"
    with pytest.raises(FileNotFoundError, match="no text file Tom laughed"):
        translate(model, "Tom laughed.", str(tmp_path / "other"), **how)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("nofile.txt", "corpus.en.gz", "./text", "/no/text", "data/none", "IN.TXT"):
        with pytest.raises(BadParameter, match=f"there is no file {name}.* on standard input: echo {name} |"):
            translate(model, name, **how)
    for text in ("Hello.World", "e.g.", "and/or", "U.S.A.", "Tom", "3.30", "Go to nofile.txt", "https://a.b/c.html"):
        assert translate(model, text, **how) is None
    with pytest.raises(ValueError, match="name an output file"):
        translate(model, str(file), executor="ray", **how)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="A launcher has started 2 processes: start one"):
        translate(model, str(file), **how)


def test_lvnar_ends_with_one_line(tiny_repository, tmp_path, capsys, monkeypatch):
    model = ["--model", str(tiny_repository)]
    line = f"lvnar translate: {tiny_repository} has no onnx/model.onnx. Make it: lvnar export {' '.join(model)}\n"
    with pytest.raises(SystemExit, match="1"):
        app(["translate", *model, "--engine", "onnx", "a text"])
    assert capsys.readouterr().err == line
    with pytest.raises(FileNotFoundError, match="Make it"):
        app(["--debug", "translate", *model, "--engine", "onnx", "a text"])

    for device in ("cuda:99", "nothing"):
        with pytest.raises(SystemExit, match="1"):
            app(["translate", *model, "--device", device, "a text"])
        (line,) = capsys.readouterr().err.strip().split("\n")
        assert line.startswith(f"lvnar translate: --device is '{device}', which torch does not find here")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lvnar_hf.jobs.file_translation.translate_text", interrupted)
    with pytest.raises(SystemExit, match="130"):
        app(["translate", *model, "a text"])
    assert capsys.readouterr().err == "Stopped. To go on, give the same command again.\n"
    with pytest.raises(SystemExit, match="130"):
        app(["translate", "--model", "typo/path", "a text"])
    assert capsys.readouterr().err.startswith("There is no folder typo/path: asking the Hub for it.\n")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        app(["translate", *model])
    assert "nothing to translate" in capsys.readouterr().err


def test_info_says_what_is_there(exported, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "model")
    app(["info", str(folder)], standalone_mode=False)
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.strip().split("\n"))
    told = {name: value.strip() for name, value in told.items()}
    assert told["alignment"] == "length" and told["vocabulary"] == "500, joint" and told["refinement steps"] == "1"
    with safe_open(folder / "model.safetensors", "pt") as stored:
        count = sum(stored.get_tensor(name).numel() for name in stored.keys())  # noqa: SIM118
    assert told["parameters"] == f"{count:,} in F32"
    assert told["onnx/model.onnx"] == f"{(folder / 'onnx' / 'model.onnx').stat().st_size:,} bytes"
    engines = ["engine torch", "engine onnx", "engine onnx-int8", "engine onnx-int8-shortlist", "shortlist"]
    assert all(told[name] == "ready" for name in engines)
    assert torch.cuda.is_available() or "needs a GPU with CUDA" in told["engine compiled"]
    make_model(tiny_config(vocab_size=500), seed=1).save_pretrained(folder)
    app(["info", str(folder)], standalone_mode=False)
    stale = capsys.readouterr().out
    stale = "".join(line for line in stale.splitlines(True) if not line.startswith("engine compiled"))
    assert stale.count("not ready") == 4 and stale.count("was made from other weights") == 4
    assert f"lvnar export --model {folder} --overwrite" in stale
    (folder / "model.safetensors").unlink()
    app(["info", str(folder)], standalone_mode=False)
    told = capsys.readouterr().out
    assert "parameters" not in told and re.search(r"engine torch +not ready: .* has no model.safetensors", told)
    with pytest.raises(SystemExit, match="1"):
        app(["info", "no/such/model"])
    monkeypatch.setattr("lvnar_hf.hub.description.snapshot_download", {"user/name": str(exported)}.__getitem__)
    app(["info", "user/name"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("model  ")


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
def exported(tiny_repository, tiny_graphs, tmp_path_factory):
    folder = shutil.copytree(tiny_repository, tmp_path_factory.mktemp("exported") / "model")
    shutil.copytree(tiny_graphs, folder / "onnx")
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
        with pytest.raises(StaleError, match=r"model(_int8)?\.onnx was made from other weights.*lvnar export"):
            LvnarOnnxModel.from_pretrained(folder, precision)
    with pytest.warns(UserWarning, match="PyTorch translates instead"):
        assert load_translator(str(folder), "auto").engine == "torch"
    Shortlist.from_pretrained(exported, other.config).save(folder)  # of the other weights
    shutil.copy(exported / "model.safetensors", folder)
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
    content = gzip.compress("".join(text + "\n" for text in texts).encode())
    model = ["--model", tiny_repository, "--num-workers", 1]
    result = run_lvnar("translate", *model, input=content, text=False)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    translator = pipeline("translation", model=str(tiny_repository))
    expected = [translator(text)[0]["translation_text"].replace("\n", " ").replace("\r", " ") for text in texts]
    assert result.stdout.decode().split("\n") == [*expected, ""]
    assert json.loads(result.stderr.decode().strip().split("\n")[-1])["sentences"] == 3


def test_a_broken_gzip_pipe_is_refused():
    broken = gzip.compress(b"some text\n" * 1000)[:40]
    with pytest.raises(ValueError, match="not a whole gzip file"):
        spool(io.BufferedReader(io.BytesIO(broken)))


def test_a_translation_is_shown_in_ascii_where_it_must():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    shipped = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
    result = run_lvnar("translate", "--model", shipped, "Five young girls.", env=environment, text=False)
    assert result.returncode == 0 and b"M\\xe4dchen" in result.stdout, result.stderr[-2000:]


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


def test_publish_refuses_a_bad_id(tiny_repository, capsys):
    with pytest.raises(SystemExit, match="2"):
        app(["publish", "--model", str(tiny_repository), "--repo-id", "bad id/x/y"])
    assert "--repo-id must be user/name" in capsys.readouterr().err


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
    from training.sections import AugmentationArguments, DataArguments, ModelArguments, OptimizationArguments

    (tmp_path / "text").write_text("A text.\n")
    names = [f"{split}_{side}_files" for split in ("train", "valid") for side in ("source", "target")]
    files = {name: [str(tmp_path / "text")] for name in names}
    data = DataArguments(tokenizer_folder=str(ROOT / "model_cards" / "lvnar-tatoeba-en-de"), **files)
    arguments = OptimizationArguments(output_folder=str(tmp_path / "run"))

    def start() -> None:
        runs.run_training(data, AugmentationArguments(), ModelArguments(), arguments, no_model)

    def no_model(*arguments: object) -> None:
        raise ValueError("There is no model.")

    for _ in range(2):
        with pytest.raises(ValueError, match="There is no model"):
            start()
        assert (tmp_path / "run" / "run.json").exists()
    arguments.resume = True
    with pytest.raises(ValueError, match="There is no model"):
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


def test_a_wheel_is_enough_to_translate_verify_and_publish(tiny_repository, tmp_path):
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
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "lvnar_hf").rglob("*.py")}
    assert all((site / room / "__init__.py").is_file() for room in rooms) and (site / "lvnar_hf" / "py.typed").is_file()

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, str(site / "bin" / "lvnar"), *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    assert "translate" in run("--help")
    (translation,) = pipeline("translation", model=str(folder), device="cpu")("Tom laughed.")
    assert run("translate", "--model", folder, "Tom laughed.") == translation["translation_text"] + "\n"
    published = run("publish", "--model", folder, "--repo-id", "user/tiny", "--output-folder", tmp_path / "out")
    assert "dry run: verified" in published
    assert "verified" in run("verify", tmp_path / "out")
