"""A repository verified: whole, sound, and translating without this package as with it.

What is unusual: verification loads the repository in a process that cannot import the package, with the code that is in
the repository, and compares token ids with those of the package.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from lvnar_hf.configuration_lvnar import LvnarConfig
from lvnar_hf.engines.graph import FILES as ONNX_FILES
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.search import CELL_FILES
from lvnar_hf.files.atomic import hash_file
from lvnar_hf.hub.checks import check_file_names, check_repository, list_files
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration
from lvnar_hf.tokenization_lvnar import LvnarTokenizer

# By source language; every text has ids, whatever the vocabulary.
_TEXTS = {"en": "Where is the station?", "de": "Wo ist der Bahnhof?", "ja": "私は学生です。"}
GOLDEN_TEXTS = (_TEXTS["en"], _TEXTS["ja"])  # for a language that is not known
GOLDEN_STEPS = (0, 2)
GIT_ATTRIBUTES = ".gitattributes"  # the Hub's own

# Runs without the package. Reads a task from its input and writes ids, [steps][text], and the pipeline's translations.
_STRANGER = """
import importlib, json, sys
task = json.load(sys.stdin)
sys.path[:] = task["path"]
sys.modules["lvnar_hf"] = None
class FreshFolders:  # Python may not see folders that transformers has made within a tick of the clock
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("transformers_modules"):
            importlib.invalidate_caches()
sys.meta_path.insert(0, FreshFolders)
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
torch.set_num_threads(task["threads"])
options = {"trust_remote_code": True, "revision": task["revision"]}
model = AutoModelForSeq2SeqLM.from_pretrained(task["model"], use_safetensors=True, **options)
tokenizer = AutoTokenizer.from_pretrained(task["model"], **options)
encoded = tokenizer(task["texts"], return_tensors="pt", padding=True)
ids = [model.generate(**encoded, num_refinement_steps=steps).tolist() for steps in task["steps"]]
translator = pipeline("translation", model=task["model"], **options)
print(json.dumps({"ids": ids, "translations": [r["translation_text"] for r in translator(task["texts"])]}))
"""


def verify(
    folder_or_repo: str | Path,
    revision: str | None = None,
    texts: Sequence[str] = GOLDEN_TEXTS,
    api: HfApi | None = None,
) -> list[str]:
    """Check a repository, then translate in a clean process that cannot import the package, and compare token ids.

    ONNX graphs are loaded where ONNX Runtime is installed, and the float32 one must give the same ids.

    Args:
        folder_or_repo: a folder, or the id of a repository on the Hub, which is downloaded anew.
        revision: branch, tag or commit of a repository on the Hub; by default its main branch.
        texts: golden sentences in the model's source language.
        api: a client of another Hub.

    Returns:
        The translations of the texts, with the repository's own decoding options.

    Raises:
        FileNotFoundError, ValueError: the repository is refused: see `check_repository`; or its tokens are others.
        RuntimeError: the clean process failed; has the end of what it wrote.
        HfHubHTTPError, OSError: the repository could not be downloaded.
    """
    if Path(folder_or_repo).is_dir():
        if revision is not None:
            raise ValueError(f"{folder_or_repo} is a folder and has no revisions; given was {revision!r}.")
        check_repository(folder_or_repo)
        expected = _package_ids(Path(folder_or_repo), texts)
        return _compare(folder_or_repo, None, texts, expected, cache=None)
    validate_repo_id(str(folder_or_repo))
    return verify_download(str(folder_or_repo), revision, texts, api or HfApi())[1]


def golden_texts(folder_or_repo: str | Path, revision: str | None = None) -> tuple[str, ...]:
    """Sentences to verify a model with, in its source language where that is known."""
    try:
        language = LvnarConfig.from_pretrained(folder_or_repo, revision=revision or "main").source_language
    except (OSError, ValueError):  # `verify` says what is wrong
        return GOLDEN_TEXTS
    return (_TEXTS[language],) if language in _TEXTS else GOLDEN_TEXTS


def verify_download(
    repo_id: str, revision: str | None, texts: Sequence[str], api: HfApi, published: dict[str, str] | None = None
) -> tuple[str, list[str]]:
    """The commit that was downloaded, and its translations.

    Args:
        published: what the download must hold, as `file_hashes` gives it; None: what its author has put there.
    """
    info = api.model_info(repo_id, revision=revision)
    check_file_names(file.rfilename for file in info.siblings or [])  # before any is written
    with tempfile.TemporaryDirectory(prefix="lvnar-verify-") as cache:
        folder = Path(api.snapshot_download(repo_id, revision=info.sha, cache_dir=cache))
        differing = differing_files(api, repo_id, str(info.sha), folder)
        if differing:
            raise ValueError(f"{repo_id} at {info.sha}: these files were not downloaded as they are: {differing}.")
        found = file_hashes(folder)
        if published is not None and found != published:
            names = sorted(n for n in found.keys() | published.keys() if found.get(n) != published.get(n))
            raise ValueError(f"{repo_id} at {info.sha} has other files than were sent: {', '.join(names[:5])}.")
        check_repository(folder)
        expected = _package_ids(folder, texts)
        return str(info.sha), _compare(repo_id, info.sha, texts, expected, cache)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a repository but the Hub's own."""
    return {name: hash_file(folder / name) for name in list_files(folder) if name != GIT_ATTRIBUTES}


def _package_ids(folder: Path, texts: Sequence[str]) -> list[list[list[int]]]:
    """Token ids by the package's own classes, [steps][text]; refuse ONNX graphs that do not load, or give others."""
    encoded = LvnarTokenizer.from_pretrained(folder)(list(texts), return_tensors="pt", padding=True)

    def generate(model: Any, **options: Any) -> list[list[list[int]]]:
        return [model.generate(**encoded, num_refinement_steps=steps, **options).tolist() for steps in GOLDEN_STEPS]

    model: Any = LvnarForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
    ids = generate(model)
    if importlib.util.find_spec("onnxruntime") is not None:
        graphs: list[tuple[dict[str, str], dict[str, Any]]] = [(ONNX_FILES, {}), (CELL_FILES, {"beam_size": 4})]
        for names, options in graphs:
            for precision, name in names.items():
                if (folder / name).is_file():
                    found = generate(LvnarOnnxModel.from_pretrained(folder, precision, search=bool(options)), **options)
                    if precision == "float32" and found != generate(model, **options):
                        raise ValueError(f"{folder / name} gives other tokens than the weights: export it anew.")
    return ids


def _compare(
    model: str | Path, revision: str | None, texts: Sequence[str], expected: list[list[list[int]]], cache: str | None
) -> list[str]:
    """Translate in a process without the package; refuse other ids than `expected`."""
    task = {
        "path": [path for path in sys.path if path],  # the package may be beside the others; it is barred by its name
        "threads": torch.get_num_threads(),
        "model": str(Path(model).resolve()) if revision is None else str(model),
        "revision": revision or "main",
        "texts": list(texts),
        "steps": GOLDEN_STEPS,
    }
    with tempfile.TemporaryDirectory(prefix="lvnar-stranger-") as home:
        # Nothing of this user's: no settings, no cached modules, no token, and no network.
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        environment.update(HF_HOME=home, HF_HUB_OFFLINE="1", **({} if cache is None else {"HF_HUB_CACHE": cache}))
        result = subprocess.run(
            [sys.executable, "-I", "-c", _STRANGER],
            input=json.dumps(task),
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=600,
        )
    if result.returncode != 0:
        raise RuntimeError(f"{model} does not load without the package:\n{result.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(result.stdout.strip().split("\n")[-1])
    if found["ids"] != expected:
        raise ValueError(
            f"{model} gives other tokens as remote code ({found['ids']}) than with the package ({expected})."
        )
    return found["translations"]


def differing_files(api: HfApi, repo_id: str, commit: str, folder: Path) -> list[str]:
    """Names that a commit and a folder do not both have with the same content."""
    names = set(list_files(folder)) - {GIT_ATTRIBUTES}
    unchanged = set()
    for entry in api.list_repo_tree(repo_id, revision=commit, recursive=True):
        if isinstance(entry, RepoFile) and entry.path != GIT_ATTRIBUTES:
            if entry.path in names:
                file = folder / entry.path
                found = git_hash(file.read_bytes()) if entry.lfs is None else hash_file(file)
                if found == (entry.blob_id if entry.lfs is None else entry.lfs.sha256):
                    unchanged.add(entry.path)
            names.add(entry.path)
    return sorted(names - unchanged)
