"""The parts of the GPU measurement that pixelrt does alone: copies, plans, overlap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import timeline
from benchmarks.cases import Case
from benchmarks.isolated import run_isolated
from benchmarks.records import GpuRow
from benchmarks.timeline import TimelineCuda, as_cuda
from pixelrt.bench.scenes import scene
from pixelrt.bench.statistics import percentile, summarise
from pixelrt.bundle import Bundle, open_bundle
from pixelrt.errors import PixelrtError
from pixelrt.geometry import Size
from pixelrt.manifest import GraphRole
from pixelrt.plans.target import Flavour
from pixelrt.runtime.backends.select import offers_of
from pixelrt.runtime.backends.tensorrt import HERE, Machine, TensorRTBackend
from pixelrt.runtime.device.cuda import CopyKind, Cuda
from pixelrt.runtime.device.memory import HostPool, PageableMemoryWarning
from pixelrt.runtime.device.resources import DeviceBuffer, Event, Stream, settled
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions
from pixelrt.runtime.verify import check_all

FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")
ROLES: tuple[GraphRole, ...] = ("image", "core")
DIRECTIONS: tuple[CopyKind, ...] = ("h2d", "d2h")
COPIES = 20


# --- copies ---------------------------------------------------------------------------


def copy_rows(cuda: Cuda, size: int) -> Iterator[GpuRow]:
    """Pinned against pageable memory, both ways, timed by the device's events."""
    for kind in DIRECTIONS:
        for pinned in (True, False):
            name = f"{timeline.NAMES[kind]}, {'pinned' if pinned else 'pageable'}"
            device = cuda if pinned else as_cuda(timeline.PageableCuda(cuda))
            yield _copy_row(name, size, partial(copy_seconds, device, size, kind))


def _copy_row(name: str, size: int, measure: Callable[[], list[float]]) -> GpuRow:
    try:
        times = measure()
    except PixelrtError as exc:
        return GpuRow("copies", name, None, {}, "", words_of(exc))
    facts = {"GB/s": size / percentile(times, 50) / 1e9}
    return GpuRow("copies", name, summarise(times), facts, "", "")


def copy_seconds(cuda: Cuda, size: int, kind: CopyKind, count: int = COPIES) -> list[float]:
    """Seconds of each of ``count`` copies of ``size`` bytes, after one that does not count."""
    with ExitStack() as stack:
        enter = stack.enter_context
        pool = enter(HostPool(cuda))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PageableMemoryWarning)  # it is what is measured
            host = enter(pool.take(size))
        buffer, stream = enter(DeviceBuffer(cuda, size)), enter(Stream(cuda))
        start, end = enter(Event(cuda, timing=True)), enter(Event(cuda, timing=True))
        enter(settled(stream))
        stream.fill(buffer)
        host.array[:] = 1
        times = []
        for _ in range(count + 1):
            stream.record(start)
            if kind == "h2d":
                stream.copy_in(buffer, host.address, size)
            else:
                stream.copy_out(host.address, buffer, size)
            stream.record(end)
            end.synchronize()
            times.append(end.milliseconds_since(start) / 1e3)
        return times[1:]


# --- plans ----------------------------------------------------------------------------


def build_rows(case: Case, bundle: Bundle) -> Iterator[GpuRow]:
    """A plan for this GPU, built unless one fits. A row only where that failed."""
    try:
        reasons = run_isolated(build_plan, bundle.root)
    except PixelrtError as exc:
        reasons = [words_of(exc)]
    for reason in reasons:
        yield GpuRow("plan", case.name, None, {}, "", reason)


def build_plan(bundle: Path) -> list[str]:
    """What keeps this machine from having a plan; nothing where it has one now."""
    from pixelrt.cli.build import ensure_plan

    opened = open_bundle(bundle)
    ensure_plan(opened, shipped=False, quiet=True)
    reasons = []
    for flavour in FLAVOURS:
        try:
            if any(not one.refused for one in offers_of(TensorRTBackend(flavour), opened, "image")):
                return []
        except PixelrtError as exc:
            reasons.append(words_of(exc))
    return reasons


def fidelity_rows(
    case: Case, bundle: Bundle, flavour: Flavour, machine: Machine = HERE
) -> Iterator[GpuRow]:
    """The worst sample of every plan of a bundle."""
    backend = TensorRTBackend(flavour, machine=machine)
    for role in ROLES:
        name = f"{case.name}, {flavour}, {role} graph"
        try:
            offers = offers_of(backend, bundle, role)
        except PixelrtError as exc:
            yield GpuRow("fidelity", name, None, {}, "", words_of(exc))
            continue
        for offer in offers:
            label = f"{name}, {offer.info.precision} {offer.info.engine}"
            try:
                with offer.open() as session:
                    checks = list(check_all(bundle, session, role))
            except PixelrtError as exc:
                yield GpuRow("fidelity", label, None, {}, "", words_of(exc))
                continue
            worst = min(checks, key=lambda check: check.comparison.psnr)
            facts = {"dB": worst.comparison.psnr, "max abs": worst.comparison.max_abs}
            passed = all(check.passed for check in checks)
            verdict = (
                f"{len(checks)} samples, {'all pass' if passed else 'FAILED'} ({worst.limits})"
            )
            yield GpuRow("fidelity", label, None, facts, verdict, "")


# --- overlap --------------------------------------------------------------------------


def timeline_row(
    case: Case, bundle: Bundle, flavour: Flavour, machine: Machine = HERE
) -> tuple[GpuRow, list[timeline.Span]]:
    """A large image in tiles with an event around every piece of work."""
    name = f"{case.name}, {flavour}"
    try:
        spans = timeline_of(bundle, case.size, flavour, machine)
    except PixelrtError as exc:
        return GpuRow("timeline", name, None, {}, "", words_of(exc)), []
    return GpuRow("timeline", name, None, timeline.overlap(spans), "one image in tiles", ""), spans


def timeline_of(
    bundle: Bundle, size: Size, flavour: Flavour, machine: Machine = HERE
) -> list[timeline.Span]:
    logged = TimelineCuda(machine.cuda())
    machine = replace(machine, cuda=lambda: as_cuda(logged))
    backend = TensorRTBackend(flavour, machine=machine)
    image, options = scene(size), RunOptions()
    with ImageModel(bundle, backends=(backend,)) as model:
        for _ in range(3):  # allocate, record graphs, replay them
            model.run_array(image, options)
        logged.begin()
        try:
            model.run_array(image, options)
        finally:
            spans = logged.end()
    return spans


def words_of(exc: PixelrtError) -> str:
    """One line for a table."""
    return " ".join(f"{exc.message}; {exc.found}".split()).rstrip("; ")
