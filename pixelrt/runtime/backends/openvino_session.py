"""A session of OpenVINO: for any shape at first, for one shape where that pays."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError
from pixelrt.fidelity import psnr
from pixelrt.manifest import GraphRole
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.base import Array, BackendInfo, Sample, Session
from pixelrt.runtime.backends.openvino_source import Engine, Source
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.verify import limits_of, outcomes, verified_before
from pixelrt.spec import TensorSpec

FULL_PSNR = {"core": 100.0, "image": 75.0, "network": 100.0}
"""Nearer to PyTorch in float32 no lower precision comes: float16 gives 62 to 77 dB, float32
from 123 dB. The second figure is the same after rounding to levels (see ``verify.py``)."""

FIXED_GAIN = 0.1
"""Share of the time that a graph compiled for one shape saves: 14 % for Swin2SR light at
128x128, 10 % for SRGAN, 7 % for the demonstration network, 3 % for U-Net-256."""

SHAPES_WATCHED = 64
BLOCK = 1 << 20


def open_openvino(
    source: Source, info: BackendInfo, one_shape_share: float | None = None
) -> OpenVinoSession:
    """A session that really computes in ``info.precision``. Raises ``BackendError``."""
    session = OpenVinoSession(source, info, one_shape_share)
    role, bundle = source.graph.role, source.bundle
    if info.precision != "float32" and not verified_before(bundle, info, role):
        try:
            check_precision(bundle, session, role)
        except BaseException:
            session.close()
            raise
    return session


def check_precision(bundle: BundledNetwork, session: Session, role: GraphRole) -> None:
    """Raise ``BackendError`` where results are as exact as only float32 makes them.

    OpenVINO takes a precision as a hint, and computes in float32 where it cannot follow.
    """
    (outcome,) = outcomes(bundle, session, role, smallest=True)
    found = outcome.comparison
    if found.psnr >= FULL_PSNR[role]:
        raise BackendError(
            f"OpenVINO does not compute in {session.info.precision} here",
            found=f"{found} on sample {outcome.name}, which only float32 gives",
            hint="use --precision float32",
        )


class OpenVinoSession(Closing):
    """One graph, all of it computed by OpenVINO. ``infer`` is thread-safe.

    A graph compiled for one shape is faster but takes seconds to compile. It is made once the
    runs at that shape have cost so much that it would have paid, or where memory counts
    (``infer_one_shape``), takes the place of the one for any shape (two would hold twice the
    memory), and goes when another shape comes.
    """

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(
        self, source: Source, info: BackendInfo, one_shape_share: float | None = None
    ) -> None:
        self.info = info
        self.one_shape_share = info.memory_share if one_shape_share is None else one_shape_share
        self.inputs: tuple[TensorSpec, ...] = tuple(source.graph.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(source.graph.outputs)
        self._source: Source | None = source
        self._session: Engine | None = source.open()
        self._shape: tuple[int, ...] = ()
        self._spent: dict[tuple[int, ...], float] = {}
        self._asked: set[tuple[int, ...]] = set()
        self._lock = threading.Lock()
        self._fixing = threading.Lock()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        shape = feeds[self.inputs[0].name].shape
        session = self._session_for(shape)
        start = time.perf_counter()
        try:
            results = session.run(self.outputs, feeds)
        except BackendError:
            self._drop(session)
            raise
        del session  # its memory is to go before another one takes its place
        if self._pays(shape, time.perf_counter() - start):
            self._fix(shape, feeds, results)
        return results

    def infer_one_shape(
        self, feeds: Mapping[str, Array], corner: Mapping[str, Array], same: tuple[slice, ...]
    ) -> dict[str, Array]:
        shape, name = feeds[self.inputs[0].name].shape, self.outputs[0].name
        if shape in self._asked:
            return self.infer(feeds)
        with self._fixing:
            verified = self.infer(corner)
            with self._lock:
                source = self._source
                if source is None:
                    raise BackendError("this session is closed")
                self._session = None
            fixed = source.fixed(shape).open()
            found = fixed.run(self.outputs, feeds)
            if not self._agree(source, verified[name][same], found[name][same]):
                raise BackendError(
                    f"{self.info} gives other results where it compiles for {shape} alone"
                )
            with self._lock:
                self._session, self._shape = fixed, shape
                self._asked.add(shape)
        return found

    def close(self) -> None:
        with self._lock:
            self._source = self._session = None

    def _session_for(self, shape: tuple[int, ...]) -> Engine:
        with self._lock:
            if self._source is None:
                raise BackendError("this session is closed")
            # the one for any shape would take more memory than there is for a shape asked for
            wanted = shape if shape in self._asked else ()
            if self._session is None or self._shape not in (wanted, shape):
                self._session = None
                source = self._source.fixed(shape) if wanted else self._source
                self._session, self._shape = source.open(), wanted
            return self._session

    def _drop(self, session: Engine) -> None:
        """After a failed allocation OpenVINO fails at every size: the next run opens anew."""
        with self._lock:
            if self._session is session:
                self._session = None

    def _pays(self, shape: tuple[int, ...], seconds: float) -> bool:
        """Whether runs at ``shape`` have cost so much by now that compiling for it and one run
        to compare would have paid."""
        with self._lock:
            if self._source is None or self._shape == shape:
                return False
            if len(self._spent) >= SHAPES_WATCHED:
                self._spent.clear()
            self._spent[shape] = spent = self._spent.get(shape, 0.0) + seconds
            return spent * FIXED_GAIN >= self._source.fixed_seconds + seconds

    def _fix(
        self, shape: tuple[int, ...], feeds: Mapping[str, Array], results: dict[str, Array]
    ) -> None:
        """Take a graph compiled for ``shape`` if it gives the ``results`` of the verified one."""
        source = self._source
        if source is None or not self._fixing.acquire(blocking=False):
            return
        try:
            with self._lock:
                self._session = None
                self._spent[shape] = 0.0
            fixed = source.fixed(shape).open()
            name, found = self.outputs[0].name, fixed.run(self.outputs, feeds)
            if self._agree(source, results[name], found[name]):
                with self._lock:
                    self._session, self._shape = fixed, shape
                    return
        except BackendError:
            pass  # it is only faster: the one for any shape is opened again
        finally:
            self._fixing.release()
        with self._lock:
            self._spent[shape] = float("-inf")

    def _agree(self, source: Source, verified: Array, found: Array) -> bool:
        limits = limits_of(source.bundle, self.info, source.graph.role)
        peak = 255 if verified.dtype == np.uint8 else 1
        max_abs, mean_square = difference(verified, found)
        least_psnr = psnr(mean_square, peak)
        return max_abs <= limits.max_abs * peak and least_psnr >= limits.min_psnr


def difference(one: Array, other: Array) -> tuple[float, float]:
    """(largest, mean square) difference of two arrays of one shape; NaN counts as infinite.

    In blocks: a tile's result can be as large as the memory that is left.
    """
    if one.shape != other.shape:
        return float("inf"), float("inf")
    left, right = one.ravel(), other.ravel()
    largest = total = 0.0
    for start in range(0, left.size, BLOCK):
        error = left[start : start + BLOCK].astype(np.float32) - right[start : start + BLOCK]
        error = np.abs(np.where(np.isfinite(error), error, np.inf))
        largest = max(largest, float(error.max()))
        total += float(np.square(error, dtype=np.float64).sum())
    return largest, total / max(1, left.size)
