"""What an image is made of: the servers' image, and the control plane's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.adapters.images.wheelhouse import PYTHON, TorchSource, dependencies_of

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ImageRecipe:
    """Where the inputs of the images are, and how they are called."""

    containerfile: Path
    package: Path
    """Folder of the `serving` package."""
    base_recipe: Path
    """Folder with `base.sh`, `base.Containerfile`, and what fetches torch."""
    dependencies: tuple[str, ...]
    """Requirements of the model server, as pip takes them."""
    constraints: Path
    base: str = f"python:{PYTHON}-slim-bookworm"
    """Image under the server. A tag is resolved to its digest once; without a registry, `base.sh` runs."""
    repository: str = "localhost/modelserve"
    torch: TorchSource | None = None
    """Where torch comes from; None: an image without it."""
    name: str = "runtime"
    """What `prepare` makes, and the name of its tag."""
    beside: tuple[tuple[Path, str], ...] = ()
    """Further files and folders of the build context, each with its place there."""

    @property
    def wheels(self) -> str:
        """Folder of the dependencies; every recipe has its own."""
        return "wheels" if self.name == "runtime" else f"wheels-{self.name}"

    @classmethod
    def of_flows(cls, root: Path, packages: Path | None = None) -> ImageRecipe:
        """The image of the control plane itself; `root` and `packages` as in `of_project`."""
        packages = packages or root
        return cls(
            containerfile=packages / "flows" / "Containerfile",
            package=packages / "flows",
            base_recipe=root / "infra" / "images",
            # Models run in the servers only: the largest dependency by far is not for the flows.
            dependencies=dependencies_of(root / "pyproject.toml", ("flows",), without=("torch",)),
            constraints=root / "constraints.txt",
            name="flows",
            beside=((root / "k8s" / "release", "k8s/release"), (root / "prefect.yaml", "prefect.yaml")),
        )

    @classmethod
    def of_project(
        cls,
        root: Path,
        extras: tuple[str, ...] = (),
        *,
        packages: Path | None = None,
        torch_index: str = TorchSource.index,
        torch_fallback: bool = True,
    ) -> ImageRecipe:
        """The recipe of this project's files at `root`, with the dependencies of some of its extras.

        `packages` holds the packages `flows` and `serving`; None: `root`, as in a checkout.
        """
        packages = packages or root
        images = root / "infra" / "images"
        return cls(
            containerfile=packages / "serving" / "Containerfile",
            package=packages / "serving",
            base_recipe=images,
            dependencies=dependencies_of(root / "pyproject.toml", extras),
            constraints=root / "constraints.txt",
            torch=TorchSource(images / "torch.sh", images / "torch.txt", torch_index, torch_fallback),
        )
