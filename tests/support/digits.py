"""Digit strings to copy or to reverse: a task that a sound model learns to perfection in a minute.

    python tests/support/digits.py data/digits

"copy 3 1 4 1 5" becomes "3 1 4 1 5", "reverse 3 1 4 1 5" becomes "5 1 4 1 3".
"""

import random
import sys
from pathlib import Path

MIN_DIGITS, MAX_DIGITS = 3, 8


def make_digit_pairs(num_pairs: int, seed: int, max_digits: int = MAX_DIGITS) -> list[tuple[str, str]]:
    """Different (source, target) pairs, the same for the same seed; half of them, by chance, are to be reversed."""
    generator = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < num_pairs:
        digits = [str(generator.randrange(10)) for _ in range(generator.randint(MIN_DIGITS, max_digits))]
        task = generator.choice(["copy", "reverse"])
        pairs[" ".join([task, *digits])] = " ".join(digits if task == "copy" else reversed(digits))
    return list(pairs.items())


def write_digits(
    folder: Path, num_train: int = 20_000, num_valid: int = 500, seed: int = 1, max_digits: int = MAX_DIGITS
) -> None:
    """Write {train,valid}.{source,target}; no validation source is in the training text."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = make_digit_pairs(num_train + num_valid, seed, max_digits)
    for name, part in (("train", pairs[:num_train]), ("valid", pairs[num_train:])):
        for side, texts in zip(("source", "target"), zip(*part, strict=True), strict=True):
            (folder / f"{name}.{side}").write_text("".join(text + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
