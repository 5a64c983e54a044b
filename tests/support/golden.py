"""Golden tokens of the model that ships, for tests/model/test_loading.py: the ids that it gave when they were recorded.

After the model has been trained anew: python tests/support/golden.py
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model_cards" / "lvnar-tatoeba-en-de"
GOLDEN = ROOT / "tests" / "fixtures" / "golden_lvnar-tatoeba-en-de.json"
TEXTS = [
    "Where is the station?",
    "She has lived in Berlin for three years.",
    "I don't know what Tom wants.",
    "We'll be there at 7:30, won't we?",
]
STEPS = [0, 1, 3]


def generate_ids(model: Any, tokenizer: Any, texts: list[str], steps: list[int]) -> list[list[list[int]]]:
    """Token ids without padding, [steps][text]; the texts in one batch."""
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    pad = model.config.pad_token_id
    options = {**encoded, "tokenizer": tokenizer}
    sequences = [model.generate(**options, num_refinement_steps=number).tolist() for number in steps]
    return [[[token for token in row if token != pad] for row in batch] for batch in sequences]


def main() -> None:
    """Record."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    import lvnar_hf  # noqa: F401  (registers the model)
    from lvnar_hf.files.atomic import hash_file

    model = AutoModelForSeq2SeqLM.from_pretrained(MODEL).eval()
    ids = generate_ids(model, AutoTokenizer.from_pretrained(MODEL), TEXTS, STEPS)
    golden = {"weights": hash_file(MODEL / "model.safetensors"), "texts": TEXTS, "steps": STEPS, "ids": ids}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
