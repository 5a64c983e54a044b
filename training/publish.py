"""Assemble a model repository, verify it, and show what would be sent to the Hub; with --push, send it.

    python training/publish.py --model model_cards/lvnar-tatoeba-en-de --repo_id user/lvnar-tatoeba-en-de
    python training/publish.py --model model_cards/lvnar-tatoeba-en-de --repo_id user/lvnar-tatoeba-en-de --push

Without --push nothing is asked of the network. To push, log in first with `hf auth login`, or set HF_TOKEN.
"""

import io
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a script: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import training.command  # noqa: F401  (ends the script with one line where that is enough)

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import HfArgumentParser

from lvnar_hf import __version__
from lvnar_hf.files.atomic import hash_file
from lvnar_hf.hub import GOLDEN_TEXTS, PublishError, assemble, push, verify
from lvnar_hf.hub.checks import list_files


@dataclass
class PublishArguments:
    """What is published, and where."""

    model: str = field(metadata={"help": "model folder with weights, tokenizer and card (README.md)"})
    repo_id: str = field(metadata={"help": "user/name or organization/name on the Hub"})
    output_folder: str | None = field(
        default=None, metadata={"help": "keep the assembled repository there; by default it is temporary"}
    )
    version: str = field(default=__version__, metadata={"help": 'the tag is "v" and this'})
    texts: list[str] = field(
        default_factory=lambda: list(GOLDEN_TEXTS), metadata={"help": "source sentences for the verification"}
    )
    private: bool | None = field(default=None, metadata={"help": "of a repository that is created"})
    push: bool = field(default=False, metadata={"help": "send it; without this flag nothing leaves the machine"})
    overwrite: bool = field(default=False, metadata={"help": "replace a repository in --output_folder"})


def describe_files(folder: Path) -> str:
    """The files of a folder, one a line: bytes, the beginning of the SHA-256, name; and their sum."""
    names = list_files(folder)
    sizes = [(folder / name).stat().st_size for name in names]
    lines = [f"{s:>12,} {hash_file(folder / n)[:12]} {n}" for s, n in zip(sizes, names, strict=True)]
    return "\n".join([*lines, f"{sum(sizes):>12,} bytes in {len(names)} files"])


def publish(arguments: PublishArguments, folder: Path, api: HfApi | None = None) -> None:
    """Assemble into a folder, show, and verify; or push.

    Raises:
        FileExistsError, FileNotFoundError, ValueError, RuntimeError, PublishError: as `assemble`, `verify` and `push`.
    """
    assemble(arguments.model, folder, arguments.overwrite, arguments.repo_id)
    print(f"{arguments.repo_id}, tag v{arguments.version}:\n{describe_files(folder)}", flush=True)
    if arguments.push:
        published = push(
            folder, arguments.repo_id, arguments.private, arguments.version, texts=arguments.texts, api=api
        )
        translations, outcome = published.translations, f"published and verified: commit {published.commit}"
    else:
        translations, outcome = (
            verify(folder, texts=arguments.texts),
            "dry run: verified, nothing sent; --push sends it",
        )
    for text, translation in zip(arguments.texts, translations, strict=True):
        print(f"{text} -> {translation}")
    print(outcome)


def main(argv: list[str] | None = None, api: HfApi | None = None) -> None:
    """Publish, or show what would be published.

    Raises:
        SystemExit: publishing stopped; the message says what the remote holds and how to go on.
    """
    (arguments,) = HfArgumentParser(PublishArguments).parse_args_into_dataclasses(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know the translations' letters
    try:
        validate_repo_id(arguments.repo_id)
    except HFValidationError as error:
        sys.exit(f"--repo_id must be user/name or organization/name. {error}")
    with tempfile.TemporaryDirectory(prefix="lvnar-publish-") as temporary:
        folder = Path(arguments.output_folder or Path(temporary, "repository"))
        try:
            publish(arguments, folder, api)
        except PublishError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
