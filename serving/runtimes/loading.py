"""Whatever goes wrong while a model is read, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import StartupError


@contextmanager
def loading(kind: str, place: Path) -> Iterator[None]:
    """StartupError for everything that the runtime `kind` raises over the model in `place`."""
    try:
        yield
    except StartupError:
        raise
    except ModuleNotFoundError as error:
        raise StartupError(
            f"{place}: the runtime {kind} needs the package {error.name!r}; name it in requirements.txt"
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise StartupError(f"{place}: the model does not load with the runtime {kind} ({reason})") from error
