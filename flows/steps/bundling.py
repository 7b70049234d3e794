"""The files of a model's folder, laid out as the bundle that is registered.

Everything below the folder belongs to it, but what `.modelserveignore` (the syntax of `.gitignore`) and the
defaults here leave out, and what stands for rows of training. Nothing is read as a whole: files are linked
where the file system allows it and copied by the kernel where not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from flows.domain.errors import ArtifactCorrupt, SpecInvalid

IGNORE_FILE = ".modelserveignore"
IGNORED = (
    *("__pycache__/", "*.py[cod]", ".git/", ".hg/", ".svn/", ".venv/", "venv/", "node_modules/"),
    *(".ipynb_checkpoints/", ".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".modelserve/"),
    *(".DS_Store", ".env", ".env.*", ".netrc", ".gitignore", ".gitattributes", "*.swp", "*~"),
    *(f"/{IGNORE_FILE}", "/manifest.json"),
)
"""Left out unless the folder's own file takes them back (`!.env`)."""
BESIDE_AN_ARTIFACT = ("handler.py", "samples.jsonl")
"""Beside an artifact, these belong to it and replace the folder's: a training has written them together."""


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle: paths in it, and where each comes from."""

    files: dict[str, Path]
    left_out: tuple[str, ...]
    sizes: dict[str, int]
    """Bytes."""

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def lines(self) -> list[str]:
        """For a person: how many files, how large, what is left out."""
        largest = sorted(self.sizes, key=lambda name: -self.sizes[name])[:5]
        shown = ", ".join(f"{name} {size(self.sizes[name])}" for name in largest)
        more = f" and {len(self.files) - len(largest)} more" if len(self.files) > len(largest) else ""
        lines = [f"bundle: {_files(len(self.files))}, {size(self.bytes)} ({shown}{more})"]
        if self.left_out:
            hidden = len(self.left_out) - 10
            more = f" and {hidden} more" if hidden > 0 else ""
            lines.append(f"left out: {', '.join(self.left_out[:10])}{more}")
        return lines


def contents(
    folder: Path, artifacts: Sequence[Path], model_file: str | None, rows: Sequence[Path] = ()
) -> Contents:
    """Everything below `folder`, and the artifacts beside it.

    An artifact lies in the bundle under its own name, a folder with all that is in it; the only one takes the
    name that `serving.runtime.file` (`model_file`) wants. `rows` are files that are read and not kept. Raises
    ArtifactCorrupt for a missing file, a link to outside, or two artifacts of one name.
    """
    files, left_out = _below(folder)
    for path in [path for path, source in files.items() if any(_same(source, one) for one in rows)]:
        del files[path]
        left_out.append(f"{path} (rows)")
    given: dict[str, Path] = {}
    for artifact in artifacts:
        for path, source in _artifact(artifact, _name(artifact, artifacts, model_file), left_out):
            if path in given and not _same(given[path], source):
                raise ArtifactCorrupt(f"{artifact}: two artifacts are called {path!r}; rename one of them")
            given[path] = source
    files |= given
    sizes = {path: source.stat().st_size for path, source in files.items()}
    return Contents(dict(sorted(files.items())), tuple(left_out), sizes)


def lay_out(found: Contents, target: Path) -> None:
    """Make the bundle's files below `target`, which is on the disk of the caller's choice."""
    for name, source in found.files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), path)
        except OSError:  # another file system, or somebody else's file
            shutil.copyfile(source, path)


def refuse_too_large(found: Contents, limit: int) -> None:
    """Raises ArtifactCorrupt when the bundle has more than `limit` bytes."""
    if found.bytes > limit:
        largest = max(found.sizes, key=lambda name: found.sizes[name])
        raise ArtifactCorrupt(
            f"the bundle has {size(found.bytes)}, more than the limit of {size(limit)} "
            f"(MODELSERVE_BUNDLE_LIMIT_BYTES); its largest file is {largest} ({size(found.sizes[largest])}); "
            f"leave out what the model does not read ({IGNORE_FILE})"
        )


def size(count: int) -> str:
    """Bytes as a person reads them: `12.3 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _name(artifact: Path, artifacts: Sequence[Path], model_file: str | None) -> str:
    return model_file if model_file is not None and len(artifacts) == 1 else artifact.resolve().name


def _artifact(artifact: Path, name: str, left_out: list[str]) -> Iterator[tuple[str, Path]]:
    if artifact.is_dir():
        inside, hidden = _below(artifact)
        left_out.extend(f"{name}/{path}" for path in hidden)
        for path, source in inside.items():
            yield f"{name}/{path}", source
    elif artifact.is_file():
        yield name, artifact
        for beside in BESIDE_AN_ARTIFACT:
            if (artifact.parent / beside).is_file():
                yield beside, artifact.parent / beside
    else:
        raise ArtifactCorrupt(f"{artifact}: no such file; give the trained model's file or folder")


def _below(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Paths below a folder with their files, and what is left out. Ignored folders are not walked through."""
    ignored = _ignored(folder)
    files: dict[str, Path] = {}
    left_out: list[str] = []
    inside = folder.resolve()
    pending = [folder]
    while pending:
        for entry in sorted(pending.pop().iterdir()):
            name = entry.relative_to(folder).as_posix()
            linked = entry.is_symlink()
            if ignored.match_file(f"{name}/" if entry.is_dir() and not linked else name):
                left_out.append(f"{name}/" if entry.is_dir() else name)
            elif linked and (entry.is_dir() or not entry.resolve().is_relative_to(inside)):
                raise ArtifactCorrupt(
                    f"{entry}: a link that leaves the folder, or to a folder, cannot be part of a bundle; "
                    f"copy what it names (cp -rL), or leave it out ({IGNORE_FILE})"
                )
            elif entry.is_dir():
                pending.append(entry)
            elif entry.is_file():
                files[name] = entry
            else:
                raise ArtifactCorrupt(f"{entry}: neither a file nor a folder; leave it out ({IGNORE_FILE})")
    return files, [name for name in left_out if name not in (IGNORE_FILE, "manifest.json")]


def _ignored(folder: Path) -> GitIgnoreSpec:
    path = folder / IGNORE_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return GitIgnoreSpec.from_lines([*IGNORED, *lines])
    except ValueError as error:
        raise SpecInvalid(f"{path}: {' '.join(str(error).split())}") from error


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
