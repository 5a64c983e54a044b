"""The documents: their links, the first page, what is generated in them, and the files beside them."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import lvnar_hf
from lvnar_hf.steps import align
from training import report
from training.recipe import SECTIONS
from training.reports import picture, reference, tables

README = ROOT / "README.md"
SVG = "{http://www.w3.org/2000/svg}"


def markdown_files() -> list[Path]:
    """All but the template of the cards, whose cards are among them."""
    folders = [ROOT, *(ROOT / name for name in ("docs", "training", "model_cards", "tests"))]
    found = [*folders[0].glob("*.md"), *(path for folder in folders[1:] for path in folder.glob("**/*.md"))]
    return sorted(path for path in found if path.name != "template.md")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Those that GitHub gives the headings of a document."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL), re.M):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("document", markdown_files(), ids=lambda path: "-".join(path.relative_to(ROOT).parts))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text("utf-8"))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{document.name}: {target}"


def test_links_are_found():
    """The test above would pass on documents in which it sees no link."""
    assert len(re.findall(r"\]\(docs/", without_code(README.read_text("utf-8")))) >= 8
    assert {"engines-and-number-types", "on-the-way", "on-the-way-1"} <= anchors(ROOT / "docs" / "EXPERIMENTS.md")


def test_the_first_page_shows_what_a_stranger_needs():
    first = "".join(README.read_text("utf-8").splitlines(keepends=True)[:30])
    assert "](docs/refinement.svg)" in first and "pip install" in first and "limit:" in first
    (code,) = re.findall(r"```python\n(.*?)```\n```text\n.+?```", first, flags=re.DOTALL)
    assert len(code.replace("\n\n", "\n").splitlines()) == 5
    rows = [line for line in first.splitlines() if line.startswith("| ")][2:]
    names = [re.split(r" \(|, at| \|", row.removeprefix("| "))[0] for row in rows]
    assert [re.sub(r"beam \d+,", "a beam,", name) for name in names] == [
        "autoregressive teacher",
        "this model, 0 steps",
        "this model, 1 step",
        "this model, 0 steps, ONNX Runtime int8",
        "this model, 1 step, ONNX Runtime int8",
        "this model, ONNX Runtime int8, 0 steps, a beam, rescored by its teacher",
        "best baseline",
        "fastest baseline",
    ]


def test_the_summary_takes_the_times_of_the_models_that_were_scored_where_there_are_some(tmp_path):
    results = report.CARDS / report.SHIPPED / "results"
    for name in ("test", "teacher_test", "engine_quality"):
        (tmp_path / f"{name}.json").write_text((results / f"{name}.json").read_text("utf-8"))
    of_japanese = report.CARDS / "lvnar-tatoeba-ja-en-length" / "results" / "benchmark.json"
    japanese = json.loads(of_japanese.read_text("utf-8"))
    (tmp_path / "benchmark.json").write_text(json.dumps(japanese))
    table = tables.summary_table(tmp_path)
    systems = japanese["modes"]["trained"]["systems"]
    fastest = min(
        (name for name in systems if name.startswith("marian")),
        key=lambda name: systems[name]["model"]["latency_ms"]["mean"],
    )
    bleu, latency = systems[fastest]["quality"]["bleu"]["score"], systems[fastest]["model"]["latency_ms"]["mean"]
    assert f"| fastest baseline ({fastest}) | {bleu:.1f} | {latency:.1f} |" in table
    assert "these models on its sentences" in table and "paper's sizes" not in table


def test_every_export_and_every_key_is_described():
    api, recipes = reference.render_api(), reference.render_recipes()
    for name in set(lvnar_hf.__all__) - {"__version__"}:
        assert f"### {name}\n\n`from lvnar_hf import {name}`" in api
    assert "#### LvnarForConditionalGeneration.generate" in api and "\n#### LvnarConfig._" not in api
    for name, section in SECTIONS.items():
        assert re.search(rf"^## .*\b{name}\b", recipes, re.M)
        for field in dataclasses.fields(section):
            assert f"\n| `{field.name}` | " in recipes
    assert "| `max_length_ratio` | float | `0.0` |" in recipes and "| `joint` | bool | `true` |" in recipes


def test_docstrings_become_lists():
    def described(first: int, *others: int) -> int:
        """One line <pad>, `<pad>`.

        Args:
            first: one
                and more.
            *others: the rest.

        Returns:
            (batch,) a sum: of all.

        Raises:
            ValueError: never.
        """
        return first + sum(others)

    (node,) = ast.parse(textwrap.dedent(inspect.getsource(described))).body
    assert reference._docstring(node) == (
        "One line \\<pad>, `<pad>`.\n\n**Args**\n\n- `first`: one\n  and more.\n- `*others`: the rest.\n\n"
        "**Returns**\n\n(batch,) a sum: of all.\n\n**Raises**\n\n- `ValueError`: never."
    )
    assert reference._signature(node) == "```text\ndescribed(first: int, *others: int) -> int\n```"


def test_a_picture_marks_what_changes():
    steps = ["a b & c", "a x & c d", "a x & d", "a x & d"]
    example = {"output": "a x", "has_converged": True, "steps": []}
    for number, (before, after) in enumerate(zip(steps[:1] + steps, steps, strict=False)):
        example["steps"].append({"step": number, "text": after, "runs": align(before.split(), after.split(), " ")})
    root = ElementTree.fromstring(picture.render_svg("s <t>", example))
    texts = [(text.text, text.get("font-weight"), text.get("text-decoration")) for text in root.iter(f"{SVG}text")]
    assert [text for text, weight, _ in texts if weight] == ["x", "d", "a x"]
    assert [text for text, _, decoration in texts if decoration] == ["c"]
    shown = [text for text, _, _ in texts]
    assert shown[:2] == ["source", "s <t>"] and "nothing changes: it stops" in shown
    assert shown[-1] == "repeated words are taken out"
    assert len(list(root.iter(f"{SVG}rect"))) == 3  # the paper, and two marks
    right = max(float(text.get("x")) + float(text.get("textLength")) for text in root.iter(f"{SVG}text"))
    assert right < float(root.get("width"))
    with pytest.raises(ValueError, match="sentence is empty"):
        picture.draw_refinement("no model", " ")


def test_a_command_draws_the_picture_of_the_first_page(tmp_path):
    file = tmp_path / "refinement.svg"
    picture.main(["--model", str(report.CARDS / report.SHIPPED), "--output_file", str(file), report.PICTURED_SENTENCE])
    assert file.read_text("utf-8") == (ROOT / "docs" / "refinement.svg").read_text("utf-8")


def test_the_map_shows_the_rooms_that_there_are():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    modules = [path for package in ("lvnar_hf", "training") for path in (ROOT / package).glob("*/*.py")]
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in modules}
    assert set(re.findall(r"^\| `((?:lvnar_hf|training)/\w+)/`", text, re.M)) == rooms
    named = set(re.findall(r"`(\w+_lvnar\.py)`", text))
    assert len(named) >= 8 and all((ROOT / "lvnar_hf" / name).is_file() for name in named)
    classes = "".join(path.read_text("utf-8") for path in (ROOT / "lvnar_hf").glob("*_lvnar.py"))
    assert all(f"class {name}(" in classes for name in re.findall(r"`(Lvnar\w+)`", text))


def test_the_citation_is_that_of_the_readme_and_ci_runs_what_is_run_here():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "preferred-citation"} <= set(citation)
    readme = " ".join(README.read_text("utf-8").split())
    paper = citation["preferred-citation"]
    assert paper["title"] in readme and paper["url"] in readme and str(paper["year"]) in readme
    assert " and ".join(f"{a['given-names']} {a['family-names']}" for a in paper["authors"]) in readme
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step] == [".ci/run"]
