"""A pipeline bundle written by hand, for tests that need no real graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.bundle_files import MANIFEST, describe_files
from pixelrt.manifest import (
    PIPELINE_FORMAT,
    Component,
    Graph,
    Network,
    NetworkSample,
    PipelineManifest,
    Source,
    encode_manifest,
)
from pixelrt.pipeline_bundle import FOLDERS, PipelineBundle, new_pipeline, open_pipeline
from pixelrt.plans.axis_profiles import Lengths
from pixelrt.plans.profiles import tensor_shape
from pixelrt.spec import TensorSpec, Tolerance

LATENTS = TensorSpec("latents", "float32", ("B", 4, "h", "w"))
PIXELS = TensorSpec("pixels", "float32", ("B", 3, "8*h", "8*w"))
WORDS = TensorSpec("ids", "int64", ("B", "T"))
SCALE = TensorSpec("scale", "float32", (1,))
NOISE = TensorSpec("noise", "float32", ("B", 4, "h", "w"))
POOLED = TensorSpec("pooled", "float32", ("B",))
TENSORS = (LATENTS, PIXELS, WORDS, SCALE)


def network_feeds(**lengths: int) -> dict[str, Any]:
    """Seeded inputs of ``mixing``; a ``B``, ``h``, ``w``, ``T``."""
    rng = np.random.default_rng(sum(lengths.values()))
    made = {}
    for spec in TENSORS:
        values = rng.normal(0, 1, tensor_shape(spec, Lengths(tuple(lengths.items()))))
        made[spec.name] = (10 * values if spec.dtype == "int64" else values).astype(spec.dtype)
    return made


def mixing(latents: Any, pixels: Any, ids: Any, scale: Any) -> tuple[Any, Any]:
    """A network that is different wherever any of its inputs is."""
    small = pixels.mean(axis=1, keepdims=True)[:, :, ::8, ::8]
    words = ids.mean(axis=1).astype(np.float32)
    noise = latents * scale + small + words[:, None, None, None]
    return noise.astype(np.float32), words


def write_pipeline(path: Path) -> PipelineBundle:
    """A bundle of one network ``unet`` whose samples are answered by ``mixing``."""
    with new_pipeline(path, overwrite=True) as folder:
        (folder / "graphs" / "unet.onnx").write_bytes(b"unet")
        feeds = network_feeds(B=2, h=3, w=4, T=5)
        outputs = dict(zip(("noise", "pooled"), mixing(*feeds.values()), strict=True))
        arrays = {**{f"in.{n}": v for n, v in feeds.items()}}
        arrays |= {f"out.{n}": v for n, v in outputs.items()}
        np.savez(folder / "reference" / "unet-0.npz", allow_pickle=False, **arrays)
        graph = Graph("network", "graphs/unet.onnx", list(TENSORS), [NOISE, POOLED])
        network = Network(
            component=Component("unet", "float32", [graph]),
            tolerance=Tolerance(1e-5),
            low_psnr=35.0,
            samples=[NetworkSample("unet-0", "reference/unet-0.npz")],
        )
        manifest = PipelineManifest(
            format=PIPELINE_FORMAT,
            name=path.name.removesuffix(".pixelrt"),
            family="stable-diffusion",
            variant="made",
            settings={},
            source=Source("random", "seed 0", seed=0),
            networks=[network],
            fidelity=[],
            made_by={"pixelrt": "0"},
            files=describe_files(folder, FOLDERS),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
    return open_pipeline(path)
