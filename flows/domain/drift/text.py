"""Reads free text and unique ids as numbers, since of values that never come twice there is nothing to count.

Length, words, the shares of letters, of digits and of what is not ASCII show another format, language or source.
Which words are used shows in the mean of a few fixed hashes of them: no word is kept.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from flows.domain.drift.binning import Floats, spelling

TextPart = Literal["length", "words", "letters", "digits", "foreign", "hash1", "hash2", "hash3"]
PARTS: tuple[TextPart, ...] = get_args(TextPart)
MOST_CHARACTERS = 4000
"""Of a longer text only its length is looked at beyond these."""
WORD = re.compile(r"\w+")
HASH_BITS = 10
HASHES = 3


def read_text(column: pd.Series[Any]) -> dict[TextPart, Floats]:
    """Each part of each value, shape (rows,); NaN for null."""
    table = np.full((len(column), len(PARTS)), np.nan)
    seen: dict[str, tuple[float, ...]] = {}
    for row, value in enumerate(column):
        if value is None or (not isinstance(value, list | dict | np.ndarray) and pd.isna(value)):
            continue
        table[row] = _read(_joined(value), seen)
    return {part: table[:, place] for place, part in enumerate(PARTS)}


def _joined(value: Any) -> str:
    """A tensor of texts as one text."""
    if isinstance(value, list | np.ndarray):
        return " ".join(_joined(part) for part in value)
    return spelling(value)


def _read(text: str, seen: dict[str, tuple[float, ...]]) -> Floats:
    shown = text[:MOST_CHARACTERS]
    words = WORD.findall(shown.lower())
    size = max(len(shown), 1)
    letters = sum(map(str.isalpha, shown))
    digits = sum(map(str.isdigit, shown))
    foreign = 0 if shown.isascii() else sum(character > "\x7f" for character in shown)
    if len(seen) > 100_000:  # of ids every one is new
        seen.clear()
    hashes = np.mean(
        [seen.get(word) or seen.setdefault(word, _hashes(word)) for word in words] or [(0.5,) * HASHES],
        axis=0,
    )
    return np.array([len(text), len(words), letters / size, digits / size, foreign / size, *hashes])


def _hashes(word: str) -> tuple[float, ...]:
    """Numbers from 0 to 1, the same in every process."""
    bits = zlib.crc32(word.encode("utf-8", "surrogatepass"))
    return tuple(
        (bits >> place * HASH_BITS & (1 << HASH_BITS) - 1) / (1 << HASH_BITS) for place in range(HASHES)
    )
