"""OpenVINO on the CPU, through its plugin for onnxruntime."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.manifest import Graph, GraphRole
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.base import Array, BackendInfo, Offer, Sample, Session
from pixelrt.runtime.backends.onnxruntime import MEMORY_WORDS, run_ort
from pixelrt.runtime.backends.openvino_cache import cache_key, kept_blob, worth_keeping
from pixelrt.runtime.backends.openvino_plugin import (
    Plugin,
    Settings,
    check_assignment,
    load_plugin,
    missing_packages,
    session_options,
)
from pixelrt.runtime.machine import processor_flags, processor_name, usable_cpus
from pixelrt.runtime.verify import check_sample, samples_for, verified_before
from pixelrt.spec import TensorSpec

if TYPE_CHECKING:
    import onnxruntime

FULL_PSNR = {"core": 100.0, "image": 75.0}
"""Nearer to PyTorch in float32 no lower precision comes: float16 gives 62 to 77 dB, float32
from 123 dB. The second figure is the same after rounding to levels (see ``verify.py``)."""


class OnnxRuntimeOpenVino:
    """OpenVINO's CPU kernels, in the fastest precision that the reference outputs allow."""

    name = "onnxruntime-openvino"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def missing(self) -> str:
        return missing_packages()

    def offers(self, bundle: Bundle, role: GraphRole) -> tuple[Offer, ...]:
        import onnxruntime as ort

        plugin = load_plugin()
        graph = bundle.component.graph(role)
        version = f"{plugin.version} in onnxruntime {ort.__version__}"
        offers = []
        for precision in precisions(plugin.capabilities, processor_flags()):
            info = BackendInfo(self.name, version, processor_name(), precision)
            settings = Settings(precision, self.threads or usable_cpus())
            source = Source(bundle, graph, plugin, settings)
            offers.append(Offer(info, partial(open_openvino, source, info)))
        return tuple(offers)


def precisions(capabilities: frozenset[str], flags: frozenset[str]) -> tuple[str, ...]:
    """What this processor computes, fastest first.

    ``capabilities``: OpenVINO's, which name all that it can compute in some way: bfloat16
    everywhere, float16 also where AVX-512 converts it to float32 for every product. On such
    a processor (AMX without float16) SRGAN took 0.60 s in float16, 0.32 s in float32 and
    0.05 s in bfloat16. ``flags``: the kernel's, which tell whether there are products of
    that precision; where it does not tell, float32 goes first.
    """
    fast: list[str] = []
    slow: list[str] = []
    if "FP16" in capabilities:
        (fast if "amx_fp16" in flags else slow).append("float16")
    if "BF16" in capabilities:
        native = not flags.isdisjoint({"amx_bf16", "avx512_bf16"})
        (fast if native else slow).append("bfloat16")
    return (*fast, "float32", *slow)


@dataclass(frozen=True)
class Source:
    """What is compiled, by what, and how."""

    bundle: Bundle
    graph: Graph
    plugin: Plugin
    settings: Settings

    def open(self) -> onnxruntime.InferenceSession:
        """The graph, from the cache where that is faster."""
        if worth_keeping(self.bundle, self.graph):
            blob = kept_blob(self._key(), self._compile)
            if blob is not None:
                try:
                    return self._session(blob)
                except BackendError:
                    pass  # OpenVINO refuses its own blob: the graph itself is still there
        return self._session(str(self.bundle.path(self.graph.file)))

    def _key(self) -> str:
        import onnxruntime as ort

        versions = (self.plugin.version, ort.__version__)
        return cache_key(self.bundle, self.graph, self.settings.load_config(), versions)

    def _compile(self) -> bytes:
        import onnxruntime as ort

        path = str(self.bundle.path(self.graph.file))
        options = session_options(self.plugin, self.settings)
        try:
            compiler = ort.ModelCompiler(options, path, embed_compiled_data_into_model=True)
            return bytes(compiler.compile_to_bytes())
        except Exception as exc:
            raise self._error(exc) from exc

    def _session(self, model: str | bytes) -> onnxruntime.InferenceSession:
        import onnxruntime as ort

        try:
            session = ort.InferenceSession(
                model, sess_options=session_options(self.plugin, self.settings)
            )
        # onnxruntime's exceptions share no base class below Exception
        except Exception as exc:
            raise self._error(exc) from exc
        check_assignment(session)
        return session

    def _error(self, exc: Exception) -> BackendError:
        what = f"{self.graph.file} of {self.bundle.root}"
        if isinstance(exc, MemoryError) or any(word in str(exc).lower() for word in MEMORY_WORDS):
            return OutOfMemoryError(f"OpenVINO ran out of memory on {what}", found=str(exc))
        return BackendError(f"OpenVINO could not load {what}", found=str(exc))


def open_openvino(source: Source, info: BackendInfo) -> OpenVinoSession:
    """A session that really computes in ``info.precision``. Raises ``BackendError``."""
    session = OpenVinoSession(source, info)
    role, bundle = source.graph.role, source.bundle
    if info.precision != "float32" and not verified_before(bundle, info, role):
        try:
            check_precision(bundle, session, role)
        except BaseException:
            session.close()
            raise
    return session


def check_precision(bundle: Bundle, session: Session, role: GraphRole) -> None:
    """Raise ``BackendError`` where results are as exact as only float32 makes them.

    OpenVINO takes a precision as a hint, and computes in float32 where it cannot follow.
    """
    sample = min(samples_for(bundle, session), key=lambda sample: sample.pixels.size)
    found = check_sample(bundle, session, role, sample).comparison
    if found.psnr >= FULL_PSNR[role]:
        raise BackendError(
            f"OpenVINO does not compute in {session.info.precision} here",
            found=f"{found} on sample {sample.name}, which only float32 gives",
            hint="use --precision float32",
        )


class OpenVinoSession:
    """One graph in onnxruntime, all of it computed by OpenVINO. ``infer`` is thread-safe."""

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(self, source: Source, info: BackendInfo) -> None:
        self.info = info
        self.inputs: tuple[TensorSpec, ...] = tuple(source.graph.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(source.graph.outputs)
        self._source: Source | None = source
        self._session: onnxruntime.InferenceSession | None = source.open()
        self._opening = threading.Lock()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._opened()
        try:
            return run_ort(session, self.outputs, feeds)
        except BackendError:
            self._drop(session)
            raise

    def close(self) -> None:
        with self._opening:
            self._source = self._session = None

    def _opened(self) -> onnxruntime.InferenceSession:
        with self._opening:
            if self._source is None:
                raise BackendError("this session is closed")
            if self._session is None:
                self._session = self._source.open()
            return self._session

    def _drop(self, session: onnxruntime.InferenceSession) -> None:
        """After a failed allocation OpenVINO fails at every size: the next run opens anew."""
        with self._opening:
            if self._session is session:
                self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
