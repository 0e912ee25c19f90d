"""One harness for the command and the scripts: a bundle, a backend, sizes and tiles."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelrt.bench.machine import read_clocks
from pixelrt.bench.reference import (
    LIMIT_PIXELS,
    ROUTE_NAME,
    Compared,
    Route,
    compare_output,
    open_reference,
    reference_route,
)
from pixelrt.bench.resources import NO_DEVICE_METHOD, Peak, device_peak, host_peak
from pixelrt.bench.scenes import scene, write_scene
from pixelrt.bench.schema import (
    STAGES,
    Clocks,
    Fidelity,
    Memory,
    Plan,
    Result,
    SampleFidelity,
    Subject,
    Warmup,
)
from pixelrt.bench.stages import StageClock, TimedBackend
from pixelrt.bench.statistics import judge, summarise
from pixelrt.bench.steady import Effort, Measured, measure, warm_up
from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, FidelityError
from pixelrt.geometry import Size, TilePlan
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import Backend, Session
from pixelrt.runtime.backends.select import BACKENDS, Choice, open_session
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.images.encode import write_picture
from pixelrt.runtime.images.read import read_picture
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.planning import RunOptions
from pixelrt.runtime.verify import check_all, limits_of

MEGA = 1_000_000
NOT_COMPARED = Compared(None, None, None, None, "nothing, as asked")


@dataclass(frozen=True)
class Case:
    """What is put through a model: an image of ``size``, cut as ``options`` say."""

    size: Size
    options: RunOptions
    source: Path | None = None
    """The photograph to make it from; the shipped one where it is left out."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A result with the pictures behind it. ``output`` and ``expected`` are the region of the
    output that was compared, or the whole output."""

    result: Result
    image: NDArray[np.uint8]
    output: NDArray[np.uint8]
    compared: Compared


@dataclass(frozen=True)
class _Run:
    """What the measured runs left behind."""

    warmup: Warmup
    measured: Measured[dict[str, float]]
    host: Peak
    device: Peak | None
    clocks_before: Clocks | None
    clocks_after: Clocks | None


class Bench(Closing):
    """A bundle on one backend and precision, to be measured at any number of sizes.

    ``route``: what outputs are held against; the bundle's float32 route where it is left
    out. ``samples``: also run the bundle's reference samples on the float graph.
    ``reference_pixels``: how much of an output is compared, 0 for nothing. Raises what
    ``open_session`` raises where the backend cannot be used. A context manager.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        *,
        backends: tuple[Backend, ...] = BACKENDS,
        route: Route | None = None,
        samples: bool = True,
        reference_pixels: int = LIMIT_PIXELS,
        clock: StageClock | None = None,
    ) -> None:
        self.bundle = bundle
        self.clock = clock or StageClock()
        self._reference_pixels = reference_pixels
        with ExitStack() as stack:
            timed = tuple(TimedBackend(backend, self.clock) for backend in backends)
            self.model = stack.enter_context(
                ImageModel(
                    bundle, backend=choice.backend, precision=choice.precision, backends=timed
                )
            )
            self.session: Session = self.model.session("image")
            self._samples = _sample_fidelity(bundle, self.session, backends) if samples else []
            self._route = route or reference_route(stack.enter_context(open_reference(bundle)))
            self._resources = stack.pop_all()

    def plan(self, case: Case) -> TilePlan:
        """How the image of ``case`` is cut; raises as ``run`` does."""
        options = {name: getattr(case.options, name) for name in RunOptions.__dataclass_fields__}
        return self.model.plan(case.size.height, case.size.width, **options)

    def run(self, case: Case, effort: Effort) -> Outcome:
        """Warm up, measure, and hold the last output against the reference.

        Raises ``UsageError`` or ``OutOfMemoryError`` where the image cannot be cut that way.
        """
        plan = self.plan(case)
        with tempfile.TemporaryDirectory(prefix="pixelrt-bench-") as folder:
            source, target = Path(folder, "input.jpg"), Path(folder, "output.png")
            write_scene(source, scene(case.size, case.source))
            run = self._measure(source, target, case.options, effort)
            image, output = read_picture(source).pixels, read_picture(target).pixels
        compared = self._compare(image, output)
        result = self._result(case, plan, run, compared)
        return Outcome(result, image, output, compared)

    def close(self) -> None:
        self._resources.close()

    def _measure(self, source: Path, target: Path, options: RunOptions, effort: Effort) -> _Run:
        def trip() -> dict[str, float]:
            return self._trip(source, target, options)

        with host_peak() as host, device_peak(self.session.info.name) as device:
            warmup = warm_up(trip, effort.warmup, self.clock.now)
            before = read_clocks()
            measured = measure(trip, effort, self.clock.now)
            after = read_clocks()
        return _Run(warmup, measured, host, device, before, after)

    def _trip(self, source: Path, target: Path, options: RunOptions) -> dict[str, float]:
        """One image from file to file; seconds of each stage."""
        clock = self.clock
        clock.start("decode")
        picture = read_picture(source)
        clock.enter("copy_in")
        result = self.model.run_picture(picture, options, clock.tiles_done)
        clock.enter("encode")
        write_picture(target, result)
        return clock.finish()

    def _compare(self, image: NDArray[np.uint8], output: NDArray[np.uint8]) -> Compared:
        if not self._reference_pixels:
            return NOT_COMPARED
        manifest, limit = self.bundle.manifest, self._reference_pixels
        return compare_output(manifest, image, output, self._route, limit)

    def _result(self, case: Case, plan: TilePlan, run: _Run, compared: Compared) -> Result:
        info, trips = self.session.info, run.measured.values
        whole = [sum(trip.values()) for trip in trips]
        inner = [trip["copy_in"] + trip["compute"] + trip["copy_out"] for trip in trips]
        latency, stability = summarise(whole), judge(whole, warmed_up=run.warmup.steady)
        megapixels = case.size.pixels / MEGA
        high = case.size.scaled(self.model.scale)
        return Result(
            backend=info.name,
            backend_version=info.version,
            precision=info.precision,
            engine=info.engine or (info.arithmetic if info.kept else ""),
            device=info.device,
            verdict=self.model.fidelity["image"],
            notes=list(getattr(self.model, "notes", ())),
            passed_over=[str(one) for one in self.model.passed_over],
            width=case.size.width,
            height=case.size.height,
            output_width=high.width,
            output_height=high.height,
            plan=_plan(plan, case.options),
            warmup=run.warmup,
            latency=latency,
            model=summarise(inner),
            stages={stage: summarise([trip[stage] for trip in trips]) for stage in STAGES},
            images_per_second=1 / latency.p50,
            megapixels_per_second=megapixels / latency.p50,
            seconds_per_megapixel=latency.p50 / megapixels,
            memory=_memory(run.host, run.device),
            clocks_before=run.clocks_before,
            clocks_after=run.clocks_after,
            fidelity=self._fidelity(case, compared),
            stable=stability.stable,
            spread=stability.spread,
            reasons=list(stability.reasons),
            samples=whole,
        )

    def _fidelity(self, case: Case, compared: Compared) -> Fidelity:
        limits = limits_of(self.bundle, self.session.info, "image")
        exact = case.options.halo == "exact" and compared.psnr is not None
        limit = limits.min_psnr if exact else None
        close = (compared.max_levels or 0) / 255 <= limits.max_abs
        return Fidelity(
            psnr=compared.psnr,
            max_levels=compared.max_levels,
            limit=limit,
            passed=limit is None or (close and (compared.psnr or 0.0) >= limit),
            compared_pixels=compared.pixels,
            reference=ROUTE_NAME,
            note=compared.note,
            samples=self._samples,
        )


def subject_of(bundle: Bundle) -> Subject:
    manifest = bundle.manifest
    source = manifest.source
    weights = source.name if source.kind == "checkpoint" else f"random, seed {source.seed}"
    scale = manifest.image.scale
    return Subject(manifest.name, manifest.family, manifest.variant, weights, scale, bundle.sha256)


def _sample_fidelity(
    bundle: Bundle, image: Session, backends: tuple[Backend, ...]
) -> list[SampleFidelity]:
    """The bundle's samples on the float graph, where rounding to levels hides nothing; on the
    image graph where the backend has no float graph, such as a lone plan."""
    choice = Choice(image.info.name, image.info.precision)
    try:
        opened = open_session(bundle, "core", choice, backends)
    except (BackendError, FidelityError):
        return _samples_of(bundle, image, "image")
    with opened.session as session:
        return _samples_of(bundle, session, "core")


def _samples_of(bundle: Bundle, session: Session, role: GraphRole) -> list[SampleFidelity]:
    return [
        SampleFidelity(
            check.sample.name,
            role,
            check.comparison.psnr,
            check.comparison.max_abs,
            check.passed,
        )
        for check in check_all(bundle, session, role)
    ]


def _plan(plan: TilePlan, options: RunOptions) -> Plan:
    asked = f"tile {options.tile}, halo {options.halo}"
    tile = plan.tile
    return Plan(asked, len(plan), tile.width, tile.height, plan.halo, plan.work)


def _memory(host: Peak, device: Peak | None) -> Memory:
    if device is None:
        return Memory(host.value, host.before, host.method, None, NO_DEVICE_METHOD)
    return Memory(host.value, host.before, host.method, device.value or None, device.method)
