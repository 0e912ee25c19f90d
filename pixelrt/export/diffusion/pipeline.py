"""A diffusion pipeline to a verified bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixelrt.errors import UsageError
from pixelrt.export.assemble import Plan, Report, assemble
from pixelrt.export.diffusion import kandinsky
from pixelrt.export.diffusion.lora import LoraFile
from pixelrt.export.diffusion.recipes import UPSCALERS, plan_of
from pixelrt.export.diffusion.single_file import is_single_file, open_single_file
from pixelrt.export.diffusion.source import DiffusersFolder, open_diffusers
from pixelrt.export.diffusion.untrained import open_untrained
from pixelrt.export.diffusion.upscalers import upscaler_plan
from pixelrt.export.part import Rewrite
from pixelrt.export.pipeline import check_output
from pixelrt.export.weights import Weights


def export_diffusion(
    source: str | Path,
    output: Path,
    *,
    controlnets: Sequence[Path] = (),
    loras: Sequence[LoraFile] = (),
    tokenizers: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    prior: str | None = None,
    whole: bool = True,
    weights: Weights = "auto",
    to_bfloat16: Rewrite | None = None,
    overwrite: bool = False,
    report: Report = lambda part: None,
) -> Path:
    """Write a verified bundle of a diffusers folder, a hub id or a single checkpoint file to
    ``output``; gives ``output``.

    ``controlnets``: folders of ControlNets that become part of the UNet's graph. ``loras``: files
    merged into the weights. ``tokenizers`` and ``config``: for a single file, see
    ``open_single_file``. ``prior``: folder or hub id of Kandinsky's. ``weights``: see
    ``pixelrt.export.weights``; ``to_bfloat16``: see ``export_part``. ``whole``: also run the whole
    pipeline in diffusers, with the weights as they are stored, for `pixelrt verify` to reproduce;
    all networks are in memory then. Raises as ``assemble`` does.
    """
    check_output(output, overwrite)
    plan = _plan(_opened(source, tokenizers, config), controlnets, loras, prior, weights)
    plan = replace(plan, to_bfloat16=to_bfloat16)
    return _write(plan, output, whole=whole, overwrite=overwrite, report=report)


def export_untrained(
    config: str | Mapping[str, Any],
    seed: int,
    output: Path,
    *,
    tokenizers: Sequence[str] = (),
    whole: bool = True,
    weights: Weights = "auto",
    to_bfloat16: Rewrite | None = None,
    overwrite: bool = False,
    report: Report = lambda part: None,
) -> Path:
    """Write a verified bundle of random weights to ``output``; gives ``output``.

    ``config`` and ``tokenizers``: see ``open_untrained``; the rest as for ``export_diffusion``.
    Raises as ``assemble`` does.
    """
    check_output(output, overwrite)
    with tempfile.TemporaryDirectory(prefix="pixelrt-export-") as folder:
        opened = open_untrained(config, seed, tokenizers, Path(folder))
        plan = plan_of(opened, weights=weights)
        plan = replace(plan, source=opened.source, to_bfloat16=to_bfloat16)
        return _write(plan, output, whole=whole, overwrite=overwrite, report=report)


def _write(plan: Plan, output: Path, *, whole: bool, overwrite: bool, report: Report) -> Path:
    plan = plan if whole else replace(plan, examples=None)
    return assemble(plan, output, overwrite=overwrite, report=report)


def _plan(
    folder: DiffusersFolder,
    controlnets: Sequence[Path],
    loras: Sequence[LoraFile],
    prior: str | None,
    weights: Weights,
) -> Plan:
    if prior is not None and folder.pipeline not in kandinsky.PIPELINES:
        raise UsageError(
            "--prior goes with a decoder of Kandinsky 2.2 only",
            found=folder.pipeline,
            expected=" or ".join(kandinsky.DECODERS),
        )
    if folder.pipeline not in (*kandinsky.PIPELINES, *UPSCALERS):
        return plan_of(folder, controlnets, loras, weights=weights)
    if controlnets or loras:
        raise UsageError(
            f"--controlnet and --lora do not go with {folder.pipeline}",
            expected="a pipeline of Stable Diffusion that makes pictures",
        )
    if folder.pipeline in UPSCALERS:
        return upscaler_plan(folder, weights=weights)
    return kandinsky.kandinsky_plan(folder, prior, weights=weights)


def _opened(
    source: str | Path, tokenizers: Sequence[str], config: Mapping[str, Any] | None
) -> DiffusersFolder:
    if is_single_file(source):
        return open_single_file(source, tokenizers, config)
    if tokenizers or config is not None:
        raise UsageError(
            "--tokenizer and --config go with a single checkpoint file only",
            found=str(source),
            hint="a folder of diffusers has tokenizers and configurations of its own",
        )
    return open_diffusers(source)
