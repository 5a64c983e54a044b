"""`lvnar translate`: a text, a file, or standard input."""

import json
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from lvnar_hf.engines import ENGINES
from lvnar_hf.files.outputs import refuse_missing_folder

_FILE_ENDING = re.compile(r"[^.]\.([a-z][a-z0-9]{1,7}|[A-Z]{3,4})$")


def _looks_like_a_file(text: str) -> bool:
    """Whether a text is one word that begins as a path, ends as the name of a file, or names a folder that is here."""
    if len(text.split()) != 1 or "://" in text or "@" in text:
        return False
    is_in_folder = "/" in text and Path(text).parent.is_dir()
    return is_in_folder or text.startswith(("./", "../", "/", "~/")) or _FILE_ENDING.search(text) is not None


def translate(
    model: Annotated[str, Option(help="Model folder or Hub id.")],
    text_or_input: Annotated[
        str | None,
        Argument(
            metavar="TEXT|INPUT", help="A text; or a file, UTF-8, plain or gzip; -: standard input.", show_default=False
        ),
    ] = None,
    output: Annotated[
        str | None,
        Argument(
            metavar="OUTPUT", help="A file, a line for each line of INPUT; -: standard output.", show_default=False
        ),
    ] = None,
    engine: Annotated[str, Option(help=f"One of {', '.join(ENGINES)}.")] = "auto",
    num_refinement_steps: Annotated[int | None, Option(help="By default the model's own.", show_default=False)] = None,
    max_batch_tokens: Annotated[
        int | None,
        Option(help="Of a batch, padding included; by default 512 on the CPU, 16384 on a GPU.", show_default=False),
    ] = None,
    shard_size: Annotated[int, Option(help="Lines that are sorted, translated and stored together.")] = 2000,
    num_workers: Annotated[
        int | None,
        Option(help="Processes; by default one a core or a GPU, on a cluster one a shard.", show_default=False),
    ] = None,
    preserve_format: Annotated[
        bool, Option(help="Several sentences a line, with marks and spans that must not change, are taken apart first.")
    ] = True,
    num_latent_candidates: Annotated[
        int | None, Option(help="Translations tried from latents around the likeliest.", show_default=False)
    ] = None,
    num_length_candidates: Annotated[
        int | None, Option(help="Likeliest lengths tried, with alignment length.", show_default=False)
    ] = None,
    beam_size: Annotated[
        int | None, Option(help="Translations that a beam search tries, with alignment ctc.", show_default=False)
    ] = None,
    candidate_score: Annotated[
        str | None, Option(help="Decides: beam, bound, elbo, consensus or rescorer.", show_default=False)
    ] = None,
    rescorer: Annotated[
        str | None, Option(help="An autoregressive model of the same vocabulary that decides.", show_default=False)
    ] = None,
    device: Annotated[str | None, Option(help="By default a GPU where there is one.", show_default=False)] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Throw away an output that is there.")] = False,
    executor: Annotated[str, Option(help="Where a file is translated: local, slurm or ray.")] = "local",
    executor_option: Annotated[
        list[str] | None, Option(help="NAME=VALUE, of datatrove's executor; again for another.", show_default=False)
    ] = None,
) -> dict[str, Any] | None:
    """Translate a text, a file, or standard input.

    \b
    lvnar translate --model MODEL "A text."          the text, to standard output
    lvnar translate --model MODEL in.txt out.txt     a file, to a file
    lvnar translate --model MODEL in.txt             a file, to standard output
    lvnar translate --model MODEL < in.txt           standard input, to standard output

    One argument is a file if there is one of this name, else it is a text; two are files. One word that looks like a
    file (in.txt, ./in, data/in) and is none is refused: give such a text on standard input.

    A file is translated line by line, on all cores. Killed and started again with the same options, a translation to
    a file goes on where it was. A cluster must see the same files; Slurm translates later, and the same command then
    puts the output together. When it is done, OUTPUT.translation.json and a last line in JSON say what was done;
    that line goes to standard error where the translations go to standard output.
    """
    if text_or_input is None and sys.stdin.isatty():
        raise BadParameter("there is nothing to translate: give a text, files, or a pipe to standard input.")
    is_text = text_or_input not in (None, "-") and output is None and not Path(str(text_or_input)).is_file()
    if is_text and _looks_like_a_file(str(text_or_input)):
        raise BadParameter(
            f"there is no file {text_or_input}. If it is a text to translate, give it on standard input: "
            f"echo {shlex.quote(str(text_or_input))} | lvnar translate --model {shlex.quote(model)}"
        )
    if not Path(refuse_missing_folder(model)).exists():
        print(f"There is no folder {model}: asking the Hub for it.", file=sys.stderr, flush=True)
    from lvnar_hf.jobs.file_translation import translate_file, translate_text

    how: dict[str, Any] = {
        "engine": engine,
        "num_refinement_steps": num_refinement_steps,
        "max_batch_tokens": max_batch_tokens,
        "preserve_format": preserve_format,
        "device": device,
        "search": {
            "num_latent_candidates": num_latent_candidates,
            "num_length_candidates": num_length_candidates,
            "beam_size": beam_size,
            "candidate_score": candidate_score,
            "rescorer": rescorer,
        },
    }
    if is_text:
        print(translate_text(str(text_or_input), model, **how))
        return None
    how |= {"model": model, "shard_size": shard_size, "num_workers": num_workers, "overwrite": overwrite}
    how |= {"executor": executor, "executor_options": executor_option or ()}
    input_file = text_or_input or "-"
    if output not in (None, "-"):
        result = translate_file(input_file, str(output), **how)
        if result is not None:
            print(json.dumps(result))
        return result
    if executor != "local":
        raise ValueError("Standard output is for the executor local: name an output file, which the cluster can see.")
    with tempfile.TemporaryDirectory(prefix="lvnar-translate-") as folder:
        file = Path(folder, "translations.txt")
        result = translate_file(input_file, file, **how)
        with file.open("rb") as translations:
            shutil.copyfileobj(translations, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    print(json.dumps(result), file=sys.stderr)
    return result
