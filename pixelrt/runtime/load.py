"""From a name or path to a model that runs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pixelrt.bundle import open_bundle
from pixelrt.errors import UsageError
from pixelrt.plans.store import plan_at
from pixelrt.runtime.backends.tensorrt import TensorRTBackend
from pixelrt.runtime.pipelines.image import ImageModel

SHIPPED = ("demo",)
"""Bundles that come with the package; ``demo`` is a small demonstration super-resolver."""


def load(
    path: str | Path,
    *,
    backend: str = "auto",
    precision: str = "auto",
    verify: bool = True,
    plan: str | Path | None = None,
) -> ImageModel:
    """Open a bundle for running.

    ``path``: a bundle folder, or the name of a shipped one (``demo``). ``backend``:
    ``auto`` takes the first that works, a name takes that one or fails. ``precision``: ``auto``
    takes the lowest that the reference outputs allow; or ``float32``, ``tf32``,
    ``float16``, ``bfloat16``. ``verify``: hold
    each graph against its reference outputs before its first use on this machine. ``plan``:
    a ``.plan`` file that `pixelrt build` wrote, to be used and no other.

    Raises ``BundleError`` where the bundle is malformed or was altered, ``InputError`` where
    the plan's facts are. Backends are opened at the first call of the model.
    """
    bundle = open_bundle(bundle_path(path))
    if plan is None:
        return ImageModel(bundle, backend=backend, precision=precision, verify=verify)
    only = backend_of_plan(Path(plan), backend)
    return ImageModel(
        bundle, backend=only.name, precision=precision, verify=verify, backends=(only,)
    )


def backend_of_plan(path: Path, backend: str = "auto") -> TensorRTBackend:
    """What runs a plan file, and nothing else. Raises ``InputError``, ``UsageError``."""
    plan = plan_at(path)
    flavour = plan.facts.target.flavour
    if backend not in ("auto", flavour):
        raise UsageError(
            f"{path} does not run on {backend}",
            found=f"a plan for {flavour}",
            hint="leave --backend out",
        )
    return TensorRTBackend(flavour, plan=plan)


def bundle_path(path: str | Path) -> Path:
    """The folder of a bundle: what lies at ``path`` first, then the shipped names."""
    place = Path(path)
    if not place.exists() and str(path) in SHIPPED:
        return Path(str(resources.files("pixelrt"))) / "data" / f"{path}.pixelrt"
    return place
