"""The page that translates in the browser, in a headless Chromium, against ONNX Runtime here."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from chromium import MissingError, install_packages, open_static_page, serving
from chromium import translate_in_browser as translate
from conftest import ROOT

from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.hub import space
from lvnar_hf.loading import load_tokenizer


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """npm's packages, as the page's addresses name them."""
    try:
        return install_packages(tmp_path_factory.mktemp("npm"))
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_repository, tiny_graphs) -> Path:
    """A tiny model whose graph "in int8" is that in float32, which gives the same tokens everywhere."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_repository, folder)
    (folder / "onnx").mkdir()
    shutil.copyfile(tiny_graphs / "model.onnx", folder / "onnx" / "model_int8.onnx")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, repository):
    """Folder and address of the page of that model."""
    folder = space.assemble_static_space(tmp_path_factory.mktemp("site") / "page", str(repository))
    with serving(folder) as address:
        yield folder, address


def test_the_browser_gives_the_tokens_of_onnx_runtime_here(browser, site, packages, repository, sample_texts):
    page = open_static_page(browser, site[1], packages)
    page.locator("#status[data-state=loaded]").wait_for(timeout=60_000)
    model, tokenizer = LvnarOnnxModel.from_pretrained(repository, precision="int8"), load_tokenizer(str(repository))
    texts = [text for text in sample_texts[0] if len(text) < 40][:5]
    expected = {}
    for text in texts:
        batch = tokenizer([text], return_tensors="pt")
        expected[text] = [
            tokenizer.batch_decode(model.generate(**batch, num_refinement_steps=step), skip_special_tokens=True)[0]
            for step in range(5)
        ]
        shown = translate(page, text)
        steps = page.locator("tbody td.text").all_text_contents()
        assert steps == expected[text][: len(steps)] and shown == steps[-1]
        assert len(steps) == 5 or steps[-1] == steps[-2]
    assert len({texts[0] for texts in expected.values()}) > 1
    # Sentences one by one; lines, spaces and marks without a letter stay.
    first, second = texts[:2]
    lines = translate(page, f"{first} {second}\n\n  {second}\n***").split("\n")
    finals = [translate(page, text) for text in (first, second)]
    assert lines[1] == "" and lines[2].startswith("  ") and lines[3] == "***"
    assert lines[2].strip() == finals[1].strip() and lines[0] == " ".join(finals)
    page.close()


def test_what_is_wrong_is_said(browser, site, packages):
    page = open_static_page(browser, site[1], packages)
    page.locator("#status[data-state=loaded]").wait_for(timeout=60_000)
    for text, message in ((" ", "type a text"), ("a" * 5001, "5001 characters"), ("b " * 500, "the model takes")):
        translate(page, text)
        assert message in page.locator("#status").text_content()
    translate(page, "A house.")
    assert page.locator("#status").text_content() == "ready"
    page.close()
    for damaged in (".wasm", "tokenizers.min.mjs"):  # what is not as its hash says is not run
        page = open_static_page(browser, site[1], packages, damaged)
        page.locator("#status[data-state=error]").wait_for(timeout=60_000)
        assert "could not be loaded" in page.locator("#status").text_content()
        assert page.locator("#translate").is_disabled()
        page.close()


def test_a_static_space_is_a_page_and_what_it_needs(tmp_path, repository, site):
    names = sorted(path.relative_to(site[0]).as_posix() for path in site[0].rglob("*") if path.is_file())
    assert names == sorted(["README.md", "index.html", *(f"model/{name}" for name in space.OF_MODEL)])
    of_hub = space.assemble_static_space(tmp_path / "hub", "user/model")
    assert sorted(os.listdir(of_hub)) == ["README.md", "index.html"]
    assert "https://huggingface.co/user/model/resolve/main/" in (of_hub / "index.html").read_text("utf-8")
    assert "sdk: static" in (of_hub / "README.md").read_text("utf-8")
    space.assemble_static_space(of_hub, str(repository), overwrite=True)
    assert "models:" not in (of_hub / "README.md").read_text("utf-8")
    with pytest.raises(FileExistsError, match="not empty"):
        space.assemble_static_space(of_hub, "user/model")
    with pytest.raises(FileNotFoundError, match=r"Make it: lvnar export"):
        space.assemble_static_space(tmp_path / "other", str(ROOT / "model_cards" / "lvnar-tatoeba-en-de"))
    hostile = tmp_path / '<script>alert(1)<": x' / "x"
    shutil.copytree(repository, hostile.parent)
    page = space.assemble_static_space(tmp_path / "hostile", str(hostile.parent))
    assert "<script>alert" not in (page / "index.html").read_text("utf-8")
    metadata = yaml.safe_load((page / "README.md").read_text("utf-8").split("---\n")[1])
    assert metadata["title"] == f"{hostile.parent.name}, in the browser"
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (hostile.parent / "tokenizer.json").unlink()
    (hostile.parent / "tokenizer.json").symlink_to(secret)
    with pytest.raises(ValueError, match="link that leaves the folder"):
        space.assemble_static_space(tmp_path / "linked", str(hostile.parent))
