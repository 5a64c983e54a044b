"""docs/API.md from the package's docstrings, and docs/RECIPES.md from the help of the recipe's dataclasses.

Signatures are read from the source, so that they do not change with the version of Python or of a library.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

import lvnar_hf
from training.recipe import SECTIONS

PACKAGE = "lvnar_hf"
# What docs/API.md describes, by heading: module and names.
API: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "Model, tokenizer and pipeline": (
        ("configuration_lvnar", ("LvnarConfig",)),
        ("modeling_lvnar", ("LvnarForConditionalGeneration",)),
        ("losses_lvnar", ("LvnarOutput",)),
        ("generation_lvnar", ("LvnarGenerateOutput",)),
        ("refinement_lvnar", ("refine", "TranslationParts", "EncodedSource")),
        ("search_options_lvnar", ("SearchOptions",)),
        ("ctc_beam_lvnar", ("prefix_beam_search", "Cells", "BeamOptions", "LanguageModel")),
        ("language_models", ("KenlmModel",)),
        ("tokenization_lvnar", ("LvnarTokenizer",)),
        ("tokenizer_training", ("train_tokenizer",)),
        ("pipeline_lvnar", ("LvnarTranslationPipeline",)),
        ("text_lvnar", ("TextFormat",)),
        ("confidence_lvnar", ("Calibration", "Curve", "token_probabilities")),
        ("words_lvnar", ("WordSpan", "word_spans")),
        ("steps", ("refinement_steps", "RefinementSteps", "Step", "Word", "Run")),
    ),
    "Engines": (
        ("engines.compiled", ("LvnarCompiledModel",)),
        ("engines.onnx", ("LvnarOnnxModel",)),
        ("engines.search", ("OnnxRescorer",)),
        ("engines.onnx_export", ("export_onnx",)),
        ("engines.onnx_search", ("export_cells", "export_rescorer")),
        ("engines.shortlist", ("Shortlist",)),
    ),
    "Losses": (
        ("losses_lvnar", ("token_nll", "gaussian_kl", "budgeted_kl", "kl_budget_at", "length_nll")),
        ("ctc_lvnar", ("ctc_nll", "bigram_loss", "likeliest_alignment", "glanced_cells")),
        ("ctc_lvnar", ("collapse", "part_equal_words")),
    ),
    "The Hub": (("hub", ("assemble", "verify", "push")),),
}
_GENERATED = "<!-- Written by `python training/report.py`; edit {where} instead. -->"
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
_ITEM = re.compile(r"^([*\w][\w*]*(?:, [*\w][\w*]*)*): +(.*)$")


def render_api() -> str:
    """The whole of docs/API.md."""
    parts = [
        "# API",
        _GENERATED.format(where="the docstrings"),
        "What the package adds to transformers. Whatever else a class does, it does as its base class in transformers.",
    ]
    for heading, modules in API.items():
        parts.append(f"## {heading}")
        for module, names in modules:
            for name in names:
                parts += _describe(getattr(importlib.import_module(f"{PACKAGE}.{module}"), name), module)
    return "\n\n".join(parts) + "\n"


def _describe(thing: Any, module: str) -> list[str]:
    """Heading, signature, docstring, and for a class its public methods and those of its bases in the package."""
    node = _definition(thing)
    home = PACKAGE if thing.__name__ in lvnar_hf.__all__ else f"{PACKAGE}.{module}"
    parts = [f"### {thing.__name__}", f"`from {home} import {thing.__name__}`"]
    if isinstance(node, ast.FunctionDef):
        return [*parts, _signature(node), _docstring(node)]
    bases = [_definition(base) for base in thing.__mro__ if base.__module__.startswith(f"{PACKAGE}.")]
    found: dict[str, ast.FunctionDef] = {}
    for base in bases:
        for item in base.body:
            if isinstance(item, ast.FunctionDef):
                found.setdefault(item.name, item)
    parts.append(_signature(found["__init__"], node.name) if "__init__" in found else _fields(bases))
    parts.append(_docstring(node))
    for name, method in found.items():
        if not name.startswith("_") and ast.get_docstring(method) and not _is_property(method):
            parts += [f"#### {node.name}.{name}", _signature(method), _docstring(method)]
    return [part for part in parts if part]


def _definition(thing: Any) -> Any:
    """The class or function as it stands in its module's source."""
    source = Path(str(sys.modules[thing.__module__].__file__)).read_text("utf-8")
    (node,) = (item for item in ast.parse(source).body if getattr(item, "name", None) == thing.__name__)
    return node


def _is_property(method: ast.FunctionDef) -> bool:
    return any(isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in method.decorator_list)


def _signature(node: ast.FunctionDef, name: str | None = None) -> str:
    """A block of Python: a call with one argument a line, or all on one line where there is room."""
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, |$)", "", arguments)
    result = f" -> {ast.unparse(node.returns)}" if node.returns and name is None else ""
    line = f"{name or node.name}({arguments}){result}"
    if len(line) > 100:
        # ast puts ", " between arguments, and inside brackets too: split outside of those.
        pieces = re.split(r", (?![^\[\](){}]*[\])}])", arguments)
        line = "".join([f"{name or node.name}(\n", *(f"    {piece},\n" for piece in pieces), f"){result}"])
    return f"```text\n{line}\n```"


def _fields(bases: list[ast.ClassDef]) -> str:
    """The fields of a dataclass, those of its bases first."""
    fields = [item for base in reversed(bases) for item in base.body if isinstance(item, ast.AnnAssign)]
    return "```text\n" + "\n".join(map(ast.unparse, fields)) + "\n```" if fields else ""


def _docstring(node: Any) -> str:
    """A docstring as Markdown: arguments, attributes and errors as lists."""
    lines = inspect.cleandoc(ast.get_docstring(node) or "").split("\n")
    written: list[str] = []
    section = None
    for line in lines:
        if match := _SECTION.match(line):
            section = match[1]
            written += [f"**{section}**", ""]
        elif section is None or not line.strip():
            written.append(line if line.startswith("    ") else _escape(line))
        elif match := _ITEM.match(line.removeprefix("    ")) if section != "Returns" else None:
            names = ", ".join(f"`{name}`" for name in match[1].split(", "))
            written.append(f"- {names}: {_escape(match[2])}")
        else:
            indent = "  " if section != "Returns" else ""
            written.append(indent + _escape(line.strip()))
    return "\n".join(written)


def _escape(text: str) -> str:
    """What Markdown would take for markup, but for code in backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([*<|])", r"\\\1", piece) for piece in pieces)


def render_recipes() -> str:
    """The whole of docs/RECIPES.md: the keys of every section, with type, default and meaning."""
    parts = [
        "# Keys of a recipe",
        _GENERATED.format(where="`training/sections.py`"),
        "A recipe is a file of `training/configs/`; each script reads the sections it needs, and a flag of the same\n"
        "name (`--max_steps 100`) goes before the file. What the keys do together is in\n"
        "[training/README.md](../training/README.md).",
    ]
    sections: dict[type, list[str]] = {}
    for name, arguments in SECTIONS.items():
        sections.setdefault(arguments, []).append(name)
    for arguments, names in sections.items():
        rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        types = get_type_hints(arguments)  # parsing a command line takes the None out of the fields' own
        for field in dataclasses.fields(arguments):
            kind = _type_name(types[field.name])
            help_text = _escape(field.metadata["help"].replace("%%", "%"))
            cell = kind.replace("|", "or").replace("None", "null")
            rows.append(f"| `{field.name}` | {cell} | `{_default(field)}` | {help_text} |")
            # What stands before the colon says which sections these are, as the heading does.
        text = inspect.cleandoc(arguments.__doc__ or "").split(": ", 1)[-1]
        parts += [f"## {', '.join(names)}", _escape(text[0].upper() + text[1:]), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


def _default(field: Any) -> str:
    """As it would stand in the file."""
    value = field.default_factory() if field.default is dataclasses.MISSING else field.default
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
