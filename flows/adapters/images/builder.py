"""The builder that flows use: prepare once, then one image a release."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.adapters.images import layout as oci
from flows.adapters.images.commands import run
from flows.adapters.images.context import stage_beside, stage_bundle, stage_package
from flows.adapters.images.engines import Engine, find_engine
from flows.adapters.images.publishing import compress
from flows.adapters.images.recipe import Device, ImageRecipe
from flows.adapters.images.wheelhouse import PYTHON, collect
from flows.domain.errors import ImageFailed
from flows.domain.release import Release

Progress = Callable[[str], None]

REGISTRY_TIMEOUT_SECONDS = 20.0
BASE_TIMEOUT_SECONDS = 900.0


def silent(_: str) -> None:
    """Progress that nobody watches."""


class ImageBuilder:
    """Builds, keeps and removes the images of releases.

    `cache` holds everything that is stored: wheels, layers, the OCI layout. It may be removed at any time
    while nothing is built; the next build prepares it again.
    """

    def __init__(
        self,
        cache: Path,
        recipe: ImageRecipe,
        engine: Engine | None = None,
        *,
        packages: Callable[[Path, str], Path] | None = None,
    ) -> None:
        """`packages`: for a bundle's folder and a Python version, a folder with the wheels that it locks."""
        self._packages = packages
        self._cache = cache.resolve()
        self._recipe = recipe
        self._chosen = engine

    def prepare(self, *, device: Device = "cpu", refresh: bool = False, progress: Progress = silent) -> str:
        """Make everything but the model; return it as the scanner takes it, for a first scan of its layers.

        Quick when nothing changed. `refresh` takes a new operating system base, with its newest packages.
        """
        with self._turn():
            base = self._inputs(device, refresh, progress)
            progress(
                f"image: installing the dependencies and {self._recipe.package.name} "
                "(about a minute the first time)"
            )
            started = time.monotonic()
            tag = f"{self._recipe.repository}/{self._recipe.name}:{device}"
            with self._context(device) as context:
                arguments = {"BASE": base, "DEVICE": device}
                self._engine.build(self._recipe.containerfile, "runtime", arguments, context, tag)
            digest = self._copy(tag, f"{self._recipe.name}-{device}")
            try:
                self._engine.prune()
            except ImageFailed as error:  # a running container holds an old image; it goes another time
                progress(f"image: {error}")
            layers = oci.layer_bytes(self._layout, digest)
            progress(
                f"image: everything but the model is ready ({time.monotonic() - started:.0f} s): "
                f"{sum(layers) / 1e6:.0f} MB, of which the largest layer {max(layers) / 1e6:.0f} MB"
            )
            return f"{self._layout}@{digest}"

    def build(
        self, release: Release, bundle: Path, *, device: Device = "cpu", progress: Progress = silent
    ) -> str:
        """Build the release's image from its bundle's local folder; return `repository/model@sha256:…`.

        Idempotent: the same bundle, server and dependencies give the same digest. Quick after `prepare`;
        without it, or when dependencies changed since, this does its work first.
        Raises ArtifactCorrupt when the bundle is not the registered one, ImageFailed otherwise.
        """
        with self._turn():
            base = self._inputs(device, False, progress)
            tag = self.tag(release)
            with self._context(device) as context:
                stage_bundle(release, bundle, context / "bundle")
                arguments = {
                    "BASE": base,
                    "DEVICE": device,
                    "PACKAGES": self._stage_packages(bundle, context / "packages"),
                    "MODEL": release.model,
                    "VERSION": str(release.version),
                    "BUNDLE_SHA256": release.sha256,
                }
                self._engine.build(self._recipe.containerfile, "release", arguments, context, tag)
            return f"{tag.rpartition(':')[0]}@{self._copy(tag, release.name)}"

    def layout(self, release: Release) -> str:
        """The release's image as the scanner takes it: `FOLDER@sha256:…`."""
        return f"{self._layout}@{self._digest(release)}"

    def layer_bytes(self, release: Release) -> list[int]:
        """The sizes of the image's layers in bytes, lowest first; the last one is the model."""
        return oci.layer_bytes(self._layout, self._digest(release))

    def container(self, release: Release, runtime: str = "runc") -> tuple[list[str], str]:
        """The command that runs containers, to be followed by its options, and the image's name for it.

        It runs the very image that was built and scanned: `[*command, "--rm", …, image]`.
        """
        tag = self.tag(release)
        if not self._engine.exists(tag):
            raise _absent(release)
        return self._engine.container(tag, runtime)

    def export(self, release: Release, folder: Path) -> str:
        """Copy the release's image into a layout of its own, as a registry will hold it: `FOLDER@sha256:…`.

        Scan and `push` this one. Its layers are compressed, so its digest is not that of `layout`.
        """
        with self._turn():
            self._digest(release)
            return compress(self._layout, release.name, folder)

    def export_prepared(self, folder: Path, device: Device = "cpu") -> str:
        """As `export`, of what `prepare` has made."""
        with self._turn():
            return compress(self._layout, f"{self._recipe.name}-{device}", folder)

    def remove(self, release: Release) -> None:
        """Remove the release's image and its layer; nothing happens when there is none."""
        with self._turn():
            oci.sweep(self._layout, forget=release.name)
            self._engine.remove(self.tag(release))

    def tag(self, release: Release) -> str:
        return f"{self._recipe.repository}/{release.model}:{release.name}"

    def _digest(self, release: Release) -> str:
        digest = oci.digest_of(self._layout, release.name)
        if digest is None:
            raise _absent(release)
        return digest

    @property
    def _layout(self) -> Path:
        return self._cache / "layout"

    @property
    def _engine(self) -> Engine:
        if self._chosen is None:
            self._chosen = find_engine(self._cache)
        return self._chosen

    def _inputs(self, device: Device, refresh: bool, progress: Progress) -> str:
        """Make sure of base and wheels; return the base as the Containerfile's argument."""
        base = self._base(refresh, progress)
        collect(
            self._cache / f"{self._recipe.wheels}-{device}",
            self._recipe.dependencies,
            self._recipe.constraints,
            device=device,
            torch=self._recipe.torch,
            progress=progress,
        )
        return base

    def _base(self, refresh: bool, progress: Progress) -> str:
        """The tag of the base in the engine's storage: pulled by digest, or made by `base.sh`."""
        if self._recipe.base == "scratch":
            return self._recipe.base
        record = self._cache / "base.json"
        tag = f"{self._recipe.repository}/base:{PYTHON}"
        if record.is_file() and not refresh:
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["asked"] == self._recipe.base and self._engine.exists(tag):
                return tag
        resolved = self._resolve(self._recipe.base)
        if resolved is not None:
            progress(f"image: pulling the operating system base {resolved}")
            self._engine.pull(resolved, tag)
        else:
            progress(f"image: no registry has {self._recipe.base} for us; making a base (about a minute)")
            with tempfile.TemporaryDirectory(dir=self._cache) as folder:
                archive = Path(folder) / "base.tar"
                run(
                    [self._recipe.base_recipe / "base.sh", PYTHON, archive],
                    what="making the operating system base",
                    timeout=BASE_TIMEOUT_SECONDS,
                )
                recipe = self._recipe.base_recipe / "base.Containerfile"
                self._engine.build(recipe, None, {}, Path(folder), tag)
        self._write(record, {"asked": self._recipe.base, "found": resolved or "base.sh"})
        return tag

    def _resolve(self, reference: str) -> str | None:
        """The reference by digest, None when no registry answers for it."""
        if "@sha256:" in reference:
            return reference
        if shutil.which("skopeo") is None:
            return None
        try:
            digest = run(
                ["skopeo", "inspect", "--format", "{{.Digest}}", f"docker://{reference}"],
                what=f"looking up {reference}",
                timeout=REGISTRY_TIMEOUT_SECONDS,
            )
        except ImageFailed:
            return None
        return f"{reference.rpartition(':')[0]}@{digest}"

    def _copy(self, tag: str, name: str) -> str:
        try:
            self._engine.copy(tag, self._layout, name)
        finally:
            oci.sweep(self._layout)
        digest = oci.digest_of(self._layout, name)
        if digest is None:
            raise ImageFailed(
                f"{tag} was built but did not arrive in {self._layout}; remove that folder and retry"
            )
        return digest

    def _stage_packages(self, bundle: Path, target: Path) -> str:
        """Bring the wheels that the bundle locks into the context; gives the word for the Containerfile."""
        if self._packages is None:
            return "none"
        wheels = self._packages(bundle, PYTHON)
        if not (wheels / "requirements.txt").read_text(encoding="utf-8").strip():
            return "none"
        shutil.rmtree(target)
        shutil.copytree(wheels, target, copy_function=_link)
        return "listed"

    @contextmanager
    def _context(self, device: Device) -> Iterator[Path]:
        """A build context with wheels and the serving package; removed afterwards."""
        wheels = self._cache / f"{self._recipe.wheels}-{device}"
        with tempfile.TemporaryDirectory(dir=self._cache, prefix="context-") as folder:
            context = Path(folder)
            try:
                stage_package(self._recipe.package, context / self._recipe.package.name)
                for source, place in self._recipe.beside:
                    stage_beside(source, context / place)
                shutil.copytree(wheels, context / "wheels", copy_function=_link)
                (context / "packages").mkdir()
                (context / "packages" / "requirements.txt").touch()
                yield context
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise ImageFailed(
                        f"no space left on the disk of {self._cache}; free some and try again"
                    ) from error
                raise ImageFailed(f"the build context cannot be written: {error}") from error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One build at a time: the layout's index and the storage are shared by all processes."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with (self._cache / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ImageFailed(f"the image cache {self._cache} cannot be used: {error.strerror}") from error

    def _write(self, path: Path, content: dict[str, str]) -> None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(path)


def _absent(release: Release) -> ImageFailed:
    return ImageFailed(f"{release.name} has no image here; promote it again to build one")


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
