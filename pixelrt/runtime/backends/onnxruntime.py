"""onnxruntime on the CPU: the fallback that runs anywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.manifest import Graph, GraphRole
from pixelrt.plans.profiles import Profile
from pixelrt.runtime.backends.base import Array, BackendInfo, Offer, Sample
from pixelrt.runtime.backends.ort_assignment import CPU_PROVIDER
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.machine import processor_name, usable_cpus
from pixelrt.spec import TensorSpec

if TYPE_CHECKING:
    import onnxruntime

NO_PACKING = "session.disable_prepacking"
INSTALL_HINT = "pip install 'pixelrt[cpu]'"
MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "cuda failure 2:")
"""``CUDA failure 2`` is ``cudaErrorMemoryAllocation``."""


class OnnxRuntimeCpu:
    """All of onnxruntime's CPU kernels, fp32, one thread per usable processor.

    ``frugal``: weights stay in their file, in the type that they are stored in, and are made
    float32 as each one is needed; nothing is kept from one run to the next. That is slower.
    """

    name = "onnxruntime-cpu"

    def __init__(self, threads: int | None = None, *, frugal: bool = False) -> None:
        self.threads = threads
        self.frugal = frugal

    def missing(self) -> str:
        if importlib.util.find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed; {INSTALL_HINT}"
        return ""

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        import onnxruntime as ort

        info = BackendInfo(
            self.name,
            ort.__version__,
            processor_name(),
            bundle.component.precision,
            # Other kernels run: what was verified of the usual ones does not hold for them.
            engine="low memory" if self.frugal else "",
        )
        graph = bundle.component.graph(role)
        threads = self.threads or usable_cpus()
        frugal = self.frugal
        return (Offer(info, lambda: OnnxRuntimeSession(bundle, graph, info, threads, frugal)),)


class OnnxRuntimeSession(Closing):
    """One graph in an onnxruntime session on the CPU."""

    profiles: tuple[Profile, ...] = ()
    samples: tuple[Sample, ...] = ()

    def __init__(
        self,
        bundle: BundledNetwork,
        graph: Graph,
        info: BackendInfo,
        threads: int,
        frugal: bool = False,
    ) -> None:
        import onnxruntime as ort

        self.info = info
        self.inputs: tuple[TensorSpec, ...] = tuple(graph.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(graph.outputs)
        options = tile_options(ort)
        options.intra_op_num_threads = threads
        if frugal:
            # Folding would make float32 of half precision, which leaving out ConstantFolding alone
            # does not prevent (seen with 1.31); packing would make a second copy of all.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry(NO_PACKING, "1")
            options.enable_cpu_mem_arena = False
        try:
            self._session: onnxruntime.InferenceSession | None = ort.InferenceSession(
                str(bundle.path(graph.file)),
                sess_options=options,
                providers=[CPU_PROVIDER],
            )
        # onnxruntime's exceptions share no base class below Exception
        except Exception as exc:
            raise BackendError(
                f"onnxruntime could not load {graph.file} of {bundle.root}", found=str(exc)
            ) from exc

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise BackendError("this session is closed")
        return run_ort(self._session, self.outputs, feeds)

    def close(self) -> None:
        self._session = None


def run_ort(
    session: onnxruntime.InferenceSession,
    outputs: tuple[TensorSpec, ...],
    feeds: Mapping[str, Array],
) -> dict[str, Array]:
    """Run an onnxruntime session; its failures become those of ``Session.infer``."""
    names = [spec.name for spec in outputs]
    try:
        results = session.run(names, dict(feeds))
    except MemoryError as exc:
        raise OutOfMemoryError("onnxruntime ran out of memory") from exc
    # onnxruntime's exceptions share no base class below Exception
    except Exception as exc:
        raise run_error("onnxruntime", exc, feeds) from exc
    return dict(zip(names, results, strict=True))


def tile_options(ort: Any) -> onnxruntime.SessionOptions:
    """Options of a session that runs tiles, by onnxruntime's module."""
    options: onnxruntime.SessionOptions = ort.SessionOptions()
    options.log_severity_level = 3
    # Tiles differ in size from image to image: a recorded memory pattern would pin the
    # largest one for the life of the session.
    options.enable_mem_pattern = False
    return options


def speaks_of_memory(exc: Exception) -> bool:
    """Whether onnxruntime, which has no exception of its own for it, ran out of memory."""
    return isinstance(exc, MemoryError) or any(word in str(exc).lower() for word in MEMORY_WORDS)


def run_error(library: str, exc: Exception, feeds: Mapping[str, Array]) -> BackendError:
    """What a failed run raises, with the shapes that it was given."""
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
    if speaks_of_memory(exc):
        return OutOfMemoryError(f"{library} ran out of memory on {shapes}", found=str(exc))
    return BackendError(f"{library} failed on {shapes}", found=str(exc))
