"""Reads free text and unique ids as numbers: of values that never come twice there is nothing to count.

Length, words, the shares of letters, of digits and of what is not ASCII show another format, language or
source. Which words are used shows in the mean of a few fixed hashes of them: no word is kept.
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
MOST_WORDS = 100_000
HASH_BITS = 10
HASH_SIZE = 1 << HASH_BITS
HASHES = 3


def read_text(column: pd.Series[Any]) -> dict[TextPart, Floats]:
    """Each part of each value, shape (rows,); NaN for null."""
    known: dict[str, tuple[float, ...]] = {}
    nothing = (np.nan,) * len(PARTS)
    missing = column.isna().to_numpy()
    rows = [
        nothing if null else _read(_joined(value), known) for value, null in zip(column, missing, strict=True)
    ]
    table = np.array(rows, dtype=np.float64).reshape(len(column), len(PARTS))
    return {part: table[:, place] for place, part in enumerate(PARTS)}


def _joined(value: Any) -> str:
    """A tensor of texts as one text."""
    if isinstance(value, list | np.ndarray):
        return " ".join(_joined(part) for part in value)
    return spelling(value)


def _read(text: str, known: dict[str, tuple[float, ...]]) -> tuple[float, ...]:
    shown = text[:MOST_CHARACTERS]
    size = max(len(shown), 1)
    letters = sum(map(str.isalpha, shown))
    digits = sum(map(str.isdigit, shown))
    foreign = 0 if shown.isascii() else sum(character > "\x7f" for character in shown)
    words = WORD.findall(shown.lower())
    if len(known) > MOST_WORDS:  # of ids every one is new
        known.clear()
    hashed = [known.get(word) or known.setdefault(word, _hashes(word)) for word in words]
    means = [sum(column) / len(words) for column in zip(*hashed, strict=True)] or [0.5] * HASHES
    return (len(text), len(words), letters / size, digits / size, foreign / size, *means)


def _hashes(word: str) -> tuple[float, ...]:
    """Numbers from 0 to 1, the same in every process."""
    bits = zlib.crc32(word.encode("utf-8", "surrogatepass"))
    return tuple((bits >> place * HASH_BITS) % HASH_SIZE / HASH_SIZE for place in range(HASHES))
