"""Keeps personal data inside the server: what model.yaml marks as personal leaves it hashed or not at all.

A hash without a key is no protection: names and telephone numbers can be tried one by one. So fields marked
`hash` are keyed (HMAC-SHA256), and without a key they are dropped.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

import orjson

from serving.spec import Column, Signature

logger = logging.getLogger("serving.watching.personal")

_DIGITS = 32
"""Hexadecimal digits kept of a hash: 128 bits."""


class Personal:
    """Removes or hashes the personal columns of sampled rows."""

    def __init__(self, signature: Signature, key: bytes | None) -> None:
        self._key = key
        self._inputs = _marked(signature.inputs)
        self._outputs = _marked(signature.outputs)
        hashed = [name for name, how in {**self._inputs, **self._outputs}.items() if how == "hash"]
        if hashed and key is None:
            fields = {"columns": hashed}
            logger.warning("no SERVING_PERSONAL_KEY: personal columns are dropped, not hashed", extra=fields)

    def features(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._shielded(row, self._inputs)

    def prediction(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._shielded(row, self._outputs)

    def _shielded(self, row: dict[str, Any], marked: dict[str, str]) -> dict[str, Any]:
        if not marked:
            return row
        kept = {name: value for name, value in row.items() if name not in marked}
        if self._key is not None:
            for name, how in marked.items():
                if how == "hash" and row.get(name) is not None:
                    kept[name] = self._hashed(name, row[name])
        return kept

    def _hashed(self, name: str, value: Any) -> str:
        """Equal values of one column get equal hashes; those of two columns cannot be joined."""
        assert self._key is not None
        plain = orjson.dumps([name, value], option=orjson.OPT_SERIALIZE_NUMPY, default=str)
        return hmac.new(self._key, plain, hashlib.sha256).hexdigest()[:_DIGITS]


def _marked(columns: tuple[Column, ...]) -> dict[str, str]:
    return {column.name: column.personal for column in columns if column.personal is not None}
