"""Write all that no hand writes in the documents: cards, tables, API.md, RECIPES.md, and the README's two pictures.

    python training/report.py

Cards and tables come from the results in JSON beside each card; those of docs/SCALE.md from
`training/speed/scale.json`.

A table stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; `<!-- MODEL/NAME: begin -->` is that of another
model than the one that ships. No number in a table or card is typed by hand.
"""

import re
from pathlib import Path

import training.command  # noqa: F401  (ends the script with one line where that is enough)
from training.reports.cards import render_card
from training.reports.picture import draw_refinement
from training.reports.reference import render_api, render_recipes
from training.reports.results import read_result
from training.reports.scale import SCALE_TABLES
from training.reports.speed_plots import draw_quality, render_svg
from training.reports.tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
SHIPPED = "lvnar-tatoeba-en-de"
DOCS = ROOT / "docs"
DOCUMENTS = (
    ROOT / "README.md",
    DOCS / "EXPERIMENTS.md",
    DOCS / "SCALE.md",
    DOCS / "USAGE.md",
    ROOT / "training" / "README.md",
)
# What the README shows: several steps change it, and the last of them finds the words.
PICTURED_SENTENCE = "I bought a new lamp yesterday."


def render(document: str) -> str:
    """The document with each marked table written anew.

    Raises:
        ValueError: for a marker of a table that is not known.
    """

    def replace(match: re.Match) -> str:
        model, _, name = match["name"].rpartition("/")
        if name in SCALE_TABLES:
            made = SCALE_TABLES[name]()
        elif name in TABLES:
            made = TABLES[name](CARDS / (model or SHIPPED) / "results")
        else:
            raise ValueError(f"There is no table {name}; known are {', '.join((*TABLES, *SCALE_TABLES))}.")
        return f"<!-- {match['name']}: begin -->\n{made}\n<!-- {match['name']}: end -->"

    return re.sub(r"<!-- (?P<name>[\w/-]+): begin -->.*?<!-- (?P=name): end -->", replace, document, flags=re.DOTALL)


def rendered_files() -> dict[Path, str]:
    """What every document, card and picture is to hold, by path."""
    files = {path: render(path.read_text("utf-8")) for path in DOCUMENTS}
    cards = {path.parent / "README.md": render_card(path.parent) for path in sorted(CARDS.glob("*/card.yaml"))}
    benchmark = read_result(CARDS / SHIPPED / "results", "benchmark")
    generated = {
        DOCS / "API.md": render_api(),
        DOCS / "RECIPES.md": render_recipes(),
        DOCS / "refinement.svg": draw_refinement(CARDS / SHIPPED, PICTURED_SENTENCE),
        DOCS / "speed.svg": render_svg(draw_quality(benchmark["modes"]["trained"])),
    }
    return files | cards | generated


def main() -> None:
    """Write every document and card in place."""
    for path, text in rendered_files().items():
        path.write_text(text, "utf-8")
        print(f"rendered {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
