"""A Space of the Hub that shows the page on which refinement is watched, for one model.

What is unusual: the Space holds this package too, byte for byte, so that it runs without the package index having it.
"""

import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from lvnar_hf.hub.checks import PACKAGE_FOLDER, list_files
from lvnar_hf.hub.publishing import PublishError
from lvnar_hf.version import __version__

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
    output = Path(folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{output} exists and is not empty: name another output folder, or overwrite.")
        if not (output / "app.py").is_file() or not (output / "lvnar_hf").is_dir():
            raise FileExistsError(f"{output} holds something else than a Space of this package; it is not overwritten.")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    title = f"{model_id.rpartition('/')[2]}, step by step"
    fields = {"model": model_id, "title": title, "gradio": GRADIO, "version": __version__}
    (output / "README.md").write_text(_README.format(**fields), "utf-8")
    (output / "requirements.txt").write_text(_REQUIREMENTS, "utf-8")
    (output / "app.py").write_text(_APP.format(model=model_id), "utf-8")
    shutil.copytree(PACKAGE_FOLDER, output / "lvnar_hf", ignore=shutil.ignore_patterns("__pycache__"))
    return output


def push_space(folder: str | Path, repo_id: str, private: bool | None = None, api: HfApi | None = None) -> str:
    """Send a Space to the Hub in one commit; files of another that are there stay.

    Args:
        folder: what `assemble_space` made.
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
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        message = f"Version v{__version__}"
        return str(api.create_commit(repo_id, operations, commit_message=message, repo_type="space").oid)
    except Exception as error:
        raise PublishError(
            f"The Space {repo_id} was not sent whole. Check that `hf auth whoami` names an account that may write "
            f"there, and run the same command again.\n{error}"
        ) from error
