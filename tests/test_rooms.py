"""The rules of the house that no other tool checks: which folder may import which, and how long a file may be."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

MAX_LINES = {"lvnar_hf": 450, "training": 450, "model_cards": 450, "tests": 700}


def modules(package: str) -> dict[str, Path]:
    """The files of a package by the names that they are imported by."""
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in (ROOT / package).rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


MODULES = {**modules("lvnar_hf"), **modules("training")}


def imported(name: str) -> Iterator[str]:
    """The modules of both packages that a module imports, at its top or within a function."""
    file = MODULES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        yield from (found for found in names if found in MODULES)


def room(name: str) -> str:
    """The folder of a module; the modules at the top of a package, such as the recipe, are rooms of their own."""
    top, *folders = name.split(".")
    return f"{top}.{folders[0]}" if folders else top


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(room(name), set()).update({room(other) for other in imported(name)} - {room(name)})
    return graph


def test_the_package_never_imports_training(graph):
    assert len(graph) > 50 and "lvnar_hf.files" in graph["training.loop"], "imports are seen"
    of_package = {name: others for name, others in graph.items() if name.partition(".")[0] == "lvnar_hf"}
    assert not [(name, other) for name in of_package for other in graph[name] if other.startswith("training")]


def test_no_folder_imports_one_that_imports_it(graph):
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("lvnar_hf.files") < order.index("lvnar_hf.engines") < order.index("training.loop")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({**graph, "lvnar_hf.files": {"lvnar_hf.jobs"}}).prepare()


def test_files_are_short():
    for folder, limit in MAX_LINES.items():
        for file in (ROOT / folder).rglob("*.py"):
            lines = file.read_text("utf-8").count("\n")
            assert lines < limit, (
                f"{file.relative_to(ROOT)} has {lines} lines; fewer than {limit} are allowed: divide it"
            )


@pytest.mark.parametrize(
    ("file", "holds"),
    [
        ("lvnar_hf/length_lvnar.py", "Eq. 6 to 8"),
        ("lvnar_hf/losses_lvnar.py", "(Eq. 9)"),
        ("lvnar_hf/losses_lvnar.py", "Eq. 10"),
        ("lvnar_hf/refinement_lvnar.py", "Algorithm 1, Eq. 11"),
        ("lvnar_hf/sentences_lvnar.py", "class SentenceSplitter"),
        ("lvnar_hf/jobs/executors.py", "def run_here(executor: LocalPipelineExecutor"),
        ("training/translation_quality/bleu.py", "BLEU("),
    ],
)
def test_a_reader_of_the_file_list_finds(file, holds):
    assert holds in (ROOT / file).read_text("utf-8")
