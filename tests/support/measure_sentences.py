"""Translate the sentences that were written for it: the everyday ones, which somebody reads, and those with spans.

    python tests/support/measure_sentences.py --inadequate 3 17

writes `everyday.json` and `spans.json` into the results of the model that ships. It prints the everyday translations
with their numbers: those that were found inadequate by reading are named in a second call.
"""

import argparse
from pathlib import Path

from measured import SAMPLE
from transformers import pipeline

import lvnar_hf  # noqa: F401  (registers the pipeline)
from lvnar_hf.files.atomic import write_json
from lvnar_hf.files.text import read_lines
from training.translation_quality.spans import copied_spans, read_expectations

MODEL = Path(__file__).resolve().parents[2] / "model_cards" / "lvnar-tatoeba-en-de"
FIXTURES = SAMPLE.parent
STEPS = 1


def main() -> None:
    """Translate, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--results", default=str(MODEL / "results"))
    parser.add_argument("--inadequate", type=int, nargs="*", default=[], help="numbers of everyday sentences, from 1")
    arguments = parser.parse_args()
    translate = pipeline("translation", model=arguments.model, num_refinement_steps=STEPS)
    results = Path(arguments.results)

    def translations(folder: str, **options: bool) -> list[tuple[str, str]]:
        sources = list(read_lines(FIXTURES / folder / "en.txt"))
        outputs = translate(sources, batch_size=32, **options)
        return [(source, output["translation_text"]) for source, output in zip(sources, outputs, strict=True)]

    sentences = [
        {"source": source, "translation": translation, "is_adequate": number not in arguments.inadequate}
        for number, (source, translation) in enumerate(translations("everyday"), start=1)
    ]
    for number, sentence in enumerate(sentences, start=1):
        print(f"{number}. {sentence['source']}\n   {sentence['translation']}")
    write_json(results / "everyday.json", {"num_refinement_steps": STEPS, "sentences": sentences})

    expectations = read_expectations(list(read_lines(FIXTURES / "spans" / "expected.txt")))
    spans = {}
    for preserves in (False, True):
        hypotheses = [translation for _, translation in translations("spans", preserve_format=preserves)]
        spans[str(preserves)] = copied_spans(hypotheses, expectations)
    write_json(results / "spans.json", spans)
    print({key: part["share"] for key, part in spans.items()})


if __name__ == "__main__":
    main()
