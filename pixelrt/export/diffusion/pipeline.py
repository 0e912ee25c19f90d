"""A diffusers pipeline to a verified bundle."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from pixelrt.bundle_files import MANIFEST, describe_files
from pixelrt.export.diffusion.recipes import Plan, plan_of
from pixelrt.export.diffusion.source import open_diffusers
from pixelrt.export.part import Part, export_part
from pixelrt.export.pipeline import SUFFIX, check_output, made_by
from pixelrt.export.workspace import Workspace
from pixelrt.manifest import (
    PIPELINE_FORMAT,
    Measured,
    Network,
    PipelineManifest,
    Source,
    encode_manifest,
)
from pixelrt.pipeline_bundle import FOLDERS, new_pipeline

Report = Callable[[str], None]
"""Called with the name of each component as its export begins."""


class Exported(msgspec.Struct, frozen=True):
    """What a finished component adds to the manifest."""

    network: Network
    measured: list[Measured]


def export_diffusion(
    source: str | Path,
    output: Path,
    *,
    controlnets: Sequence[Path] = (),
    overwrite: bool = False,
    report: Report = lambda part: None,
) -> Path:
    """Write a verified bundle of a diffusers folder or hub id to ``output``; gives ``output``.

    Components are loaded, exported and let go one after the other. An interrupted export
    goes on with the first component that was not finished. Raises ``CheckpointError``,
    ``ExportError``, ``OutputError`` or ``UsageError``.
    """
    check_output(output, overwrite)
    folder = open_diffusers(source)
    plan = plan_of(folder, controlnets)
    sha256 = folder.sha256()
    origin = Source("checkpoint", Path(folder.name).name, sha256)
    key = [plan.family, plan.variant, plan.settings, sha256, [str(c) for c in controlnets]]
    with Workspace([*key, made_by()]) as work:
        done = [_stage(work, part, report) for part in plan.parts()]
        report("write")
        _write(
            plan, origin, output, [path for path, _ in done], [one for _, one in done], overwrite
        )
        work.clear()
    return output


def _stage(work: Workspace, part: Part, report: Report) -> tuple[Path, Exported]:
    report(part.name)

    def make(folder: Path) -> None:
        for name in FOLDERS[:2]:
            (folder / name).mkdir()
        network, measured = export_part(part, folder / FOLDERS[0], folder / FOLDERS[1])
        (folder / "exported.json").write_bytes(msgspec.json.encode(Exported(network, measured)))

    path = work.stage(part.name, make)
    gc.collect()  # the exporter leaves cycles that hold the weights
    return path, msgspec.json.decode((path / "exported.json").read_bytes(), type=Exported)


def _write(
    plan: Plan,
    origin: Source,
    output: Path,
    stages: list[Path],
    exported: list[Exported],
    overwrite: bool,
) -> None:
    with new_pipeline(output, overwrite=overwrite) as folder:
        for stage in stages:
            for name in FOLDERS[:2]:
                for file in sorted((stage / name).iterdir()):
                    shutil.copy2(file, folder / name)
        for name, data in plan.assets.items():
            (folder / "assets" / name).write_bytes(data)
        manifest = PipelineManifest(
            format=PIPELINE_FORMAT,
            name=output.name.removesuffix(SUFFIX),
            family=plan.family,
            variant=plan.variant,
            settings=msgspec.to_builtins(plan.settings),
            source=origin,
            networks=[one.network for one in exported],
            fidelity=[m for one in exported for m in one.measured],
            made_by=made_by(),
            files=describe_files(folder, FOLDERS),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
