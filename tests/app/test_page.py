"""The page on which refinement is watched, in a headless Chromium; `make test` runs it where gradio is."""

import os
import re
import urllib.request
from pathlib import Path

import pytest
from chromium import translate_with_steps as translate
from conftest import ROOT

pytest.importorskip("gradio", reason="gradio is in .environments/app, where `make test` runs this")
pages = pytest.importorskip("lvnar_hf.serving.page")

MODEL = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
SENTENCE = "I bought a new lamp yesterday."


@pytest.fixture(scope="module")
def address():
    page = pages.build_page(str(MODEL))
    _, url, _ = pages.launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture
def page(browser, address):
    """The page, opened; whatever it asks of another host is an error."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    elsewhere: list[str] = []
    page.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or elsewhere.append(request.url)
    )
    page.goto(address)
    page.locator("#lvnar-text textarea").wait_for(timeout=60_000)
    yield page
    page.close()
    assert elsewhere == []


def test_a_sentence_is_typed_and_its_steps_are_watched(page, tmp_path):
    assert translate(page, SENTENCE) == "Ich habe gestern eine neue Lampe gekauft."
    rows = page.locator("#lvnar-table tbody tr")
    cells = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows.all()]
    assert [row[0] for row in cells] == [str(step) for step in range(len(cells))] and 3 <= len(cells) <= 5
    assert cells[0][3] == "Ich habe gestern eine neue Lampampe gekauft."
    assert all(re.fullmatch(r"\d+ ms", row[1]) and re.fullmatch(r"−?\d+\.\d", row[2]) for row in cells)
    # Stepping: back to the first, and on to the second, which changes a word.
    step = page.locator("#lvnar-step input[type=number]")
    step.fill("0")
    step.press("Enter")
    page.locator("#lvnar-translation [data-step='0']").wait_for(timeout=30_000)
    assert page.locator("#lvnar-translation").inner_text().strip() == cells[0][3]
    assert page.locator("#lvnar-translation mark").count() == 0
    assert "Lampampe" in page.locator("#lvnar-translation .unsure").all_inner_texts()
    step.fill("1")
    step.press("Enter")
    page.locator("#lvnar-translation [data-step='1']").wait_for(timeout=30_000)
    assert page.locator("#lvnar-table mark, #lvnar-table del").count() >= 1
    folder = Path(os.environ.get("LVNAR_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / "page.png")
    assert (folder / "page.png").stat().st_size > 10_000


def test_a_long_paragraph_keeps_its_lines_and_markup_is_text(page):
    paragraph = " ".join(f"Tom has {number} books." for number in range(10, 70))
    shown = translate(page, f"{paragraph}\n\n<b>Hello</b>, {{{{name}}}}!")
    assert shown.count("\n\n") == 1 and "<b>" in shown and "{{name}}" in shown
    assert all(str(number) in shown for number in range(10, 70))
    assert page.locator("#lvnar-translation b").count() == 0


def test_what_is_wrong_is_said_and_the_page_goes_on(page):
    assert "type a text" in translate(page, "  ", is_error=True)
    assert "5,001 characters" in translate(page, "a" * 5001, is_error=True)
    assert translate(page, "Good evening!") == "Guten Abend!"


def test_the_space_builds_the_same_page(tmp_path, monkeypatch):
    from lvnar_hf.hub.space import GRADIO, assemble_space

    folder = assemble_space(tmp_path / "space", "user/model")
    monkeypatch.setattr(pages, "build_page", lambda model: f"the page of {model}")
    scope = {"__name__": "app"}
    exec((folder / "app.py").read_text("utf-8"), scope)
    assert scope["page"] == "the page of user/model"
    assert pages.gradio.__version__ == GRADIO


def test_a_page_needs_a_model_of_this_package_and_loads_without_the_network(address, tmp_path):
    content = urllib.request.urlopen(address).read().decode()
    assert "fonts.googleapis.com" not in content
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        pages.build_page(str(tmp_path / "none"))
