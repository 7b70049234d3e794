"""What the clients of object stores raise, in the project's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flows.domain.errors import DependencyDown, ModelServeError

LIBRARIES = ("aiobotocore", "aiohttp", "botocore")


@contextmanager
def reached(what: str, uri: str) -> Iterator[None]:
    """Raises DependencyDown with the client's reason when `uri`, the `what`, cannot be used."""
    try:
        yield
    except ModelServeError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in LIBRARIES:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DependencyDown(
            f"{what}: {uri} cannot be used ({reason}); check that it runs, the bucket and the access"
        ) from error
