"""From the name or path of a pipeline bundle to what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pixelrt.errors import BundleError, UsageError
from pixelrt.pipeline_bundle import PipelineBundle, open_pipeline
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.diffusion.kandinsky import Kandinsky
from pixelrt.runtime.diffusion.stable_diffusion import StableDiffusion
from pixelrt.runtime.diffusion.upscalers import LatentUpscaler, PixelUpscaler
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.planning import RunOptions

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
VaeTile = Literal["auto", "off"] | int


def load_pipeline(
    path: str | Path,
    *,
    backend: str = "auto",
    precision: str = "auto",
    low_memory: bool = False,
    verify: bool = True,
    vae_tile: VaeTile = "auto",
    max_memory: int | None = None,
) -> Pipeline:
    """Open a bundle of several networks for running.

    ``low_memory``: one network is open at a time. ``vae_tile``: ``auto`` runs the VAE in tiles
    where a picture does not fit into the memory at once, a number (a tile's side in pixels)
    always, ``off`` never. ``max_memory``: bytes that a run of it may take, of the device where it
    runs on one; where left out half of what is free, nine tenths on a device. The rest is as in
    ``pixelrt.load``.
    Raises ``BundleError`` where the bundle is malformed, altered, or of another family;
    ``UsageError`` where tiles are asked for that the bundle has not.
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
    options = RunOptions(tile=_checked(vae_tile, bundle), max_memory=max_memory)
    networks = Networks(
        bundle, Choice(backend, precision), low_memory=low_memory, verify=verify, options=options
    )
    return kind(bundle, networks)


def _checked(tile: VaeTile, bundle: PipelineBundle) -> VaeTile:
    if tile in ("auto", "off"):
        return tile
    if not isinstance(tile, int) or tile < 1:
        raise UsageError(f"a tile of {tile!r}", expected="auto, off or a number of pixels")
    if not any(one.segments for one in bundle.manifest.networks):
        raise UsageError(
            f"{bundle.manifest.name} has no networks that run in tiles",
            hint="leave the tile out, or export the bundle again",
        )
    return tile
