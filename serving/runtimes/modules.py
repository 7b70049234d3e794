"""Makes the Python files of a bundle modules like any other.

The handler is imported under its own name and stays in `sys.modules`: dataclasses look their module up there,
pickles name it, and a process of a pool imports it again, which it can because the folder is on the path. The
folder stands last there, so that a file of the bundle never replaces a module of the server. Byte code beside
the files is not sealed, so it is neither read nor written.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

from serving.errors import StartupError


def import_handler(folder: Path, handler: str) -> ModuleType:
    """Import `handler`, a path below the bundle's `folder`, under the name of its file.

    Its siblings, and packages at the top of the folder, can be imported from then on. StartupError when it is
    not there, raises, or has the name of a module of the server.
    """
    path = folder.resolve() / handler
    if not path.is_file():
        raise StartupError(f"{path}: not there; add it or name another one in serving.runtime.handler")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None and not _of_a_bundle(known):
        raise StartupError(f"{path}: Python has a module {name!r} of its own; give the file another name")
    _forget_bundles()
    _offer([path.parent, folder.resolve()])
    spec = importlib.util.spec_from_file_location(name, path, loader=_Sealed(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise StartupError(f"{path}: cannot be imported ({reason})") from error
    return module


class _Sealed(SourceFileLoader):
    """Reads the source, never byte code that lies beside it."""

    def path_stats(self, path: str) -> dict[str, int]:
        raise OSError(f"{path}: byte code beside it does not count")

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:  # type: ignore[override]
        """Nothing is written into a bundle."""


class _BundleFinder(MetaPathFinder):
    """Finds the modules of a bundle's folders where nobody else has one of that name."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        inside = [one for one in path or () if any(_below(one, folder) for folder in self.folders)]
        spec = PathFinder.find_spec(name, self.folders if path is None else inside)
        if spec is None:
            return None
        if path is None:
            for finder in sys.meta_path:
                elsewhere = None if finder is self else finder.find_spec(name, None, target)
                if elsewhere is not None and not _in(elsewhere, self.folders):
                    return elsewhere
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _Sealed(spec.loader.name, str(spec.loader.path))
            spec.cached = None
        return spec


def _offer(folders: list[Path]) -> None:
    """Make the folders importable here, and through the path in processes that are started later."""
    for finder in [one for one in sys.meta_path if isinstance(one, _BundleFinder)]:
        sys.meta_path.remove(finder)
        sys.path[:] = [one for one in sys.path if one not in finder.folders]
    wanted = list(dict.fromkeys(str(folder) for folder in folders))
    # Before the finder of the path, which would read byte code.
    sys.meta_path.insert(0, _BundleFinder(wanted))
    sys.path.extend(wanted)


def _in(spec: ModuleSpec, folders: list[str]) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(_below(place, folder) for place in places for folder in folders)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _of_a_bundle(module: ModuleType) -> bool:
    return isinstance(getattr(module, "__loader__", None), _Sealed)


def _forget_bundles() -> None:
    """Drop what an earlier bundle in this process has left: another one has modules of the same names."""
    for name, module in list(sys.modules.items()):
        if _of_a_bundle(module):
            del sys.modules[name]
