"""Which file becomes which: from the inputs and the output to a list of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelrt.errors import ImageError, UsageError
from pixelrt.runtime.images.read import FORMATS
from pixelrt.runtime.video.formats import (
    CONTAINERS,
    FALLBACK_SUFFIX,
    SUFFIXES,
    container_of,
    is_video,
)


@dataclass(frozen=True)
class Job:
    """Read ``source``, write ``target``; both are videos or both are pictures."""

    source: Path
    target: Path
    video: bool = False


def plan_jobs(
    inputs: tuple[Path, ...], output: Path | None, suffix: str | None, tag: str
) -> list[Job]:
    """Jobs for files and folders (recursive, structure kept).

    ``suffix``: the target's ending, ``None`` keeps the source's; it is for pictures. Without
    an ``output``, results stand beside their sources, with ``-tag`` in the name. Videos are
    taken where they are named themselves, not from folders: see ``videos_in_folders``.

    Raises ``UsageError`` where two results would have one name, or a result would replace
    its own source; ``ImageError`` for a missing input or a folder without images.
    """
    several = len(inputs) > 1 or any(path.is_dir() for path in inputs)
    if output is None:
        jobs = [
            _job(source, source.with_name(f"{source.stem}-{tag}{source.suffix}"), suffix)
            for path in inputs
            for source, _ in _sources(path)
        ]
    elif several or output.is_dir():
        if output.is_file():
            raise UsageError(
                f"{output} is a file", expected="a folder: there is more than one input"
            )
        jobs = [
            _job(source, output / place, suffix)
            for path in inputs
            for source, place in _sources(path, outside=output)
        ]
    else:
        (source, _), *_ = _sources(inputs[0])
        jobs = [_file_job(source, output, suffix)]
    _check_clashes(jobs)
    return jobs


def videos_in_folders(inputs: tuple[Path, ...]) -> list[Path]:
    """The videos that are passed over because only their folder was named.

    A folder of photographs often holds a clip or two, and a clip may take hours.
    """
    return [video for path in inputs if path.is_dir() for video in _videos_in(path)]


def _videos_in(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]


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
        videos = len(_videos_in(path))
        raise ImageError(
            f"there are no images in {path}",
            found=f"{videos} videos" if videos else "",
            expected=", ".join(sorted(FORMATS)),
            hint="name the videos themselves, such as " + str(path / "*.mp4") if videos else "",
        )
    for file in found:
        yield file, file.relative_to(path)


def _is_result(file: Path, folder: Path, output: Path | None) -> bool:
    """Whether ``file`` is a result of an earlier run into a folder below the input."""
    if output is None or output.resolve() == folder.resolve():
        return False
    return output.resolve() in file.resolve().parents


def _job(source: Path, target: Path, suffix: str | None) -> Job:
    """``target`` has the source's suffix still."""
    if not is_video(source):
        return Job(source, target.with_suffix(suffix) if suffix else target)
    _check_no_format(source, suffix)
    written = target.suffix.lower() in CONTAINERS
    return Job(source, target if written else target.with_suffix(FALLBACK_SUFFIX), video=True)


def _file_job(source: Path, output: Path, suffix: str | None) -> Job:
    """``output`` is a file that was named."""
    if is_video(source):
        _check_no_format(source, suffix)
        container_of(output)
        return Job(source, output, video=True)
    if not suffix and output.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{output} does not say which format to write",
            expected=f"a name that ends in one of {', '.join(sorted(FORMATS))}",
            hint="or pass --format",
        )
    return Job(source, output)


def _check_no_format(source: Path, suffix: str | None) -> None:
    if suffix:
        raise UsageError(
            f"--format is for pictures, and {source} is a video",
            hint="say the container by the ending of --output",
        )


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
