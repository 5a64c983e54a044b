"""The corpus of the English-German model: the download of manythings.org, split as the published results have it.

`tatoeba_split.json` names the pairs of the validation and the test text, in their order, by the first five bytes of a
hash of each. All other pairs are training text, but for those that share a sentence with one of these.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lvnar_hf.files.text import read_lines

SPLIT_FILE = Path(__file__).with_name("tatoeba_split.json")
Pair = tuple[str, str]


@dataclass
class Split:
    """The pairs of each text, and what the download has not or has in vain."""

    train: list[Pair] = field(default_factory=list)
    valid: list[Pair] = field(default_factory=list)
    test: list[Pair] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    num_overlapping: int = 0


def pair_key(pair: Pair) -> str:
    """Ten hex digits that stand for a pair."""
    return hashlib.sha256("\t".join(pair).encode()).hexdigest()[:10]


def read_split(file: Path = SPLIT_FILE) -> dict[str, list[str]]:
    """The keys of the pairs of `valid` and `test`, in order."""
    content = json.loads(file.read_text("utf-8"))
    return {name: " ".join(content[name]).split() for name in ("valid", "test")}


def read_download(file: str | Path) -> Iterator[Pair]:
    """The pairs of a file with a line for each: English, a tab, German and, in newer ones, a tab and whose they are.

    Raises:
        ValueError: for a line of another form; names it.
    """
    for number, line in enumerate(read_lines(file), start=1):
        english, *others = line.split("\t")
        if len(others) not in (1, 2) or not english or not others[0]:
            raise ValueError(f"{file}, line {number}: no English, tab, German, and at most one more part: {line!r}.")
        yield english, others[0]


def split_pairs(pairs: Iterator[Pair], keys: dict[str, list[str]]) -> Split:
    """Pairs in the order of the download, but for validation and test text, which have that of the keys."""
    distinct = dict.fromkeys(pairs)
    by_key = {pair_key(pair): pair for pair in distinct}
    split = Split()
    for name, wanted in keys.items():
        getattr(split, name).extend(by_key[key] for key in wanted if key in by_key)
        split.missing[name] = len(wanted) - len(getattr(split, name))
    held_out = [*split.valid, *split.test]
    taken, sources, targets = set(held_out), {source for source, _ in held_out}, {target for _, target in held_out}
    for pair in distinct:
        if pair in taken:
            continue
        if pair[0] in sources or pair[1] in targets:
            split.num_overlapping += 1
        else:
            split.train.append(pair)
    return split
