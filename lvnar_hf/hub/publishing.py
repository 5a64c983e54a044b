"""A repository published on the Hub.

What is unusual: publishing is one commit on top of the one that was read before, so it happens whole or not at all; and
it can be run again at any point, because what is there already is left as it is. The only secret is huggingface_hub's
own (`hf auth login`, or HF_TOKEN); none is taken as an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from lvnar_hf.hub.checks import list_files
from lvnar_hf.hub.verification import (
    GIT_ATTRIBUTES,
    GOLDEN_TEXTS,
    differing_files,
    file_hashes,
    verify,
    verify_download,
)
from lvnar_hf.version import __version__

_AGAIN = "Run the same command again to go on from there."


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


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    version: str = __version__,
    texts: Sequence[str] = GOLDEN_TEXTS,
    api: HfApi | None = None,
) -> PublishedRevision:
    """Publish an assembled repository: verify, create, upload in one commit, tag, download again, verify again.

    What is downloaded must be the folder that was verified, file by file, by SHA-256.

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
    verified = file_hashes(folder)
    verify(folder, texts=texts)
    # Each step may fail with anything: the client's errors of transport have no base class in common.
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = str(api.model_info(repo_id).sha)
        tagged = _commit_of(api, repo_id, tag)
        differing = differing_files(api, repo_id, tagged or head, folder)
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
        _, translations = verify_download(repo_id, commit, texts, api, verified)
        found = _commit_of(api, repo_id, tag)
    except Exception as error:
        raise PublishError(
            f"{repo_id} is uploaded and tagged {tag}, at {commit}, but was not verified after download. The files that "
            f"were sent had been verified, so the download, or the Hub, is the likely cause. {_AGAIN} To take the "
            f"version back: hf repos tag delete {repo_id} {tag}\n{error}"
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
