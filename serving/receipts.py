"""What an answer shows that it was given here: the value of its header X-Feedback-Id.

`/feedback` is open to whoever may ask the model. Without a proof, anybody could report outcomes for answers
of others, or for none, and decide what the drift analysis and the judge believe. So each answer that is
sampled carries an id that nobody can make up: which request it was, how many rows were answered, when, and a
MAC over all of it and over the client's name where clients have keys. Nothing is remembered for it.

It is no X-Request-Id: that one is for logs and traces, clients choose it, and gateways put their own in its
place.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from dataclasses import dataclass

HEADER = b"x-feedback-id"
_ID = re.compile(r"([0-9a-f]{24,40})-([0-9a-f]{1,8})-([0-9a-f]{8})-([0-9a-f]{32})")
_MAC_BYTES = 16
_SKEW_SECONDS = 300
"""By so much may the clocks of replicas differ."""


@dataclass(frozen=True)
class Receipt:
    """What a genuine id says."""

    request: str
    """The same as `request_id` of the samples of this answer."""
    rows: int


class Receipts:
    """Of one model; all its replicas and releases that share the secret know each other's."""

    def __init__(self, secret: bytes, model: str, seconds: float) -> None:
        """`seconds`: how long outcomes may be told after the answer."""
        key = hmac.digest(secret, f"feedback\0{model}".encode(), "sha256")
        self._mac = hashlib.blake2b(digest_size=_MAC_BYTES, key=key)
        self._seconds = seconds
        self._prefix = os.urandom(8).hex()
        self._count = 0

    def issue(self, client: str, rows: int) -> str:
        """An id for an answer of so many rows to this client ("" where clients have no names)."""
        self._count += 1
        # Each answer gets one: this form takes two thirds of the time of the others.
        plain = "%s%08x-%x-%08x" % (self._prefix, self._count, rows, int(time.time()))  # noqa: UP031
        mac = self._mac.copy()
        mac.update((plain + "\0" + client).encode())
        return plain + "-" + mac.hexdigest()

    def read(self, text: str, client: str) -> Receipt | None:
        """What it says, or None when it was not issued to this client, or too long ago."""
        parts = _ID.fullmatch(text)
        if parts is None:
            return None
        request, rows, issued, mac = parts.groups()
        genuine = hmac.compare_digest(mac, self._signed(text.rpartition("-")[0], client))
        age = time.time() - int(issued, 16)
        if not genuine or not -_SKEW_SECONDS <= age <= self._seconds:
            return None
        return Receipt(request, int(rows, 16))

    def _signed(self, plain: str, client: str) -> str:
        mac = self._mac.copy()
        mac.update(f"{plain}\0{client}".encode())
        return mac.hexdigest()


def request_of(receipt: str) -> str:
    """The part by which samples and outcomes are joined. Whoever reads it cannot make an id of it."""
    return receipt.partition("-")[0]
