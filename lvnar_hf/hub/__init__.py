"""A model repository for a user who may not have this package: put together, verified, published.

What is unusual: verification loads the repository in a process that cannot import the package, with the code that is in
the repository, and compares token ids with those of the package. Publishing is one commit on top of the one that was
read before, so it happens whole or not at all; and it can be run again at any point, because what is there already is
left as it is. The only secret is huggingface_hub's own (`hf auth login`, or HF_TOKEN); none is taken as an argument.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from lvnar_hf.configuration_lvnar import CUSTOM_PIPELINES
from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.engines.onnx_export import FILES as ONNX_FILES
from lvnar_hf.engines.shortlist import FILE as SHORTLIST_FILE
from lvnar_hf.hub.checks import (
    CONFIG_AUTO_MAP,
    PACKAGE_FOLDER,
    SHARDS_INDEX,
    TOKENIZER_AUTO_MAP,
    TRAVELLING_MODULES,
    WEIGHTS,
    check_file_names,
    check_repository,
    list_files,
    read_json_object,
    weight_files,
)
from lvnar_hf.modeling_lvnar import LvnarForConditionalGeneration
from lvnar_hf.tokenization_lvnar import LvnarTokenizer
from lvnar_hf.version import __version__

GOLDEN_TEXTS = ("Where is the station?", "私は学生です。")  # every text has ids, whatever the vocabulary
GOLDEN_STEPS = (0, 2)
GIT_ATTRIBUTES = ".gitattributes"  # the Hub's own
_AGAIN = "Run the same command again to go on from there."

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


class PublishError(RuntimeError):
    """Publishing stopped; the message says what the remote holds now, and how to go on."""


@dataclass(frozen=True)
class PublishedRevision:
    """What `push` leaves on the Hub.

    Args:
        repo_id: the repository.
        tag: its revision, "v" and the version.
        commit: the commit that the tag names, 40 hexadecimal digits.
        translations: of the golden texts, by the repository as it was downloaded again.
    """

    repo_id: str
    tag: str
    commit: str
    translations: list[str]


def assemble(
    model_folder: str | Path, output_folder: str | Path, overwrite: bool = False, repo_id: str | None = None
) -> Path:
    """Put a model repository together: weights, configuration, tokenizer, modules of this package, card, results.

    The folder appears whole or not at all.

    Args:
        model_folder: with weights in safetensors (one file or shards), configuration, tokenizer, the card README.md,
            and perhaps ONNX graphs, a shortlist and a folder `results`.
        output_folder: the repository.
        overwrite: replace a repository that is there.
        repo_id: "user/name", which the card then names where it loads the model.

    Returns:
        The output folder.

    Raises:
        FileExistsError: the output folder is not empty, and `overwrite` is not given or it holds something else.
        FileNotFoundError, ValueError: the model folder lacks a file, or is unsound: see `check_repository`.
    """
    source, output = Path(model_folder), Path(output_folder)
    if output.resolve() == source.resolve():
        raise FileExistsError(f"{output} is the model folder itself; name another output folder.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{output} exists and is not empty: name another output folder, or overwrite.")
        if not (output / "config.json").is_file():
            raise FileExistsError(f"{output} holds something else than a model; it is not overwritten.")
    if not (source / "README.md").is_file():
        raise FileNotFoundError(f"{source} has no README.md, the model's card.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        _copy_files(source, unfinished)
        card = (source / "README.md").read_text("utf-8")
        (unfinished / "README.md").write_text(published_card(card, source.name, unfinished, repo_id), "utf-8")
        check_repository(unfinished)
        if output.exists():
            shutil.rmtree(output)
        unfinished.rename(output)
    return output


def published_card(card: str, name: str, repository: Path, repo_id: str | None) -> str:
    """A card as it stands in a repository: it loads the model by its id, and has no link that leads out of it.

    Args:
        card: of a model folder in this project.
        name: of that folder, as the card has it.
        repository: with the other files.
        repo_id: "user/name"; None: not known, what the card loads stays.
    """
    if repo_id is not None:
        card = re.sub(rf"(model_cards|NAMESPACE)/{re.escape(name)}(?![\w-])", repo_id, card)

    def unlink_if_elsewhere(match: re.Match) -> str:
        target = match["target"].partition("#")[0]
        is_here = not target or "://" in target or target.startswith("mailto:") or (repository / target).exists()
        return match[0] if is_here else match["text"]

    return re.sub(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)\s]+)\)", unlink_if_elsewhere, card)


def _copy_files(source: Path, output: Path) -> None:
    output.mkdir()
    names = ["README.md", "tokenizer.json", *weight_files(source)]
    optional = [LvnarTokenizer.vocab_files_names["target_tokenizer_file"], *ONNX_FILES.values(), SHORTLIST_FILE]
    if SHARDS_INDEX not in names and WEIGHTS not in names:
        names.append(SHARDS_INDEX)
    config = {**read_json_object(source / "config.json"), "auto_map": CONFIG_AUTO_MAP}
    config["custom_pipelines"] = CUSTOM_PIPELINES
    tokenizer_config = {**read_json_object(source / "tokenizer_config.json"), "auto_map": TOKENIZER_AUTO_MAP}
    tokenizer_config["tokenizer_class"] = LvnarTokenizer.__name__
    if isinstance(tokenizer_config.get("kytea_model"), str):  # a path on the machine that trained the model
        tokenizer_config["kytea_model"] = Path(tokenizer_config["kytea_model"]).name
        optional.append(tokenizer_config["kytea_model"])
    generation_config = read_json_object(source / "generation_config.json")
    written = {
        "config.json": config,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation_config,
    }
    for name, fields in written.items():
        fields.pop("_name_or_path", None)
        (output / name).write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    for name in [*names, *(name for name in optional if (source / name).is_file())]:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}.")
        (output / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, output / name)
    for name in TRAVELLING_MODULES:
        shutil.copyfile(PACKAGE_FOLDER / name, output / name)
    if (source / "results").is_dir():
        shutil.copytree(source / "results", output / "results", copy_function=shutil.copyfile)


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
    return _verify_download(str(folder_or_repo), revision, texts, api or HfApi())[1]


def _verify_download(repo_id: str, revision: str | None, texts: Sequence[str], api: HfApi) -> tuple[str, list[str]]:
    """The commit that was downloaded, and its translations."""
    info = api.model_info(repo_id, revision=revision)
    check_file_names(file.rfilename for file in info.siblings or [])  # before any is written
    with tempfile.TemporaryDirectory(prefix="lvnar-verify-") as cache:
        folder = Path(api.snapshot_download(repo_id, revision=info.sha, cache_dir=cache))
        differing = _differing_files(api, repo_id, str(info.sha), folder)
        if differing:
            raise ValueError(f"{repo_id} at {info.sha}: these files were not downloaded as they are: {differing}.")
        check_repository(folder)
        expected = _package_ids(folder, texts)
        return str(info.sha), _compare(repo_id, info.sha, texts, expected, cache)


def _package_ids(folder: Path, texts: Sequence[str]) -> list[list[list[int]]]:
    """Token ids by the package's own classes, [steps][text]; refuse ONNX graphs that do not load, or give others."""
    encoded = LvnarTokenizer.from_pretrained(folder)(list(texts), return_tensors="pt", padding=True)

    def generate(model: Any) -> list[list[list[int]]]:
        return [model.generate(**encoded, num_refinement_steps=steps).tolist() for steps in GOLDEN_STEPS]

    ids = generate(LvnarForConditionalGeneration.from_pretrained(folder, use_safetensors=True))
    if importlib.util.find_spec("onnxruntime") is not None:
        for precision, name in ONNX_FILES.items():
            if (folder / name).is_file():
                found = generate(LvnarOnnxModel.from_pretrained(folder, precision))
                if precision == "float32" and found != ids:
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


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    version: str = __version__,
    texts: Sequence[str] = GOLDEN_TEXTS,
    api: HfApi | None = None,
) -> PublishedRevision:
    """Publish an assembled repository: verify, create, upload in one commit, tag, download again, verify again.

    What is there already is left as it is, so a call that failed may be made again. A version is published once: its
    tag is never moved. The commit makes main equal to the folder; files that the folder has not are removed there.

    Args:
        folder: what `assemble` made.
        repo_id: "user/name" or "organization/name".
        private: of a repository that is created; by default, as the owner's settings say.
        version: the tag is "v" and this.
        texts: golden sentences in the model's source language.
        api: a client of another Hub.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: the folder is refused before anything is sent: see `verify`.
        PublishError: a step failed; says what the remote holds and how to go on.
    """
    validate_repo_id(repo_id)
    folder, api, tag = Path(folder), api or HfApi(), f"v{version}"
    verify(folder, texts=texts)
    # Each step may fail with anything: the client's errors of transport have no base class in common.
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = str(api.model_info(repo_id).sha)
        tagged = _commit_of(api, repo_id, tag)
        differing = _differing_files(api, repo_id, tagged or head, folder)
    except Exception as error:
        raise PublishError(
            f"{repo_id} could not be created or read; nothing was uploaded. Check that `hf auth whoami` names an "
            f"account that may write there. {_AGAIN}\n{error}"
        ) from error
    if tagged and differing:
        raise PublishError(
            f"{repo_id} has the tag {tag} already, at {tagged}, with other content in {differing[:5]}. A published "
            "version stays as it is: give another version. Nothing was changed."
        )
    commit = tagged or head
    if differing:
        commit = _commit_folder(api, repo_id, folder, head, tag)
    if not tagged:
        try:
            api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
        except Exception as error:
            raise PublishError(
                f"{repo_id} has all files, in {commit}, but could not be tagged {tag}. {_AGAIN}\n{error}"
            ) from error
    try:
        found, translations = _verify_download(repo_id, tag, texts, api)
    except Exception as error:
        raise PublishError(
            f"{repo_id} is uploaded and tagged {tag}, at {commit}, but was not verified after download. The files that "
            f"were sent had been verified, so the download is the likely cause. {_AGAIN} To take the version back: "
            f"hf repos tag delete {repo_id} {tag}\n{error}"
        ) from error
    if found != commit:
        raise PublishError(
            f"The tag {tag} of {repo_id} names {found}, not {commit}, which has these files: someone else has set it. "
            "Look at both; give another version to publish this one."
        )
    return PublishedRevision(repo_id, tag, commit, translations)


def _commit_folder(api: HfApi, repo_id: str, folder: Path, head: str, tag: str) -> str:
    """Make main equal to the folder in one commit on top of `head`; the new commit."""
    names = list_files(folder)
    try:
        remote_names = {file.rfilename for file in api.model_info(repo_id, revision=head).siblings or []}
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationDelete(name) for name in sorted(remote_names - {GIT_ATTRIBUTES, *names})),
            *(CommitOperationAdd(name, folder / name) for name in names),
        ]
        # Not upload_folder, which may make several commits; and refused if main has moved since `head` was read.
        return str(api.create_commit(repo_id, operations, commit_message=f"Version {tag}", parent_commit=head).oid)
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412):
            state = f"its main branch has moved from {head} while this ran. Look at what has changed there"
        else:
            state = f"its main branch was at {head} before, and is {_describe_head(api, repo_id)} now"
        raise PublishError(f"The files of {repo_id} were not committed: {state}. {_AGAIN}\n{error}") from error


def _describe_head(api: HfApi, repo_id: str) -> str:
    try:
        return f"at {api.model_info(repo_id).sha}"
    except Exception:
        return "out of reach"


def _commit_of(api: HfApi, repo_id: str, tag: str) -> str | None:
    try:
        return str(api.model_info(repo_id, revision=tag).sha)
    except RevisionNotFoundError:
        return None


def _differing_files(api: HfApi, repo_id: str, commit: str, folder: Path) -> list[str]:
    """Names that a commit and a folder do not both have with the same content."""
    names = set(list_files(folder)) - {GIT_ATTRIBUTES}
    unchanged = set()
    for entry in api.list_repo_tree(repo_id, revision=commit, recursive=True):
        if isinstance(entry, RepoFile) and entry.path != GIT_ATTRIBUTES:
            if entry.path in names:
                content = (folder / entry.path).read_bytes()
                if entry.lfs is not None:
                    is_same = entry.lfs.sha256 == hashlib.sha256(content).hexdigest()
                else:
                    is_same = entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                if is_same:
                    unchanged.add(entry.path)
            names.add(entry.path)
    return sorted(names - unchanged)
