"""`make demo`: translate English into German with the model that ships, with and without refinement."""

import io
import sys
import time
from pathlib import Path

import torch
from sacrebleu.metrics import BLEU
from transformers import pipeline
from transformers.utils import logging

import lvnar_hf  # noqa: F401  (brings `pipeline("translation")` back)

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
SAMPLE = ROOT / "tests" / "fixtures" / "tatoeba_en-de"
NUM_SENTENCES = 300  # of 1,000: seconds
SENTENCES = [
    "Where is the station?",
    "I would like a cup of coffee.",
    "Tom doesn't want to go to school today.",
    "She has lived in Berlin for three years.",
    "Could you please help me with my luggage?",
    "We were surprised at the news.",
    "How much does this book cost?",
]


def main() -> None:
    """Translate some everyday sentences, and the sample, whose BLEU is then printed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know umlauts
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    translator = pipeline("translation", model=str(MODEL), device="cpu")
    translator("Warm up.")
    size = f"{translator.model.num_parameters() / 1e6:.1f} M parameters, {translator.model.dtype}"
    print(f"{MODEL.name}: {size}, CPU, {torch.get_num_threads()} threads.")
    print("Time: one sentence at a time, tokenizer included.\n")
    for sentence in SENTENCES:
        print(sentence)
        for num_steps in (0, 1):
            start = time.perf_counter()
            (result,) = translator(sentence, num_refinement_steps=num_steps)
            milliseconds = (time.perf_counter() - start) * 1000
            steps = "1 step " if num_steps == 1 else "0 steps"
            print(f"  {steps} {milliseconds:6.1f} ms  {result['translation_text']}")
    sources, references = (
        (SAMPLE / f"test.{language}").read_text(encoding="utf-8").split("\n")[:NUM_SENTENCES]
        for language in ("en", "de")
    )
    print(f"\n{len(sources)} sentences of the Tatoeba test set (CC BY 2.0 FR, tatoeba.org), batches of 32:")
    for num_steps in (0, 1):
        start = time.perf_counter()
        results = translator(sources, batch_size=32, num_refinement_steps=num_steps, preserve_format=False)
        seconds = time.perf_counter() - start
        metric = BLEU()
        score = metric.corpus_score([r["translation_text"] for r in results], [references])
        print(
            f"  {num_steps} refinement steps: BLEU {score.score:.2f} ({metric.get_signature()}), "
            f"{len(sources) / seconds:.0f} sentences/s"
        )


if __name__ == "__main__":
    main()
