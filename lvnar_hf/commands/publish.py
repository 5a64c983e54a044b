"""`lvnar publish`: a model repository, or a Space, assembled, shown and sent to the Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

from typer import BadParameter, Option

from lvnar_hf.version import __version__


def publish(
    model: Annotated[
        str, Option(help="Model folder with weights, tokenizer and card (README.md); with --space, its Hub id.")
    ],
    repo_id: Annotated[str, Option(help="user/name or organization/name on the Hub.")],
    output_folder: Annotated[
        str | None, Option(help="Keep the assembled repository there; by default it is temporary.", show_default=False)
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
    space: Annotated[
        bool, Option("--space", help="A Space with the page of `lvnar app`, for a model on the Hub.")
    ] = False,
    in_browser: Annotated[
        bool,
        Option("--in-browser", help="With --space: a static page, where the browser translates; for a folder too."),
    ] = False,
) -> None:
    """Assemble a model repository, verify it, and show what would be sent to the Hub; with --push, send it.

    With --space it is a Space, and --model the id of a model on the Hub: app.py, requirements.txt, README.md, and this
    package. With --in-browser too it is a static page. Without --push nothing is asked of the network. To push, log in
    first with `hf auth login`, or set HF_TOKEN. A call that was stopped may be made again.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from lvnar_hf import hub

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise BadParameter(f"--repo-id must be user/name or organization/name. {error}") from error
    if in_browser and not space:
        raise BadParameter("--in-browser is for a --space.")
    if space:
        _publish_space(model, repo_id, output_folder, private, push, overwrite, in_browser)
        return
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


def _publish_space(
    model: str,
    repo_id: str,
    output_folder: str | None,
    private: bool | None,
    push: bool,
    overwrite: bool,
    in_browser: bool,
) -> None:
    from lvnar_hf.hub.space import assemble_space, assemble_static_space, push_space

    assemble = assemble_static_space if in_browser else assemble_space

    with tempfile.TemporaryDirectory(prefix="lvnar-space-") as temporary:
        folder = assemble(output_folder or Path(temporary, "space"), model, overwrite)
        print(f"{repo_id}, a Space for {model}:\n{_describe_files(folder)}", flush=True)
        if push:
            print(f"published: commit {push_space(folder, repo_id, private)}")
        else:
            print("dry run: nothing sent; --push sends it")


def _describe_files(folder: Path) -> str:
    """The files of a folder, one a line: bytes, the beginning of the SHA-256, name; and their sum."""
    from lvnar_hf.files.atomic import hash_file
    from lvnar_hf.hub.checks import list_files

    names = list_files(folder)
    sizes = [(folder / name).stat().st_size for name in names]
    lines = [f"{s:>12,} {hash_file(folder / n)[:12]} {n}" for s, n in zip(sizes, names, strict=True)]
    return "\n".join([*lines, f"{sum(sizes):>12,} bytes in {len(names)} files"])
