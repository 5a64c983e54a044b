"""Pages in a headless Chromium: what their tests and `measure_pages.py` share."""

import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvnar_hf.hub import space

NAMES = ("chromium", "chromium-browser", "google-chrome")
_CHANGED = "([selector, before]) => (document.querySelector(selector)?.textContent ?? before) !== before"


class MissingError(Exception):
    """What this machine has not: a browser, npm, or its registry."""


@contextlib.contextmanager
def running_chromium() -> Iterator[Any]:
    """The browser. It is the machine's own; none is downloaded."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        raise MissingError("no Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def translate_with_steps(page: Any, text: str, is_error: bool = False) -> str:
    """Type a text into the page of `lvnar app`, press the button, wait for other words than stood there.

    Gradio puts its clock beside the old words while it waits, so that other HTML is not yet an answer.
    """
    selector = f"#lvnar-translation .lvnar-{'error' if is_error else 'translation'}"
    shown = page.locator(selector)
    before = shown.text_content() if shown.count() else ""
    page.locator("#lvnar-text textarea").fill(text)
    page.locator("button#lvnar-translate, #lvnar-translate button").first.click()
    page.wait_for_function(_CHANGED, arg=[selector, before], timeout=60_000)
    return shown.inner_text()


def translate_in_browser(page: Any, text: str) -> str:
    """The same of a static page; wait for the end of its steps."""
    page.locator("#text").fill(text)
    page.locator("#translate").click()
    page.locator("#status[data-state=done], #status[data-state=error]").wait_for(timeout=60_000)
    return page.locator("#translation").text_content()


def install_packages(folder: Path) -> Path:
    """The packages of npm that a static page takes; gives their folder."""
    if shutil.which("npm") is None:
        raise MissingError("no npm")
    names = [address.removeprefix(space.CDN).partition("/dist/")[0] for address in space.IMPORTS["imports"].values()]
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", str(folder)]
    try:
        subprocess.run(["npm", "install", *options, *names], capture_output=True, text=True, timeout=90, check=True)
    except subprocess.TimeoutExpired as error:
        raise MissingError("npm's registry does not answer") from error
    except subprocess.CalledProcessError as error:
        raise MissingError(f"npm's registry: {error.stderr[-500:]}") from error
    return folder / "node_modules"


def open_static_page(browser: Any, address: str, packages: Path, damaged: str = "") -> Any:
    """The page; what it takes from npm's mirror comes from here, files with one ending damaged if asked."""
    page = browser.new_page()

    def serve(route: Any) -> None:
        path = urllib.parse.unquote(route.request.url.removeprefix(space.CDN))
        package, version, rest = (path[0] + path[1:].replace("@", "|", 1).replace("/dist/", "|dist/", 1)).split("|")
        assert json.loads((packages / package / "package.json").read_text())["version"] == version
        body = (packages / package / rest).read_bytes()
        kind = "application/wasm" if rest.endswith(".wasm") else "text/javascript"
        headers = {"access-control-allow-origin": "*", "content-type": kind}
        route.fulfill(body=body + b"\n" if damaged and rest.endswith(damaged) else body, headers=headers)

    page.route(f"{space.CDN}**", serve)
    page.goto(address)
    return page


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a folder's files on loopback."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
