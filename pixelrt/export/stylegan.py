"""A StyleGAN2 generator to a bundle of its mapping and its synthesis."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelrt.export.assemble import Example, Plan, Report, assemble
from pixelrt.export.checkpoint import open_checkpoint
from pixelrt.export.families.stylegan2 import (
    NAME,
    VARIANTS,
    StyleGan2,
    detect,
    open_generator,
    random,
)
from pixelrt.export.part import Axis, Part, noise
from pixelrt.export.pipeline import check_output
from pixelrt.export.recipe import Config
from pixelrt.manifest import Source
from pixelrt.pipeline_settings import StyleGan2Settings
from pixelrt.whole_run import WholeRun

COUNT = Axis("N", high=1024)
SEED, PSI = 7, 0.7
"""Of the picture that the whole has to reproduce."""
LOW_PSNR = 40.0
"""Of the image, as of any picture that noise is drawn for."""


def export_stylegan(
    source: str | Path | None,
    output: Path,
    *,
    config: Config | None = None,
    random_seed: int | None = None,
    overwrite: bool = False,
    report: Report = lambda part: None,
) -> Path:
    """Write a verified bundle of a checkpoint, or of random weights, to ``output``; gives it.

    Raises ``CheckpointError``, ``ExportError``, ``OutputError`` or ``UsageError``.
    """
    check_output(output, overwrite)
    if source is None:
        seed = random_seed or 0
        made = random(config, seed)
        plan = _plan(made, VARIANTS[1].name, Source("random", f"seed {seed}", seed=seed))
    else:
        checkpoint = open_checkpoint(source)
        made = open_generator(checkpoint, config)
        origin = Source("checkpoint", Path(checkpoint.path).name, checkpoint.sha256)
        plan = _plan(made, detect(checkpoint)[0], origin)
    return assemble(plan, output, overwrite=overwrite, report=report)


def _plan(made: StyleGan2, variant: str, source: Source) -> Plan:
    arch = made.architecture
    centre = io.BytesIO()
    np.save(centre, made.w_avg.numpy(), allow_pickle=False)
    settings = StyleGan2Settings(
        z_dim=arch.z_dim,
        w_dim=arch.w_dim,
        num_ws=arch.num_ws,
        label_dim=arch.label_dim,
        resolution=arch.resolution,
        sampled=made.sampled,
        config=dict(made.config),
    )
    assets = {"w_avg.npy": centre.getvalue()}
    return Plan(
        NAME,
        variant,
        source,
        settings,
        assets,
        lambda: _parts(made),
        examples=lambda: [_example(made)],
    )


def _parts(made: StyleGan2) -> Iterator[Part]:
    arch = made.architecture
    z = [noise((count, arch.z_dim), count) for count in (2, 1)]
    each = {0: COUNT}
    if arch.label_dim:
        labels = [noise((count, arch.label_dim), 3).argmax(1) for count in (2, 1)]
        inputs = [
            (one, label[:, None].eq(label.new_tensor(range(arch.label_dim))).float())
            for one, label in zip(z, labels, strict=True)
        ]
        yield Part("mapping", made.mapping, {"z": each, "label": each}, {"w": each}, inputs)
    else:
        yield Part("mapping", made.mapping, {"z": each}, {"w": each}, [(one,) for one in z])
    ws = [
        (made.w_avg + 0.7 * noise((count, arch.num_ws, arch.w_dim), 10 + count),)
        for count in (2, 1)
    ]
    synthesis = made.synthesis()
    yield Part("synthesis", synthesis, {"ws": each}, {"image": each}, ws, low_psnr=LOW_PSNR)


def _example(made: StyleGan2) -> Example:
    """A seed's picture, truncated, by the published maths."""
    arch, network = made.architecture, made.reference
    options: dict[str, Any] = {"seeds": [SEED], "kind": "randomstate", "psi": PSI}
    z = torch.from_numpy(np.random.RandomState(SEED).randn(1, arch.z_dim).astype(np.float32))
    given = [z]
    if arch.label_dim:
        options["labels"] = [0]
        given.append(torch.eye(arch.label_dim)[:1])
    with torch.inference_mode():
        w = made.w_avg + PSI * (network.mapping(*given) - made.w_avg)
        rows = w[:, None].repeat(1, arch.num_ws, 1)
        image = network.synthesis(rows, network.synthesis.constant_noise())
    levels = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())
    return Example("seed", "images", options, WholeRun({}, [], [rows.numpy()], pixels))
