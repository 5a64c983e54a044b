"""What the commands that train are told beside a recipe."""

from argparse import ArgumentParser
from dataclasses import dataclass, field

from training.recipe import SECTIONS, read_recipe
from training.sections import TokenizerArguments


@dataclass
class DryRunArguments:
    """A flag, not part of a recipe."""

    dry_run: int | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": 50,
            "metavar": "STEPS",
            "help": "take so many steps (50) on synthetic batches, print what they cost as JSON, write nothing",
        },
    )

    def __post_init__(self) -> None:
        if self.dry_run is not None and self.dry_run < 1:
            raise ValueError(f"dry_run is {self.dry_run}; it must be at least 1 step.")


def vocabulary_sizes(argv: list[str] | None) -> tuple[int, int | None]:
    """Of the recipe's section `tokenizer`: ids of the source, and of the target where it has its own."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    config = parser.parse_known_args(argv)[0].config
    section = {} if config is None else read_recipe(config, SECTIONS).get("tokenizer", {})
    sizes = TokenizerArguments(**section)
    return sizes.vocab_size, None if sizes.joint else sizes.target_vocab_size or sizes.vocab_size
