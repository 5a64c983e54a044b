"""Measure what `generate` with `max_ms` takes and gives, sentence by sentence on the CPU; writes a JSON.

    python tests/support/measure_budget.py --model model_cards/lvnar-tatoeba-en-de --output_file runs/time_budget.json

Asked for are one refinement step and a beam of 20, of which each call takes what its time allows. The costs are
measured before the first sentence, as a user would who loads a model.
"""

import argparse
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
ASKED = {"num_refinement_steps": 1, "beam_size": 20}
SOURCE_LENGTHS = (2, 4, 8, 16, 32)  # to which the costs are rounded


def measure(model: Any, tokenizer: Any, sources: list[str], references: list[str], max_ms: float) -> dict[str, Any]:
    """Times of calls of one sentence each, what they did, and BLEU."""
    from training.translation_quality.bleu import corpus_scores

    texts, milliseconds, done = [], [], Counter()
    for source in sources:
        batch = tokenizer(source, return_tensors="pt")
        output = model.generate(**batch, tokenizer=tokenizer, max_ms=max_ms, return_dict_in_generate=True, **ASKED)
        plan = output.time_plan
        milliseconds.append(plan["taken_ms"])
        done[f"{plan['num_refinement_steps']} steps, beam {plan['beam_size']}"] += 1
        texts += tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    return {
        "max_ms": max_ms,
        "taken_ms": {"p50": statistics.median(milliseconds), "p95": statistics.quantiles(milliseconds, n=20)[-1]},
        "done": dict(sorted(done.items())),
        "bleu": corpus_scores(texts, references)["bleu"],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--output_file", required=True, help="JSON; one that is there is replaced")
    parser.add_argument("--max_ms", type=float, nargs="+", default=[10, 20, 30, 40, 60], help="budgets")
    parser.add_argument("--num_sentences", type=int, default=1000, help="of the test set of Tatoeba, the first")
    arguments = parser.parse_args()

    from measured import read_sample, write_measured

    from lvnar_hf.loading import load_model, load_tokenizer

    model, tokenizer = load_model(arguments.model, dtype=torch.float32).eval(), load_tokenizer(arguments.model)
    sources, references = (read_sample(language, arguments.num_sentences) for language in ("en", "de"))
    seconds = model.measure_costs(SOURCE_LENGTHS, tokenizer=tokenizer, **ASKED)
    budgets = [measure(model, tokenizer, sources, references, max_ms) for max_ms in arguments.max_ms]
    result = {"asked": ASKED, "num_sentences": len(sources), "seconds_to_measure_costs": seconds, "budgets": budgets}
    write_measured(arguments.output_file, result)


if __name__ == "__main__":
    main()
