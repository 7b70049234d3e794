"""Cross-origin requests (CORS): which pages of other sites may read the answers."""

from __future__ import annotations

from serving.exchange import Answer

Headers = tuple[tuple[bytes, bytes], ...]
_ANY = b"*"
_EXPOSED = b"x-request-id, x-model-version, x-cache, retry-after, inference-header-content-length"
_METHODS = b"GET, HEAD, POST, DELETE"
_SECONDS = b"600"
_VARY = (b"vary", b"origin")


class Origins:
    """The origins that `SERVING_CORS_ORIGINS` names; `*` is every one. Cookies are never used, so none is
    allowed to come along."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = frozenset(origin.rstrip("/").encode() for origin in allowed)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def headers(self, request: dict[bytes, bytes]) -> Headers:
        """What the answer to a request must carry so that its page may read it."""
        origin = request.get(b"origin")
        if origin is None or (_ANY not in self._allowed and origin not in self._allowed):
            return (_VARY,)
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            _VARY,
        )

    def preflight(self, method: str, request: dict[bytes, bytes]) -> Answer | None:
        """The answer to a browser that asks before it sends; None for any other request. It brings no key."""
        if method != "OPTIONS" or not {b"origin", b"access-control-request-method"} <= request.keys():
            return None
        headers: Headers = (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-max-age", _SECONDS),
        )
        asked = request.get(b"access-control-request-headers")
        if asked is not None:
            headers = (*headers, (b"access-control-allow-headers", asked))
        return Answer(200, b"", b"text/plain; charset=utf-8", headers)
