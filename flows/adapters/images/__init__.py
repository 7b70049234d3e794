"""Builds the image of a release, and keeps what was built as an OCI layout for the scanner.

Everything but the model is prepared once: operating system, Python dependencies and the serving package.
A release adds one layer, so that a promotion waits a second or two for its image. All storage lies under
one cache folder of the caller; the machine's own container storage is left alone.

This package only builds. Whether an image may run is the scan policy's business (`flows.domain.scan`).

Belongs here: the recipe, the context, the engines that build, layouts and pushing. May not: decide whether
an image may run. The way in is `ImageBuilder`.
"""

from flows.adapters.images.builder import ImageBuilder
from flows.adapters.images.publishing import push
from flows.adapters.images.recipe import Device, ImageRecipe

__all__ = ["Device", "ImageBuilder", "ImageRecipe", "push"]
