"""No code of a repository runs without trust: canaries, on every version of transformers; and nobody is asked."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from canaries import build, fake_kernels
from conftest import ROOT, other_python, other_versions
from forks import PYTHONPATH, run_forked

from lvnar_hf import hub

FIRST_CHECKS = ("check_repository", "verify")


@pytest.fixture(scope="module")
def sound(tiny_repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(tiny_repository, folder / "model")
    (folder / "model" / "README.md").write_text("# A model\n")
    return hub.assemble(folder / "model", folder / "repository")


def run_python(version: str | None, arguments: list[str], answers: str, cwd: Path) -> subprocess.CompletedProcess:
    """Python in a fresh process on a version of transformers, without the network, with `answers` on its input."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home")}
    command = [other_python(version), *arguments]
    return subprocess.run(command, input=answers, env=environment, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("version", [None, *other_versions()])
def test_no_canary_leaves_a_mark_without_trust(sound, tmp_path, version):
    folder, marks, packages = tmp_path / "repositories", tmp_path / "marks", tmp_path / "packages"
    for place in (folder, marks, packages):
        place.mkdir()
    names = build(sound, folder, marks)
    fake_kernels(packages, marks / "kernels")
    assert len(names) >= 22
    script = str(ROOT / "tests" / "support" / "canaries.py")
    result = run_python(version, [script, str(folder), str(packages), *names], "y\n" * 1000, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads(result.stdout.strip().split("\n")[-1])
    assert said.pop("marks") == []
    assert said.pop("marks with trust") == ["custom_generate", "kernels", "pickle_only", "unknown_model_type"]
    for name in names:
        for way in FIRST_CHECKS:
            assert re.match("ValueError|FileNotFoundError", said[name][way]), (name, way, said[name][way])
    for name in ("index_of_a_pickle", "index_of_a_file_outside", "pickle_only", "pickle_as_safetensors"):
        for way, answer in said[name].items():
            assert "model" not in way.lower() or answer != "loaded", (name, way)
    for name in (
        "kernel_in__attn_implementation",
        "kernel_in__attn_implementation_internal",
        "named_weights",
        "quantizer",
    ):
        assert re.match("ValueError: .*(eager or sdpa|does not know)", said[name]["model"]), (name, said[name]["model"])
    # Some versions take no such field from the file, and what is left is sound.
    assert re.match("loaded|ValueError: .*eager or sdpa", said["kernel_in_attn_implementation"]["model"])
    assert said["custom_generate"]["model"] == said["custom_generate"]["AutoModelForSeq2SeqLM"] == "loaded"
    assert not list(folder.glob("*-assembled/results/secret.json"))


def test_the_ways_of_the_canaries_load_what_is_sound(sound, tmp_path):
    """Else nothing would have been tried."""
    shutil.copytree(sound, tmp_path / "repositories" / "sound")
    code = "import json, sys; from pathlib import Path; from canaries import load_without_trust as load; "
    code += "print(json.dumps(load(Path(sys.argv[1]))))"
    result = run_forked(["-c", code, tmp_path / "repositories" / "sound"], cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    said = json.loads(result.stdout.strip().split("\n")[-1])
    failed = {way: answer for way, answer in said.items() if answer != "loaded"}
    assert set(failed) == {"model, pickled"} and len(said) >= 19


@pytest.mark.parametrize("engine", ["torch", "onnx-int8"])
@pytest.mark.parametrize("spoilt", ["unknown_model_type", "tokenizer"])
def test_standard_input_is_no_answer_to_a_question_of_trust(sound, tiny_graphs, tmp_path, engine, spoilt):
    """All lines are translated, without that code, or none and the command fails."""
    folder, marks = tmp_path / "repositories", tmp_path / "marks"
    folder.mkdir()
    marks.mkdir()
    build(sound, folder, marks)
    shutil.copytree(tiny_graphs, folder / spoilt / "onnx")
    command = ["-m", "lvnar_hf", "translate", "--model", folder / spoilt, "--engine", engine, "--device", "cpu"]
    result = run_forked(command, input="y\na text\n", cwd=tmp_path)
    assert list(marks.iterdir()) == []
    assert (result.returncode, result.stdout.count("\n")) in ((0, 2), (1, 0)), result.stderr[-3000:]
    if (spoilt, engine) == ("unknown_model_type", "torch"):
        assert "contains custom code" in result.stderr and result.returncode == 1


def test_commands_load_by_what_never_asks():
    """`lvnar_hf.loading` alone speaks to the Auto classes; what `verify` runs in its own process was checked before."""
    found = []
    for file in [*(ROOT / "lvnar_hf").rglob("*.py"), *(ROOT / "training").rglob("*.py")]:
        calls = re.findall(r"\bAuto\w+\.from_pretrained[(,][^.]", file.read_text("utf-8"))
        found += [file.relative_to(ROOT).as_posix()] * len(calls)
    assert sorted(set(found)) == ["lvnar_hf/hub/verification.py", "lvnar_hf/loading.py"] and len(found) == 5
    loading = (ROOT / "lvnar_hf" / "loading.py").read_text("utf-8")
    assert loading.count("from_pretrained, name, options") == 3
    assert loading.count("load(name, trust_remote_code=False, **options)") == 1
