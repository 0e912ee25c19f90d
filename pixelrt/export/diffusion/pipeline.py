"""A diffusers pipeline to a verified bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pixelrt.export.assemble import Report, assemble
from pixelrt.export.diffusion.recipes import plan_of
from pixelrt.export.diffusion.source import open_diffusers
from pixelrt.export.pipeline import check_output


def export_diffusion(
    source: str | Path,
    output: Path,
    *,
    controlnets: Sequence[Path] = (),
    overwrite: bool = False,
    report: Report = lambda part: None,
) -> Path:
    """Write a verified bundle of a diffusers folder or hub id to ``output``; gives ``output``.

    ``controlnets``: folders of ControlNets that become part of the UNet's graph. Raises as
    ``assemble`` does.
    """
    check_output(output, overwrite)
    plan = plan_of(open_diffusers(source), controlnets)
    return assemble(plan, output, overwrite=overwrite, report=report)
