"""Loading a published model in every way: from a Hub on this machine and from folders, with and without the package.

Each process here is fresh, on the version of transformers that runs the tests; `make matrix` takes each supported one.
"""

import ctypes
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from conftest import ROOT, make_ctc_model
from golden import GOLDEN, MODEL
from huggingface_hub import HfApi
from loopback_hub import TOKEN, point_client_at, running_hub

from lvnar_hf import LvnarConfig, LvnarTokenizer, hub
from lvnar_hf.files.atomic import hash_file
from lvnar_hf.hub.checks import PACKAGE_FOLDER, TRAVELLING_MODULES

REPO_ID = "user/lvnar-tatoeba-en-de"
TAG = "v0.1.0"
MODES = ("package", "remote", "both")
GOLDEN_TOKENS = json.loads(GOLDEN.read_text("utf-8"))


def test_the_version_is_the_one_asked_for():
    asked = os.environ.get("LVNAR_TRANSFORMERS", transformers.__version__)
    for module, version in ((transformers, asked), (huggingface_hub, huggingface_hub.__version__)):
        assert module.__version__ == importlib.metadata.version(module.__name__) == version
        assert "LVNAR_TRANSFORMERS" not in os.environ or Path(str(module.__file__)).is_relative_to(sys.prefix)


def test_the_golden_tokens_are_of_the_weights_that_ship():
    message = "the model that ships has changed: run python tests/support/golden.py, and look at what changes"
    assert hash_file(MODEL / "model.safetensors") == GOLDEN_TOKENS["weights"], message


@pytest.mark.parametrize("entry", ["configuration", "tokenization", "pipeline", "modeling"])
def test_what_transformers_imports_by_name_imports_all_that_it_needs_itself(entry):
    """From a folder, transformers 4 does not find what is imported at second hand."""

    def imported(module: str) -> set[str]:
        source = (PACKAGE_FOLDER / f"{module}.py").read_text("utf-8")
        return set(re.findall(r"^from \.(\w+) import", source, flags=re.MULTILINE))

    needed = direct = imported(f"{entry}_lvnar")
    while more := set().union(*map(imported, needed)) - needed:
        needed = needed | more
    assert direct == needed
    if entry == "modeling":  # which is saved with all that travels
        assert {f"{module}.py" for module in direct | {"modeling_lvnar"}} == set(TRAVELLING_MODULES)


@pytest.fixture(scope="module")
def assembled(tmp_path_factory) -> Path:
    return hub.assemble(MODEL, tmp_path_factory.mktemp("assembled") / "lvnar-tatoeba-en-de")


@pytest.fixture(scope="module")
def remote(assembled):
    """A Hub with the model that ships: a tag, and a later main branch with other decoding options."""
    with pytest.MonkeyPatch.context() as patch, running_hub() as loopback:
        point_client_at(loopback, patch)
        api = HfApi(endpoint=loopback.url)
        api.create_repo(REPO_ID)
        api.upload_folder(repo_id=REPO_ID, folder_path=assembled)
        api.create_tag(REPO_ID, tag=TAG)
        options = json.loads((assembled / "generation_config.json").read_text())
        content = json.dumps({**options, "num_refinement_steps": 0}).encode()
        api.upload_file(path_or_fileobj=content, path_in_repo="generation_config.json", repo_id=REPO_ID)
        yield loopback


def test_a_pipeline_without_a_model_says_that_it_needs_one():
    for task in ("translation", "translation_en_to_de"):
        with pytest.raises(ValueError, match="has no default model: pass model="):
            transformers.pipeline(task)


def drop_root() -> None:
    """Let permissions hold for root too, as for anyone: no CAP_DAC_OVERRIDE for what is executed next."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP


@contextmanager
def read_only(home: Path) -> Iterator[None]:
    """Nothing can be written under this folder."""
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


def run_fresh(remote, home: Path, command: list[str], task: object, offline: bool, **variables: str) -> str:
    """What Python prints in a fresh process with a home of its own, where permissions hold."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS_"))}
    environment.update(HF_ENDPOINT=remote.url, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HOME=str(home), **variables)
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    result = subprocess.run(
        [sys.executable, *command],
        input=json.dumps(task),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=drop_root if os.geteuid() == 0 else None,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert TOKEN not in result.stdout + result.stderr
    return result.stdout


def load_everywhere(
    remote, home: Path, mode: str, offline: bool = False, folder: Path | None = None, **variables: str
) -> dict:
    """What load_everywhere.py finds."""
    commit = remote.repositories[REPO_ID].tags[TAG]
    task = {"mode": mode, "repo_id": REPO_ID, "revision": TAG, "commit": commit, "offline": offline}
    task.update(texts=GOLDEN_TOKENS["texts"], steps=GOLDEN_TOKENS["steps"], folder=str(folder))
    script = str(ROOT / "tests" / "support" / "load_everywhere.py")
    output = run_fresh(remote, home, [script], task, offline, **variables)
    return json.loads(output.strip().split("\n")[-1])


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_loading_gives_the_golden_tokens(remote, mode, tmp_path):
    found = load_everywhere(remote, tmp_path / "home", mode, folder=tmp_path)
    ways = {"by tag", "by commit", "main", "pipeline", "dtype", "device_map", "saved", "sharded", "pushed"}
    ways |= {"without trust", "pipeline without trust"} if mode == "both" else set()
    assert found["ids"].keys() == ways
    assert [way for way in sorted(ways) if found["ids"][way] != GOLDEN_TOKENS["ids"]] == []
    values = found["values"]
    # Where both are there, each version has its own mind which it takes, with trust_remote_code=True.
    origins = {"package": {"lvnar_hf"}, "remote": {"transformers_modules"}}
    assert set(values["origins"]) <= origins.get(mode, {"lvnar_hf", "transformers_modules"})
    assert (values["default steps by tag"], values["default steps of main"]) == (1, 0)
    assert values["dtypes"] == ["torch.bfloat16", "torch.float32"] and values["shards"] > 1
    assert values.get("is the package's", True) and values["are calibrated"] == [True, True]
    published = remote.repositories[f"user/pushed-{mode}"].files()
    for name in TRAVELLING_MODULES:
        content = (PACKAGE_FOLDER / name).read_bytes()
        assert published[name] == (tmp_path / "saved" / name).read_bytes() == content, name

    if mode == "both":
        return
    # The same home again: without a network, and without the right to write to it.
    remote.requests.clear()
    with read_only(tmp_path / "home"):
        found = load_everywhere(remote, tmp_path / "home", mode, offline=True)
    assert found["ids"] == {"by tag": GOLDEN_TOKENS["ids"], "pipeline": GOLDEN_TOKENS["ids"]}
    assert found["values"]["are calibrated"] == [True, True] and remote.requests == []


def test_a_ctc_model_loads_without_the_package(tmp_path):
    """Saved as a user would, with the tokenizer of the model that ships; remote code must give the package's tokens."""
    LvnarTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "model")
    make_ctc_model(vocab_size=LvnarConfig.from_pretrained(MODEL).vocab_size).save_pretrained(tmp_path / "model")
    for name in TRAVELLING_MODULES:
        assert (tmp_path / "model" / name).read_bytes() == (PACKAGE_FOLDER / name).read_bytes(), name
    (tmp_path / "model" / "README.md").write_text("# A model\n")
    repository = hub.assemble(tmp_path / "model", tmp_path / "repository")
    assert json.loads((repository / "generation_config.json").read_text())["remove_repetitions"] is False
    assert len(hub.verify(repository, texts=GOLDEN_TOKENS["texts"])) == len(GOLDEN_TOKENS["texts"])


COLD_CODE = """
import json, sys
sys.modules["lvnar_hf"] = None
from transformers import AutoConfig
task = json.load(sys.stdin)
for name, options in task.items():
    try:
        AutoConfig.from_pretrained("user/lvnar-tatoeba-en-de", revision="v0.1.0", trust_remote_code=True, **options)
    except OSError as error:
        print(f"{name} | {type(error).__name__}: {error}".replace("\\n", " "))
"""


def test_a_cold_cache_without_the_right_to_write_serves_or_says_why_not(remote, tmp_path):
    """The files were downloaded by another user, or not at all; the code was never imported."""
    home, empty = tmp_path / "home", tmp_path / "empty"
    HfApi(endpoint=remote.url).snapshot_download(REPO_ID, revision=TAG, cache_dir=home / "hub")
    empty.mkdir()
    expected = {"by tag": GOLDEN_TOKENS["ids"], "pipeline": GOLDEN_TOKENS["ids"]}
    with read_only(home), read_only(empty):
        assert load_everywhere(remote, home, "package", offline=True)["ids"] == expected
        modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
        assert load_everywhere(remote, home, "remote", offline=True, **modules)["ids"] == expected
        cold = {"no code": {}, "no files": {"cache_dir": str(empty)}}
        said = run_fresh(remote, home, ["-c", COLD_CODE], cold, offline=True)
        said += run_fresh(remote, home, ["-c", COLD_CODE], {"no right": {"cache_dir": str(empty)}}, offline=False)
    assert re.search(rf"^no code \| PermissionError: .*{home}/modules", said, re.M)
    assert re.search(r"^no files \| OSError: .*couldn't find them in the cached files", said, re.M)
    assert re.search(rf"^no right \| (PermissionError|OSError): .*{empty}", said, re.M)
    assert list(empty.iterdir()) == [] and not (home / "modules").exists()


def test_loading_is_fast_and_imports_little():
    """Loose bounds on the processor's clock; tests/support/measure_loading.py on a quiet machine gives the figures."""
    command = [str(ROOT / "tests" / "support" / "measure_loading.py"), "--num_pairs", "30", "--num_threads", "1"]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(result.stdout.strip().split("\n")[-1])
    assert measured["import_package_adds_seconds"]["processor"] < 0.3
    assert measured["imported_with_package"] == []
    assert measured["first_translation_seconds"]["processor"] < 3.0
    assert measured["remote_time_over_package"]["processor"] < 1.1
