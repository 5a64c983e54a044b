"""Measure, through a headless Chromium, how long the page of `lvnar app` and the static page take; writes a JSON.

    cp -r model_cards/lvnar-tatoeba-en-de runs/exported
    lvnar export --model runs/exported
    .environments/app/bin/python tests/support/measure_pages.py --model runs/exported --output_file runs/pages.json

An answer is timed from the click to the words. The static page runs the same graph in int8 as ONNX Runtime here, whose
translations are compared with its own.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def describe(milliseconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"p50": statistics.median(milliseconds), "p95": statistics.quantiles(milliseconds, n=20)[-1]}


def measure_steps(browser: Any, model: str, texts: list[str]) -> dict[str, Any]:
    """The page of `lvnar app`: until it can be typed in, and answers with all steps by each of its engines."""
    from chromium import translate_with_steps

    from lvnar_hf.serving import page as pages

    app = pages.build_page(model)
    _, address, _ = pages.launch(app, prevent_thread_lock=True, quiet=True)
    page = browser.new_page()
    start = time.perf_counter()
    page.goto(address)
    page.locator("#lvnar-text textarea").wait_for(timeout=60_000)
    result: dict[str, Any] = {"load_seconds": time.perf_counter() - start, "answer_ms": {}}
    for engine in pages.PAGE_ENGINES.values():
        page.get_by_label(engine).first.check()
        milliseconds = []
        for text in texts:
            start = time.perf_counter()
            translate_with_steps(page, text)
            milliseconds.append(1000 * (time.perf_counter() - start))
        result["answer_ms"][engine] = describe(milliseconds)
    page.close()
    app.close()
    return result


def measure_static(browser: Any, model: str, texts: list[str]) -> dict[str, Any]:
    """The static page: until it is ready, a sentence by number of steps, and how many are translated as here."""
    from chromium import install_packages, open_static_page, serving, translate_in_browser

    from lvnar_hf.hub.space import assemble_static_space
    from lvnar_hf.jobs.line_translator import load_translator

    here = load_translator(model, "onnx-int8", 1)
    with tempfile.TemporaryDirectory() as folder:
        packages = install_packages(Path(folder, "npm"))
        with serving(assemble_static_space(Path(folder, "page"), model)) as address:
            start = time.perf_counter()
            page = open_static_page(browser, address, packages)
            page.locator("#status[data-state=loaded]").wait_for(timeout=60_000)
            result: dict[str, Any] = {"load_seconds": time.perf_counter() - start, "num_same": 0}
            milliseconds: dict[int, list[float]] = {0: [], 1: []}
            for text in texts:
                translate_in_browser(page, text)
                times = page.locator("tbody td.number").all_text_contents()
                result["num_same"] += (
                    page.locator("tbody td.text").nth(1).text_content() == here.translate([text]).texts[0]
                )
                for step, values in milliseconds.items():
                    values.append(float(times[step].split()[0]))
            page.close()
    return {**result, "sentence_ms": {str(step): describe(values) for step, values in milliseconds.items()}}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder with its graphs")
    parser.add_argument("--output_file", required=True, help="JSON; one that is there is replaced")
    parser.add_argument("--num_sentences", type=int, default=60, help="of the test set of Tatoeba")
    arguments = parser.parse_args()

    from chromium import running_chromium
    from measured import read_sample, write_measured

    texts = read_sample("en", arguments.num_sentences)
    with running_chromium() as browser:
        steps, static = (measure(browser, arguments.model, texts) for measure in (measure_steps, measure_static))
    write_measured(arguments.output_file, {"num_sentences": len(texts), "steps": steps, "static": static})


if __name__ == "__main__":
    main()
