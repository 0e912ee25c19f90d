"""Networks of a pipeline, exported one after the other, to a bundle."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from pixelrt.bundle_files import MANIFEST, describe_files
from pixelrt.export.part import Part, Rewrite, export_part
from pixelrt.export.pipeline import SUFFIX, made_by
from pixelrt.export.weights import Weights
from pixelrt.export.workspace import Workspace
from pixelrt.manifest import (
    PIPELINE_FORMAT,
    Measured,
    Network,
    PipelineManifest,
    PipelineReference,
    Source,
    encode_manifest,
)
from pixelrt.pipeline_bundle import FOLDERS, new_pipeline
from pixelrt.whole_run import WholeRun, encode_run

Report = Callable[[str], None]
"""Called with the name of each network as its export begins."""
EXPORTED, REFERENCES = "exported.json", "references.json"
WHOLE = "pipeline"
"""What ``Report`` is called with as the whole pipeline begins."""


@dataclass(frozen=True)
class Example:
    """One run of the whole pipeline; see ``PipelineReference``."""

    name: str
    mode: str
    options: dict[str, Any]
    run: WholeRun


@dataclass(frozen=True)
class Plan:
    """What a bundle is made of. ``parts`` loads one network after the other, so that only one is
    in memory; ``assets`` by name, complete when ``parts`` is through; ``libraries``: whose versions
    matter beside the usual ones; ``choices``: what else decides the result, as JSON. ``examples``
    runs the original library's whole pipeline, when the networks are done; without it, the bundle
    has no reference of it. ``weights`` and ``to_bfloat16``: see ``export_part``."""

    family: str
    variant: str
    source: Source
    settings: msgspec.Struct
    assets: dict[str, bytes]
    parts: Callable[[], Iterator[Part]]
    libraries: tuple[str, ...] = ()
    choices: object = None
    examples: Callable[[], Iterable[Example]] | None = None
    weights: Weights = "float32"
    to_bfloat16: Rewrite | None = None

    def made_by(self) -> dict[str, str]:
        return made_by() | {name: version(name) for name in self.libraries}


class Exported(msgspec.Struct, frozen=True):
    """What a finished network adds to the manifest."""

    network: Network
    measured: list[Measured]


def assemble(plan: Plan, output: Path, *, overwrite: bool, report: Report) -> Path:
    """Write a verified bundle to ``output``; gives ``output``.

    An interrupted export goes on with the first network that was not finished. Raises
    ``CheckpointError``, ``ExportError``, ``OutputError`` or ``UsageError``.
    """
    key = [plan.family, plan.variant, plan.source, plan.settings, plan.choices, plan.weights]
    key += [plan.to_bfloat16 is not None, plan.made_by(), plan.examples is None]
    with Workspace(key) as work:
        done = [_stage(work, part, plan, report) for part in plan.parts()]
        whole = work.stage(WHOLE, lambda folder: _write_examples(plan, folder, report))
        report("write")
        with new_pipeline(output, overwrite=overwrite) as folder:
            for stage in [*(path for path, _ in done), whole]:
                for name in FOLDERS[:2]:
                    shutil.copytree(stage / name, folder / name, dirs_exist_ok=True)
            for name, data in plan.assets.items():
                (folder / "assets" / name).write_bytes(data)
            references = (whole / REFERENCES).read_bytes()
            manifest = _manifest(
                plan,
                output,
                [one for _, one in done],
                msgspec.json.decode(references, type=list[PipelineReference]),
                folder,
            )
            (folder / MANIFEST).write_bytes(encode_manifest(manifest))
        work.clear()
    return output


def _stage(work: Workspace, part: Part, plan: Plan, report: Report) -> tuple[Path, Exported]:
    report(part.name)

    def make(folder: Path) -> None:
        for name in FOLDERS[:2]:
            (folder / name).mkdir()
        graphs, reference = folder / FOLDERS[0], folder / FOLDERS[1]
        network, measured = export_part(
            part, graphs, reference, weights=plan.weights, to_bfloat16=plan.to_bfloat16
        )
        (folder / EXPORTED).write_bytes(msgspec.json.encode(Exported(network, measured)))

    path = work.stage(part.name, make)
    gc.collect()  # the exporter leaves cycles that hold the weights
    return path, msgspec.json.decode((path / EXPORTED).read_bytes(), type=Exported)


def _write_examples(plan: Plan, folder: Path, report: Report) -> None:
    for name in FOLDERS[:2]:
        (folder / name).mkdir()
    references = []
    if plan.examples is not None:
        report(WHOLE)
    for example in plan.examples() if plan.examples is not None else ():
        file = f"{FOLDERS[1]}/{WHOLE}-{example.name}.npz"
        (folder / file).write_bytes(encode_run(example.run))
        references.append(PipelineReference(example.name, example.mode, example.options, file))
    (folder / REFERENCES).write_bytes(msgspec.json.encode(references))
    gc.collect()


def _manifest(
    plan: Plan,
    output: Path,
    exported: list[Exported],
    references: list[PipelineReference],
    folder: Path,
) -> PipelineManifest:
    return PipelineManifest(
        format=PIPELINE_FORMAT,
        name=output.name.removesuffix(SUFFIX),
        family=plan.family,
        variant=plan.variant,
        settings=msgspec.to_builtins(plan.settings),
        source=plan.source,
        networks=[one.network for one in exported],
        fidelity=[measured for one in exported for measured in one.measured],
        made_by=plan.made_by(),
        files=describe_files(folder, FOLDERS),
        references=references,
    )
