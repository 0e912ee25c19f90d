"""Bundles written by hand, for tests that need no real graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.bundle import (
    FOLDERS,
    Bundle,
    encode_reference,
    new_bundle,
    open_bundle,
)
from pixelrt.bundle_files import MANIFEST, describe_files
from pixelrt.manifest import (
    FORMAT,
    Component,
    Graph,
    Manifest,
    Measured,
    MemoryNeed,
    Reference,
    Source,
    encode_manifest,
)
from pixelrt.spec import ImageSpec, ReceptiveField, TensorSpec, Tolerance


def image_spec(**changes: Any) -> ImageSpec:
    facts: dict[str, Any] = {
        "task": "super-resolution",
        "scale": 2,
        "channels_in": 3,
        "channels_out": 3,
        "multiple": 1,
        "minimum": 1,
        "pad_mode": "edge",
        "statistics": "local",
    }
    return ImageSpec(**{**facts, **changes})


def nearest(scale: int = 2) -> Any:
    """The function of a made-up network on (N, H, W, C): each pixel repeated."""
    return lambda x: x.repeat(scale, axis=1).repeat(scale, axis=2)


def write_bundle(
    path: Path,
    spec: ImageSpec | None = None,
    field: ReceptiveField | None = None,
    per_pixel: int = 100,
) -> Bundle:
    """A bundle whose reference outputs are those of ``nearest(scale)``."""
    spec = spec or image_spec()
    field = field or ReceptiveField(spec.multiple, 0, {"60dB": 0})
    with new_bundle(path, overwrite=True) as folder:
        (folder / "graphs" / "core.onnx").write_bytes(b"core")
        (folder / "graphs" / "image.onnx").write_bytes(b"image")
        (folder / "reference" / "photo-small.npz").write_bytes(_reference(spec))
        (folder / MANIFEST).write_bytes(
            encode_manifest(_manifest(path, folder, spec, field, per_pixel))
        )
    return open_bundle(path)


def _reference(spec: ImageSpec) -> bytes:
    rng = np.random.default_rng(0)
    side = spec.minimum + 8
    pixels = rng.integers(0, 256, (1, side, side, spec.channels_in), dtype=np.uint8)
    values = pixels.astype(np.float32) / np.float32(255)
    high = nearest(spec.scale)(values)[..., : spec.channels_out]
    return encode_reference(pixels, np.ascontiguousarray(high.transpose(0, 3, 1, 2)))


def _manifest(
    path: Path, folder: Path, spec: ImageSpec, field: ReceptiveField, per_pixel: int
) -> Manifest:
    side = spec.minimum + 8
    core = Graph(
        "core",
        "graphs/core.onnx",
        [TensorSpec("pixels", "float32", ("N", spec.channels_in, "H", "W"))],
        [TensorSpec("output", "float32", ("N", spec.channels_out, "2*H", "2*W"))],
    )
    image = Graph(
        "image",
        "graphs/image.onnx",
        [TensorSpec("image", "uint8", ("N", "H", "W", spec.channels_in))],
        [TensorSpec("result", "uint8", ("N", "2*H", "2*W", spec.channels_out))],
    )
    return Manifest(
        format=FORMAT,
        name=path.name.removesuffix(".pixelrt"),
        family="srgan",
        variant="generator",
        config={},
        source=Source("random", "seed 0", seed=0),
        image=spec,
        receptive_field=field,
        tolerance=Tolerance(1e-5),
        memory=MemoryNeed(0, per_pixel),
        components=[Component("network", "float32", [core, image])],
        references=[Reference("photo-small", "photo", "reference/photo-small.npz", side, side)],
        fidelity=[Measured("onnxruntime-cpu", "photo-small", 0.0, 300.0)],
        made_by={"pixelrt": "0"},
        files=describe_files(folder, FOLDERS),
    )
