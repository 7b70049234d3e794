"""What the server may answer instead of a prediction, as one tree.

    Problem                    becomes `application/problem+json` (RFC 9457), never a traceback
    ├── BadRequest        400  the bytes are not what the protocol says (JSON, HTTP, binary tensors)
    ├── Unauthorized      401  no key, or not one of ours
    ├── NotFound          404  no such route, model or version here
    ├── WrongMethod       405
    ├── SlowBody          408  the body did not arrive in time
    ├── ClientDeadline    408  the deadline that the client chose passed, or could not be met
    ├── TooLarge          413  more bytes than this model takes
    ├── Unsupported       415  a media type or an encoding that is not spoken here
    ├── Invalid           422  well-formed, but not what the signature says; names the field
    ├── RateLimited       429  this client sends too much
    ├── ClientGone        499  nobody waits for the answer any more; it is only counted
    ├── ModelFault        500  the model raised, or answered what its signature forbids
    │   └── InvalidOutput      the latter; WrongForm where no input can make it right
    ├── Unavailable       503  starting, draining or full; Retry-After
    │   └── Hopeless           the work that waits takes longer than the deadline
    └── Expired           504  the server's own deadline passed

Only the client's own mistakes are 4xx and every fault of the server is 5xx: the promotion gates count them.

    StartupError               ends the process before it is ready; one line that says what to do next
    ├── BundleCorrupt          a file is missing or its sha256 is not the manifest's
    └── SpecProblem            model.yaml breaks a rule
"""

from __future__ import annotations

from typing import ClassVar, Self

import orjson


class Problem(Exception):
    """An answer that is not a prediction.

    `detail` is for the reader; `pointer` is the JSON pointer (`#/instances/0/age`) of the bad field;
    `reason` is the label of `modelserve_rejected_total`, so it is one of a few fixed words;
    `retry_after` is in whole seconds.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    reason: str = "internal"

    def __init__(
        self,
        detail: str,
        *,
        pointer: str | None = None,
        reason: str | None = None,
        retry_after: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.retry_after = retry_after
        self.headers = headers
        if reason is not None:
            self.reason = reason

    def without_traceback(self) -> Self:
        """For keeping it: a traceback holds the frames, and they hold the request with its body."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def body(self, request_id: str) -> bytes:
        content: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.pointer is not None:
            content["errors"] = [{"pointer": self.pointer, "detail": self.detail}]
        # A detail may quote what the client sent; lone surrogates cannot be encoded and must not fault here.
        try:
            return orjson.dumps(content)
        except TypeError:
            content["detail"] = self.detail.encode("utf-8", "replace").decode()
            content.pop("errors", None)
            return orjson.dumps(content)


class BadRequest(Problem):
    status, title, reason = 400, "Malformed request", "malformed"


class Unauthorized(Problem):
    status, title, reason = 401, "Authentication required", "unauthorized"


class NotFound(Problem):
    status, title, reason = 404, "Not found", "not_found"


class WrongMethod(Problem):
    status, title, reason = 405, "Method not allowed", "method"


class SlowBody(Problem):
    status, title, reason = 408, "Request body too slow", "slow_body"


class ClientDeadline(Problem):
    """Whoever chose less time than the server's own limit has given up, politely: no fault of the server."""

    status, title, reason = 408, "Your deadline passed", "client_deadline"


class Conflict(Problem):
    status, title, reason = 409, "Not in the state for that", "conflict"


class TooLarge(Problem):
    status, title, reason = 413, "Request body too large", "too_large"


class Unsupported(Problem):
    status, title, reason = 415, "Unsupported media type", "media_type"


class Invalid(Problem):
    status, title, reason = 422, "Input does not match the signature", "invalid"


class RateLimited(Problem):
    status, title, reason = 429, "Too many requests", "rate_limit"


class ClientGone(Problem):
    status, title, reason = 499, "Client closed the connection", "client_gone"


class ModelFault(Problem):
    status, title, reason = 500, "The model failed", "model"


class InvalidOutput(ModelFault):
    """The model answered, but not what its signature says."""

    title, reason = "The model's answer breaks its signature", "invalid_output"


class WrongForm(InvalidOutput):
    """Axes, types or names that no input can make right. Found at start, it keeps the server from ready."""


class Unavailable(Problem):
    status, title, reason = 503, "Not available now", "full"


class Hopeless(Unavailable):
    reason = "hopeless"


class Expired(Problem):
    status, title, reason = 504, "Deadline passed", "expired"


class StartupError(Exception):
    """The server cannot start; the message is one line and says what to do next."""


class PackageNeeded(StartupError):
    """`requirement` (`NAME==VERSION`) is what the model's packages lack."""

    def __init__(self, message: str, requirement: str) -> None:
        super().__init__(message)
        self.requirement = requirement


class BundleCorrupt(StartupError): ...


class SpecProblem(StartupError):
    """`problems` holds one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
