"""A recipe: one YAML file that describes an experiment, section by section, in the order of its stages.

Each entry script reads the sections it needs; a flag on the command line goes before the file.
"""

import sys
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers.hf_argparser import HfArgumentParser

from training.sections import (
    AugmentationArguments,
    DataArguments,
    DistillationArguments,
    ModelArguments,
    OptimizationArguments,
    TeacherArguments,
    TokenizerArguments,
)

# Every section that a recipe may have; a script reads some, and a file is checked against all.
SECTIONS: dict[str, type] = {
    "data": DataArguments,
    "augmentation": AugmentationArguments,
    "tokenizer": TokenizerArguments,
    "teacher": TeacherArguments,
    "teacher_training": OptimizationArguments,
    "distillation": DistillationArguments,
    "model": ModelArguments,
    "training": OptimizationArguments,
    "finetuning": OptimizationArguments,
}


def parse_recipe(sections: dict[str, type], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Read `--config recipe.yaml` and flags into one dataclass instance a section.

    Args:
        sections: section name to dataclass, in the order of the result; other sections of the file are checked alone.
        argv: command line; by default that of the process.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: for a recipe that is not YAML or no mapping of sections, a section or key that is unknown, or a
            value of another type than its key's.
    """
    parser = HfArgumentParser(list(sections.values()), allow_abbrev=False)
    parser.add_argument("--config", help="recipe (YAML) with the sections " + ", ".join(sections))
    argv = sys.argv[1:] if argv is None else argv
    given = parser.parse_args(argv)
    if given.config is not None:
        recipe = read_recipe(given.config, {**SECTIONS, **sections})
        for name in sections:
            parser.set_defaults(**recipe.get(name, {}))
    *results, _ = parser.parse_args_into_dataclasses(argv)
    return tuple(results)


def read_recipe(path: str | Path, sections: dict[str, type]) -> dict[str, dict[str, Any]]:
    """The sections of a recipe file, each key and type checked; a key that is not in the file is not in the result.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see `parse_recipe`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no recipe {path}; those that ship are in training/configs.")
    return check_sections(read_yaml(path), sections, str(path))


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text("utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def check_sections(recipe: Any, sections: dict[str, type], where: str) -> dict[str, dict[str, Any]]:
    """A mapping of sections to keys and values, each key and type checked.

    Args:
        where: begins the error messages.

    Raises:
        ValueError: see `parse_recipe`.
    """
    if not isinstance(recipe, dict) or not all(isinstance(section, dict) for section in recipe.values()):
        raise ValueError(f"{where} must hold sections of keys and values: {', '.join(sections)}.")
    if unknown := sorted(map(str, set(recipe) - set(sections))):
        raise ValueError(f"{where}: unknown sections {unknown}; known are {list(sections)}.")
    checked = {}
    for name, section in recipe.items():
        types = get_type_hints(sections[name])
        if unknown := sorted(map(str, set(section) - set(types))):
            raise ValueError(f"{where}, section {name}: unknown keys {unknown}; known are {sorted(types)}.")
        checked[name] = {
            key: _check_type(value, types[key], f"{where}, section {name}: {key}") for key, value in section.items()
        }
    return checked


def _check_type(value: Any, expected: Any, where: str) -> Any:
    """The value, if it is of the type that a field is annotated with; `where` begins the error message."""
    alternatives = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    for alternative in alternatives:
        if get_origin(alternative) is list:
            (item_type,) = get_args(alternative)
            if isinstance(value, list) and all(type(item) is item_type for item in value):
                return value
        elif alternative is float:
            # YAML 1.1 reads 7e-4, without a point, as text.
            if isinstance(value, (int, float, str)) and not isinstance(value, bool):
                with suppress(ValueError):
                    return float(value)
        elif isinstance(value, alternative) and (alternative is bool or not isinstance(value, bool)):
            return value
    names = {str: 'text (in quotes, if YAML takes it for something else, as it does "no" and 1)', int: "a whole number"}
    names |= {float: "a number", bool: "true or false", NoneType: "null", list[str]: "a list of texts, [a, b]"}
    names |= {list[int]: "a list of whole numbers, [1, 2]"}
    allowed = " or ".join(names.get(alternative, str(alternative)) for alternative in alternatives)
    raise ValueError(f"{where} is {value!r}; it must be {allowed}.")
