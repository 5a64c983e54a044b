"""`lvnar publish`: a model repository assembled, verified, shown and sent to the Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option

from lvnar_hf.version import __version__


def publish(
    model: Annotated[str, Option(help="Model folder with weights, tokenizer and card (README.md).")],
    repo_id: Annotated[str, Option(help="user/name or organization/name on the Hub.")],
    output_folder: Annotated[
        str | None,
        Option(help="Keep the assembled repository there; by default it is temporary.", show_default=False),
    ] = None,
    version: Annotated[str, Option(help='The tag is "v" and this.')] = __version__,
    text: Annotated[
        list[str] | None,
        Option(help="Source sentence for the verification; may be given several times.", show_default=False),
    ] = None,
    private: Annotated[
        bool | None, Option("--private/--public", help="Of a repository that is created.", show_default=False)
    ] = None,
    push: Annotated[bool, Option("--push", help="Send it; without this option nothing leaves the machine.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a repository in --output-folder.")] = False,
) -> None:
    """Assemble a model repository, verify it, and show what would be sent to the Hub; with --push, send it.

    Without --push nothing is asked of the network. To push, log in first with `hf auth login`, or set HF_TOKEN. A
    call that was stopped may be made again.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from lvnar_hf import hub

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise BadParameter(f"--repo-id must be user/name or organization/name. {error}") from error
    with tempfile.TemporaryDirectory(prefix="lvnar-publish-") as temporary:
        folder = Path(output_folder or Path(temporary, "repository"))
        hub.assemble(model, folder, overwrite, repo_id)
        texts = text or list(hub.golden_texts(folder))
        print(f"{repo_id}, tag v{version}:\n{_describe_files(folder)}", flush=True)
        if push:
            published = hub.push(folder, repo_id, private, version, texts)
            translations, outcome = published.translations, f"published and verified: commit {published.commit}"
        else:
            translations = hub.verify(folder, texts=texts)
            outcome = "dry run: verified, nothing sent; --push sends it"
    for source, translation in zip(texts, translations, strict=True):
        print(f"{source} -> {translation}")
    print(outcome)


def _describe_files(folder: Path) -> str:
    """The files of a folder, one a line: bytes, the beginning of the SHA-256, name; and their sum."""
    from lvnar_hf.files.atomic import hash_file
    from lvnar_hf.hub.checks import list_files

    names = list_files(folder)
    sizes = [(folder / name).stat().st_size for name in names]
    lines = [f"{s:>12,} {hash_file(folder / n)[:12]} {n}" for s, n in zip(sizes, names, strict=True)]
    return "\n".join([*lines, f"{sum(sizes):>12,} bytes in {len(names)} files"])
