"""Keeps personal data inside the server: what model.yaml marks as personal leaves it hashed or not at all.

One place decides for every way out: samples and outcomes in Redis, the cache, metrics, and the chunks of
jobs. The client's own answer is no way out.

A hash without a key is no protection: names and telephone numbers can be tried one by one. So fields marked
`hash` are keyed (HMAC-SHA256), and a server without the key does not start where rows would leave it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import orjson

from serving.errors import StartupError
from serving.spec import Column, ModelFile

_DIGITS = 32
"""Hexadecimal digits kept of a hash: 128 bits."""


class Personal:
    """Removes or hashes the personal columns of one model."""

    def __init__(self, model: ModelFile, key: bytes | None) -> None:
        """StartupError when columns are to be hashed and there is no key."""
        self._key = key
        self._inputs = _marked(model.signature.inputs)
        self._outputs = _marked(model.signature.outputs)
        hashed = [name for name, how in {**self._inputs, **self._outputs}.items() if how == "hash"]
        if hashed and key is None:
            raise StartupError(
                f"personal: hash of {', '.join(hashed)} needs a key; set SERVING_PERSONAL_KEY (16 characters "
                "or more, the same for all replicas), or mark the columns personal: drop"
            )
        self._judged = model.serving.monitor.output or model.signature.outputs[0].name
        self.cacheable = not self._outputs
        """Whether answers may stand in Redis as they are."""
        self.jobs = not (self._inputs or self._outputs) or model.serving.jobs.personal == "keep"
        """Whether rows may stand in the store of jobs as they are."""

    def features(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._shielded(row, self._inputs)

    def prediction(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._shielded(row, self._outputs)

    def outcome(self, value: Any) -> Any:
        """What turned out to be true for a row: by name, or of the output that is monitored, by default the
        first one. None: it is not to be kept."""
        if not self._outputs or value is None:
            return value
        if isinstance(value, dict):
            return self._shielded(value, self._outputs) or None
        return self._shielded({self._judged: value}, self._outputs).get(self._judged)

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
