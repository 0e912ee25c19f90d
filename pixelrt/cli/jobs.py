"""Which file becomes which: from the inputs and the output to a list of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelrt.errors import ImageError, UsageError
from pixelrt.runtime.images.read import FORMATS


@dataclass(frozen=True)
class Job:
    """Read ``source``, write ``target``."""

    source: Path
    target: Path


def plan_jobs(
    inputs: tuple[Path, ...], output: Path | None, suffix: str | None, tag: str
) -> list[Job]:
    """Jobs for files and folders (recursive, structure kept).

    ``suffix``: the target's ending, ``None`` keeps the source's. Without an ``output``,
    results stand beside their sources, with ``-tag`` in the name.

    Raises ``UsageError`` where two results would have one name, or a result would replace
    its own source; ``ImageError`` for a missing input or a folder without images.
    """
    several = len(inputs) > 1 or any(path.is_dir() for path in inputs)
    if output is None:
        jobs = [
            Job(source, _ending(source.with_name(f"{source.stem}-{tag}{source.suffix}"), suffix))
            for path in inputs
            for source, _ in _sources(path)
        ]
    elif several or output.is_dir():
        if output.is_file():
            raise UsageError(
                f"{output} is a file", expected="a folder: there is more than one input"
            )
        jobs = [
            Job(source, _ending(output / place, suffix))
            for path in inputs
            for source, place in _sources(path, outside=output)
        ]
    else:
        (source, _), *_ = _sources(inputs[0])
        jobs = [Job(source, _file_target(output, suffix))]
    _check_clashes(jobs)
    return jobs


def _sources(path: Path, outside: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Images under ``path`` with their place below it, in name order."""
    if not path.exists():
        raise ImageError(f"there is no {path}", expected="an image file or a folder of images")
    if not path.is_dir():
        yield path, Path(path.name)
        return
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in FORMATS and file.is_file() and not _is_result(file, path, outside)
    ]
    if not found:
        raise ImageError(f"there are no images in {path}", expected=", ".join(sorted(FORMATS)))
    for file in found:
        yield file, file.relative_to(path)


def _is_result(file: Path, folder: Path, output: Path | None) -> bool:
    """Whether ``file`` is a result of an earlier run into a folder below the input."""
    if output is None or output.resolve() == folder.resolve():
        return False
    return output.resolve() in file.resolve().parents


def _ending(path: Path, suffix: str | None) -> Path:
    return path.with_suffix(suffix) if suffix else path


def _file_target(output: Path, suffix: str | None) -> Path:
    if not suffix and output.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{output} does not say which format to write",
            expected=f"a name that ends in one of {', '.join(sorted(FORMATS))}",
            hint="or pass --format",
        )
    return output


def _check_clashes(jobs: list[Job]) -> None:
    taken: dict[Path, Path] = {}
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        target = job.target.resolve()
        if target in taken:
            raise UsageError(
                f"{job.source} and {taken[target]} would both be written to {job.target}",
                hint="rename one, run them separately, or leave --format out",
            )
        if target in sources:
            raise UsageError(
                f"{job.target} is itself an input", hint="choose another output; inputs are kept"
            )
        taken[target] = job.source
