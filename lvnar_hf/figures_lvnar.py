"""Figures in a text: amounts, times, dates, versions; which of them a translation must say.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import re
import unicodedata
from collections import Counter

# A figure by itself: 42, 1,234.56, 10:30, 12/24/2023, 192.168.0.1; and an English afternoon after it.
_FIGURE = re.compile(r"(?<![\w.])\d+(?:[.,:/-]\d+)*(?!\w)")
# What is kept with it: the sign of a currency, and the half of the day, which a translation would lose without a word.
AMOUNT = re.compile(rf"[$€£¥₩₹₽]?{_FIGURE.pattern}(?:[$€£¥₩₹₽%°]|\s*(?i:[ap]\.?m\b)(?:\.(?=\s*[^\W_]))?)?")
_AFTERNOON = re.compile(r"\s*p\.?m\b", re.IGNORECASE)


def figures_of(text: str) -> Counter[str]:
    """How often each figure of two digits or more stands in a text: its parts, without zeros before the first.

    So 1,234.5 and 1.234,5 are the same, and so are the times of an afternoon in twelve and in twenty-four hours.
    """
    figures: Counter[str] = Counter()
    for match in _FIGURE.finditer(text):
        figure = re.sub("[.,](?=[0-9]{3}(?![0-9]))", "", unicodedata.normalize("NFKC", match[0]))  # thousands
        first, *others = re.split("[.,:/-]", figure)
        hours = 12 if _AFTERNOON.match(text, match.end()) and len(first) < 3 and int(first) < 12 else 0
        parts = [str(int(first) + hours) if len(first) < 3 else first.lstrip("0"), *others]
        if sum(map(str.isdigit, figure)) > 1:
            figures[":".join(parts)] += 1
    return figures
