"""From a name or path to a model that runs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pixelrt.bundle import open_bundle
from pixelrt.runtime.pipelines.image import ImageModel

SHIPPED = ("demo",)
"""Bundles that come with the package; ``demo`` is a small demonstration super-resolver."""


def load(
    path: str | Path, *, backend: str = "auto", precision: str = "auto", verify: bool = True
) -> ImageModel:
    """Open a bundle for running.

    ``path``: a bundle folder, or the name of a shipped one (``demo``). ``backend``:
    ``auto`` takes the first that works, a name takes that one or fails. ``precision``: ``auto``
    takes the lowest that the reference outputs allow; or ``float32``, ``float16``,
    ``bfloat16``. ``verify``: hold
    each graph against its reference outputs before its first use on this machine.

    Raises ``BundleError`` where the bundle is malformed or was altered. Backends are
    opened at the first call of the model.
    """
    return ImageModel(
        open_bundle(bundle_path(path)), backend=backend, precision=precision, verify=verify
    )


def bundle_path(path: str | Path) -> Path:
    """The folder of a bundle: what lies at ``path`` first, then the shipped names."""
    place = Path(path)
    if not place.exists() and str(path) in SHIPPED:
        return Path(str(resources.files("pixelrt"))) / "data" / f"{path}.pixelrt"
    return place
