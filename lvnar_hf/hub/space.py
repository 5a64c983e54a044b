"""A Space of the Hub for one model: the page on which refinement is watched, or one that translates in the browser.

What is unusual: the first holds this package too, byte for byte, so that it runs without the package index having it.
The second is one static page, for any web server: ONNX Runtime and the tokenizer run in the reader's browser, on the
graph in int8.
"""

import html
import json
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from lvnar_hf.hub.checks import PACKAGE_FOLDER, list_files, refuse_links
from lvnar_hf.hub.publishing import PublishError
from lvnar_hf.version import __version__

# What the static page is made of, beside itself: the files of npm's packages, by their hashes.
CDN = "https://cdn.jsdelivr.net/npm/"
_RUNTIME = f"{CDN}onnxruntime-web@1.30.0/dist/ort.wasm.bundle.min.mjs"
_TOKENIZERS = f"{CDN}@huggingface/tokenizers@0.2.0/dist/tokenizers.min.mjs"
IMPORTS = {
    "imports": {"onnxruntime-web": _RUNTIME, "@huggingface/tokenizers": _TOKENIZERS},
    "integrity": {
        _RUNTIME: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
        _TOKENIZERS: "sha384-Tl2lMbeE3RCGFLOUGQ7LhvaagysxiOw/9dulz2sD6jxNa1MckRJQBbYdVHhOoqEs",
    },
}
_WASM = {
    "url": f"{CDN}onnxruntime-web@1.30.0/dist/ort-wasm-simd-threaded.wasm",
    "integrity": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
OF_MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model_int8.onnx")

GRADIO = "6.31.0"  # that the page was tested with
# What the page needs beside gradio, which the Space brings itself; torch of the CPU, where ONNX Runtime runs too.
_REQUIREMENTS = """--extra-index-url https://download.pytorch.org/whl/cpu
torch>=2.6
transformers>=4.57,<6
tokenizers>=0.22
safetensors>=0.4.3
tqdm>=4.66
onnxruntime>=1.20
sentencex>=1.0
"""
_APP = '''"""The translation of a text after each refinement step, by {model}."""

from lvnar_hf.serving.page import build_page, launch

page = build_page({model!r})

if __name__ == "__main__":
    launch(page, host="0.0.0.0", port=7860)
'''
_README = """---
title: {title}
emoji: 🔁
colorFrom: yellow
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
models:
  - {model}
license: apache-2.0
short_description: A translation that improves as a whole, step by step
---

# {title}

Type a sentence: [{model}](https://huggingface.co/{model}) translates it, all words at once, and then again in each
refinement step. Words that a step has changed are marked; a slider goes through the steps.

The code is the package lvnar_hf {version}, which lies here too.
"""


_STATIC_README = """---
title: {title}
emoji: 🔁
colorFrom: yellow
colorTo: gray
sdk: static
app_file: index.html{models}
license: apache-2.0
short_description: Translation that runs in your browser
---

# In the browser

{model} translates in the reader's browser, all words at once, then again in each refinement step. No text leaves it.
"""


def assemble_space(folder: str | Path, model_id: str, overwrite: bool = False) -> Path:
    """Write a Space: app.py, requirements.txt, README.md with its metadata, and this package.

    Args:
        folder: new, or empty.
        model_id: "user/name" of the model on the Hub that the page shows.
        overwrite: replace a Space that is there.

    Raises:
        FileExistsError: the folder is not empty, and `overwrite` is not given or it holds something else.
        HFValidationError, a ValueError: the model's id is none.
    """
    validate_repo_id(model_id)
    output = _empty_folder(folder, overwrite)
    title = f"{model_id.rpartition('/')[2]}, step by step"
    fields = {"model": model_id, "title": title, "gradio": GRADIO, "version": __version__}
    (output / "README.md").write_text(_README.format(**fields), "utf-8")
    (output / "requirements.txt").write_text(_REQUIREMENTS, "utf-8")
    (output / "app.py").write_text(_APP.format(model=model_id), "utf-8")
    shutil.copytree(PACKAGE_FOLDER, output / "lvnar_hf", ignore=shutil.ignore_patterns("__pycache__"))
    return output


def assemble_static_space(folder: str | Path, model: str, overwrite: bool = False) -> Path:
    """Write a static page, index.html, that translates in the reader's browser; and README.md, for a Space of it.

    Args:
        folder: new, or empty.
        model: "user/name" on the Hub, from where the page takes tokenizer and graph; or a model folder, whose are
            copied beside the page.
        overwrite: replace a Space that is there.

    Raises:
        FileExistsError: as `assemble_space`.
        FileNotFoundError, ValueError: the model folder has no graph in int8, one of other weights, no tokenizer, or
            links out of it; says how to make it.
        HFValidationError, a ValueError: the model is no folder, and its id is none.
    """
    source = Path(model) if Path(model).is_dir() else None
    if source is None:
        validate_repo_id(model)
    else:
        from lvnar_hf.engines.onnx import LvnarOnnxModel

        refuse_links(source, OF_MODEL)
        LvnarOnnxModel.from_pretrained(source, precision="int8")  # says what is wrong with it
    name = model if source is None else source.resolve().name
    settings = {
        "model": name,
        "files": f"https://huggingface.co/{model}/resolve/main/" if source is None else "model/",
        "wasm": _WASM,
    }
    output = _empty_folder(folder, overwrite)
    for file in OF_MODEL if source is not None else ():
        (output / "model" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(model, file), output / "model" / file)
    page = (PACKAGE_FOLDER / "serving" / "browser.html").read_text("utf-8")
    for mark, value in (("SETTINGS", settings), ("IMPORTS", IMPORTS)):
        page = page.replace(f">{mark}<", f">{json.dumps(value).replace('<', chr(92) + 'u003c')}<", 1)
    (output / "index.html").write_text(page, "utf-8")
    models = f"\nmodels:\n  - {model}" if source is None else ""
    fields = {"title": json.dumps(f"{name}, in the browser"), "models": models, "model": html.escape(name)}
    (output / "README.md").write_text(_STATIC_README.format(**fields), "utf-8")
    return output


def _empty_folder(folder: str | Path, overwrite: bool) -> Path:
    """A new or empty folder; a Space of this package in it goes."""
    output = Path(folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{output} exists and is not empty: name another output folder, or overwrite.")
        if not _is_static(output) and not ((output / "app.py").is_file() and (output / "lvnar_hf").is_dir()):
            raise FileExistsError(f"{output} holds something else than a Space of this package; it is not overwritten.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    return output


def _is_static(folder: Path) -> bool:
    """Whether it is what `assemble_static_space` makes."""
    page = folder / "index.html"
    return page.is_file() and "<title>LVNAR-HF in the browser</title>" in page.read_text("utf-8", "replace")


def push_space(folder: str | Path, repo_id: str, private: bool | None = None, api: HfApi | None = None) -> str:
    """Send a Space to the Hub in one commit; files of another that are there stay.

    Args:
        folder: what `assemble_space` or `assemble_static_space` made.
        repo_id: "user/name" of the Space.
        private: of a Space that is created; by default, as the owner's settings say.
        api: a client of another Hub.

    Returns:
        The commit.

    Raises:
        PublishError: a step failed. The call may be made again.
    """
    validate_repo_id(repo_id)
    api = api or HfApi()
    operations = [CommitOperationAdd(name, Path(folder, name)) for name in list_files(Path(folder))]
    try:
        sdk = "static" if _is_static(Path(folder)) else "gradio"
        api.create_repo(repo_id, repo_type="space", space_sdk=sdk, private=private, exist_ok=True)
        message = f"Version v{__version__}"
        return str(api.create_commit(repo_id, operations, commit_message=message, repo_type="space").oid)
    except Exception as error:
        raise PublishError(
            f"The Space {repo_id} was not sent whole. Check that `hf auth whoami` names an account that may write "
            f"there, and run the same command again.\n{error}"
        ) from error
