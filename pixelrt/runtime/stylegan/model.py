"""StyleGAN2 bundles: seeds or latents in, pictures out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixelrt.errors import BundleError, UsageError
from pixelrt.pipeline_bundle import PipelineBundle, open_pipeline
from pixelrt.pipeline_settings import StyleGan2Settings
from pixelrt.runtime.backends.select import Choice
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.images.levels import to_pixels
from pixelrt.runtime.networks import Networks
from pixelrt.runtime.stylegan.latents import (
    Array,
    SeedKind,
    broadcast,
    checked,
    one_hot,
    seeded_z,
    truncate,
)

FAMILY = "stylegan2"
BATCH = 1
"""Pictures in one run: a CPU gains nothing from more, and they need memory."""


class StyleGan2(Closing):
    """A bundle of family ``stylegan2``, ready to run. ``settings`` holds its dimensions."""

    def __init__(self, bundle: PipelineBundle, networks: Networks) -> None:
        self.bundle = bundle
        self.networks = networks
        self.settings = bundle.settings(StyleGan2Settings)
        self.w_avg = self._centre()

    def latents(
        self,
        seeds: Sequence[int],
        *,
        psi: float = 1.0,
        cutoff: int | None = None,
        labels: Sequence[int] = (),
        kind: SeedKind = "generator",
    ) -> Array:
        """ws ``(len(seeds), num_ws, w_dim)`` of seeds, truncated; see ``latents``.

        ``labels``: a class for each seed, or one for all; only for networks with labels.
        """
        return self.ws(
            seeded_z(seeds, self.settings.z_dim, kind), psi=psi, cutoff=cutoff, labels=labels
        )

    def ws(
        self,
        z: ArrayLike,
        *,
        psi: float = 1.0,
        cutoff: int | None = None,
        labels: Sequence[int] = (),
    ) -> Array:
        """ws of z ``(N, z_dim)``."""
        given = checked(z, "z", (None, self.settings.z_dim))
        feeds = {"z": given}
        if self.settings.label_dim:
            if len(labels) not in (1, len(given)):
                raise UsageError(
                    "this network makes pictures of classes",
                    found=f"{len(labels)} labels for {len(given)} pictures",
                    expected="one for all, or one for each",
                )
            found = one_hot(labels, self.settings.label_dim)
            feeds["label"] = np.repeat(found, len(given), axis=0) if len(labels) == 1 else found
        elif labels:
            raise UsageError("this network has no classes", found=f"labels {list(labels)}")
        w = self.networks.run("mapping", feeds)["w"]
        return truncate(broadcast(w, self.settings.num_ws), self.w_avg, psi, cutoff)

    def images(self, ws: ArrayLike) -> NDArray[np.uint8]:
        """Pictures ``(N, R, R, channels)`` uint8 of ws ``(N, num_ws, w_dim)``."""
        settings = self.settings
        given = checked(ws, "ws", (None, settings.num_ws, settings.w_dim))
        parts = [
            to_pixels(self.networks.run("synthesis", {"ws": given[i : i + BATCH]})["image"])
            for i in range(0, len(given), BATCH)
        ]
        return np.concatenate(parts)

    def close(self) -> None:
        """Let go of the networks; the next call opens them again."""
        self.networks.close()

    def _centre(self) -> Array:
        try:
            found = np.load(io.BytesIO(self.bundle.asset("w_avg.npy")), allow_pickle=False)
        except ValueError as exc:
            raise BundleError(f"{self.bundle.root}: w_avg.npy is damaged", found=str(exc)) from exc
        return checked(found, "w_avg", (self.settings.w_dim,))


def load_stylegan(
    path: str | Path, *, backend: str = "auto", precision: str = "auto", verify: bool = True
) -> StyleGan2:
    """Open a bundle of family ``stylegan2`` for running; options as in ``pixelrt.load``."""
    bundle = open_pipeline(Path(path))
    if bundle.manifest.family != FAMILY:
        raise BundleError(f"{path} is no StyleGAN2", found=bundle.manifest.family, expected=FAMILY)
    return StyleGan2(bundle, Networks(bundle, Choice(backend, precision), verify=verify))
