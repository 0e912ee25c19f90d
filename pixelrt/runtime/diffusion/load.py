"""From the name or path of a pipeline bundle to what runs it."""

from __future__ import annotations

from pathlib import Path

from pixelrt.errors import BundleError
from pixelrt.pipeline_bundle import open_pipeline
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.diffusion.kandinsky import Kandinsky
from pixelrt.runtime.diffusion.stable_diffusion import StableDiffusion
from pixelrt.runtime.diffusion.upscalers import LatentUpscaler, PixelUpscaler
from pixelrt.runtime.networks import Networks

Pipeline = StableDiffusion | Kandinsky | LatentUpscaler | PixelUpscaler
PIPELINES: dict[str, type[Pipeline]] = {
    "stable-diffusion": StableDiffusion,
    "stable-diffusion-xl": StableDiffusion,
    "kandinsky-2.2": Kandinsky,
    "latent-upscaler": LatentUpscaler,
    "upscaler": PixelUpscaler,
}
"""What runs the families of bundles."""
ELSEWHERE = {"stylegan2": "`pixelrt stylegan` and pixelrt.load_stylegan run it"}
"""Pipelines that are no diffusion, and what runs them."""


def load_pipeline(
    path: str | Path,
    *,
    backend: str = "auto",
    precision: str = "auto",
    low_memory: bool = False,
    verify: bool = True,
) -> Pipeline:
    """Open a bundle of several networks for running.

    ``low_memory``: one network is open at a time. The rest is as in ``pixelrt.load``.
    Raises ``BundleError`` where the bundle is malformed, altered, or of another family.
    """
    bundle = open_pipeline(Path(path))
    kind = PIPELINES.get(bundle.manifest.family)
    if kind is None:
        raise BundleError(
            f"{path} is no diffusion pipeline that this version runs",
            found=bundle.manifest.family,
            expected=", ".join(PIPELINES),
            hint=ELSEWHERE.get(bundle.manifest.family, ""),
        )
    choice = Choice(backend, precision)
    return kind(bundle, Networks(bundle, choice, low_memory=low_memory, verify=verify))
