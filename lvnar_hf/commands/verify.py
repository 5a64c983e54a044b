"""`lvnar verify`: a model repository checked, and its translations compared without the package."""

from typing import Annotated

from typer import Argument, Option


def verify(
    repository: Annotated[str, Argument(help="An assembled folder, or a Hub id.", show_default=False)],
    revision: Annotated[
        str | None, Option(help="Branch, tag or commit on the Hub; by default its main branch.", show_default=False)
    ] = None,
    text: Annotated[
        list[str] | None, Option(help="Source sentence to compare; may be given several times.", show_default=False)
    ] = None,
) -> None:
    """Check a repository, and compare its translations with those of a process that has not this package."""
    from lvnar_hf.files.outputs import refuse_missing_folder
    from lvnar_hf.hub import golden_texts
    from lvnar_hf.hub import verify as verify_repository

    texts = text or golden_texts(refuse_missing_folder(repository), revision)
    translations = verify_repository(repository, revision, texts)
    for source, translation in zip(texts, translations, strict=True):
        print(f"{source} -> {translation}")
    print("verified")
