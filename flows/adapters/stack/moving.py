"""A state folder that was moved: what is written in it about where it is, written anew.

Programs' definitions name files by their whole path, and so do models' environments and containers' records.
What the parts configure is rendered at each start anyway. The registry's addresses are the registry's own
(`Registry.move_bundles`).
"""

from __future__ import annotations

from pathlib import Path

from flows.adapters.stack.files import write
from flows.settings import Settings

PLACE = "place"
"""A file in the state folder: where that was when everything in it was last right."""
CONTAINER_RECORDS = ("db.sql", "libpod/bolt_state.db")
"""Podman's own memory of containers, in the image storage; it refuses to work from another path."""


def moved_from(settings: Settings) -> Path | None:
    """Where the folder was when it was last up; None when it is still there, or was never up."""
    try:
        place = Path((settings.state / PLACE).read_text().rstrip("\n"))
    except FileNotFoundError:
        return None
    return None if place == settings.state else place


WITH_PATHS = ("programs/*.conf", "programs/*.sh", "environments/*/lib/*/site-packages/server.pth")
"""Programs, release servers among them, and where models' environments find the server's own packages."""


def rewrite(settings: Settings, old: Path) -> None:
    """What names files in the folder names them where it is now. Idempotent."""
    for pattern in WITH_PATHS:
        for file in settings.state.glob(pattern):
            text = file.read_text(encoding="utf-8")
            renewed = text.replace(f"{old}/", f"{settings.state}/")
            if renewed != text:
                write(file, renewed, mode=file.stat().st_mode & 0o777)
    if settings.images_folder is None:
        for name in CONTAINER_RECORDS:
            (settings.image_storage / "storage" / name).unlink(missing_ok=True)


def settled(settings: Settings) -> None:
    """Everything in the folder names it where it is."""
    write(settings.state / PLACE, f"{settings.state}\n")
