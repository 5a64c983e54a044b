"""The page that translates in the browser, in a headless Chromium, against ONNX Runtime here."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import urllib.parse
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from lvnar_hf.engines.onnx import LvnarOnnxModel
from lvnar_hf.hub import space
from lvnar_hf.loading import load_tokenizer

playwright = pytest.importorskip(
    "playwright.sync_api", reason="it is in .environments/app, where `make test` runs this"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """npm's packages, as the page's addresses name them."""
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    folder = tmp_path_factory.mktemp("npm")
    names = [address.removeprefix(space._CDN).partition("/dist/")[0] for address in space._IMPORTS["imports"].values()]
    command = [
        "npm",
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--fetch-retries=0",
        "--prefix",
        str(folder),
        *names,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer")
    if done.returncode:
        pytest.skip(f"npm's registry: {done.stderr[-500:]}")
    return folder / "node_modules"


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny_repository, tiny_graphs) -> Path:
    """A tiny model whose graph "in int8" is that in float32, which gives the same tokens everywhere."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_repository, folder)
    (folder / "onnx").mkdir()
    shutil.copyfile(tiny_graphs / "model.onnx", folder / "onnx" / "model_int8.onnx")
    return folder


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory, repository):
    """Folder and address of the page of that model."""
    folder = space.assemble_static_space(tmp_path_factory.mktemp("site") / "page", str(repository))
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def open_page(browser, address: str, packages: Path, damaged: str = ""):
    """The page; what it takes from npm's mirror comes from here, one file damaged if asked."""
    page = browser.new_page()

    def serve(route) -> None:
        path = urllib.parse.unquote(route.request.url.removeprefix(space._CDN))
        package, version, rest = (path[0] + path[1:].replace("@", "|", 1).replace("/dist/", "|dist/", 1)).split("|")
        assert json.loads((packages / package / "package.json").read_text())["version"] == version
        body = (packages / package / rest).read_bytes()
        kind = "application/wasm" if rest.endswith(".wasm") else "text/javascript"
        headers = {"access-control-allow-origin": "*", "content-type": kind}
        route.fulfill(body=body + b"\n" if damaged and rest.endswith(damaged) else body, headers=headers)

    page.route(f"{space._CDN}**", serve)
    page.goto(address)
    return page


def translate(page, text: str) -> str:
    """Type, press, wait for the end."""
    page.locator("#text").fill(text)
    page.locator("#translate").click()
    page.locator("#status[data-state=done], #status[data-state=error]").wait_for(timeout=60_000)
    return page.locator("#translation").text_content()


def test_the_browser_gives_the_tokens_of_onnx_runtime_here(browser, site, packages, repository, sample_texts):
    page = open_page(browser, site[1], packages)
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
    page = open_page(browser, site[1], packages)
    page.locator("#status[data-state=loaded]").wait_for(timeout=60_000)
    for text, message in ((" ", "type a text"), ("a" * 5001, "5001 characters"), ("b " * 500, "the model takes")):
        translate(page, text)
        assert message in page.locator("#status").text_content()
    translate(page, "A house.")
    assert page.locator("#status").text_content() == "ready"
    page.close()
    for damaged in (".wasm", "tokenizers.min.mjs"):  # what is not as its hash says is not run
        page = open_page(browser, site[1], packages, damaged)
        page.wait_for_timeout(1000)
        assert page.locator("#translate").is_disabled()
        page.close()


def test_a_static_space_is_a_page_and_what_it_needs(tmp_path, repository, site):
    names = sorted(path.relative_to(site[0]).as_posix() for path in site[0].rglob("*") if path.is_file())
    assert names == sorted(["README.md", "index.html", *(f"model/{name}" for name in space._OF_MODEL)])
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
