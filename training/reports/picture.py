"""A picture of one sentence's refinement: the translation after each step, what the step changed marked, as an SVG.

    python -m training.reports.picture --model model_cards/lvnar-tatoeba-en-de --output_file refinement.svg \
        "I bought a new lamp yesterday."

Everything in it is the model's own output. The letters are of one width, so that the places of the words are known
without a font.
"""

import argparse
from pathlib import Path

import torch

import lvnar_hf  # noqa: F401  (registers model and tokenizer)
from lvnar_hf.loading import load_model, load_tokenizer
from lvnar_hf.steps import RefinementSteps, refinement_steps
from training.reports.examples import escape_html

FONT_SIZE, LINE_HEIGHT, MARGIN = 15, 30, 16
LETTER_WIDTH = 0.6 * FONT_SIZE  # of most fonts whose letters have one width; `textLength` makes it so
INK, PALE_INK, MARK, PAPER = "#1b1f24", "#6a737d", "#f5e08a", "#ffffff"
_STYLES = dict.fromkeys(["replaced", "inserted", "output"], ' font-weight="bold"')
_STYLES |= {"kept": "", "removed": ' text-decoration="line-through"'}


def draw_refinement(model: str | Path, sentence: str, max_steps: int = 8) -> str:
    """Translate a sentence and draw each step until it stops.

    Args:
        model: folder or Hub id of a model of this package.
        sentence: one source sentence.
        max_steps: refinement steps at most.

    Returns:
        An SVG that needs no other file.

    Raises:
        ValueError: there is no word in the sentence.
    """
    if not sentence.strip():
        raise ValueError("The sentence is empty; give one with words.")
    network = load_model(model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(model)
    inputs = tokenizer(sentence, return_tensors="pt")
    output = network.generate(
        **inputs, tokenizer=tokenizer, num_refinement_steps=max_steps, return_dict_in_generate=True
    )
    return render_svg(sentence, refinement_steps(output, tokenizer)[0])


def render_svg(sentence: str, refinement: RefinementSteps) -> str:
    """The picture of a sentence and its steps."""
    # Label, runs of words with what became of them, remark.
    rows: list[tuple[str, list[tuple[str, str]], str]] = [("source", [(sentence, "kept")], "")]
    for step in refinement["steps"]:
        label = f"step {step['step']}" if step["step"] else "one pass"
        is_last = step is refinement["steps"][-1] and refinement["has_converged"]
        words = [(run["after"] or run["before"], run["kind"]) for run in step["runs"]]
        rows.append((label, words, "nothing changes: it stops" if is_last else ""))
    is_shorter = refinement["output"] != refinement["steps"][-1]["text"]
    rows.append(("output", [(refinement["output"], "output")], "repeated words are taken out" if is_shorter else ""))
    indent = MARGIN + (max(len(label) for label, _, _ in rows) + 2) * LETTER_WIDTH
    drawn, right = [], indent
    for number, (label, words, remark) in enumerate(rows):
        baseline = MARGIN + LINE_HEIGHT * number + FONT_SIZE
        drawn.append(_text(MARGIN, baseline, label, PALE_INK))
        x = indent
        for word, kind in words:
            if kind in ("replaced", "inserted"):
                width = len(word) * LETTER_WIDTH
                drawn.append(
                    f'<rect x="{x - 3:.1f}" y="{baseline - FONT_SIZE}" width="{width + 6:.1f}" '
                    f'height="{LINE_HEIGHT - 8}" rx="3" fill="{MARK}"/>'
                )
            drawn.append(_text(x, baseline, word, PALE_INK if kind == "removed" else INK, _STYLES[kind]))
            x += (len(word) + 1) * LETTER_WIDTH
        if remark:
            drawn.append(_text(x + 2 * LETTER_WIDTH, baseline, remark, PALE_INK))
            x += (len(remark) + 2) * LETTER_WIDTH
        right = max(right, x)
    width, height = right + MARGIN, 2 * MARGIN + LINE_HEIGHT * len(rows) - LINE_HEIGHT / 3
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" font-size="{FONT_SIZE}" '
        "font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\">",
        f"<title>{escape_html(sentence)}: refinement, step by step</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>',
        *drawn,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, text: str, fill: str, style: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{fill}"{style} xml:space="preserve" '
        f'textLength="{len(text) * LETTER_WIDTH:.1f}">{escape_html(text)}</text>'
    )


def main(argv: list[str] | None = None) -> None:
    """Draw one sentence into a file."""
    parser = argparse.ArgumentParser(description="Draw how a sentence's translation changes step by step.")
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--output_file", required=True, help="the SVG; one that is there is replaced")
    parser.add_argument("--max_steps", type=int, default=8, help="refinement steps at most (default: %(default)s)")
    parser.add_argument("sentence")
    arguments = parser.parse_args(argv)
    picture = draw_refinement(arguments.model, arguments.sentence, arguments.max_steps)
    Path(arguments.output_file).write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
