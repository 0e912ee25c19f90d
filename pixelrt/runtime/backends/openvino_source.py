"""A graph as OpenVINO compiles it: from the bundle, or from what was compiled before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.manifest import Graph
from pixelrt.runtime.backends.base import Array
from pixelrt.runtime.backends.onnxruntime import run_ort, speaks_of_memory
from pixelrt.runtime.backends.openvino_cache import cache_key, kept_blob, worth_keeping
from pixelrt.runtime.backends.openvino_plugin import PROVIDER, Plugin, Settings, session_options
from pixelrt.runtime.backends.ort_assignment import require_whole
from pixelrt.spec import TensorSpec

if TYPE_CHECKING:
    import onnxruntime


class Engine(Protocol):
    """A compiled graph; thread-safe."""

    def run(self, outputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As ``Session.infer``."""
        ...


@dataclass(frozen=True)
class Source(ABC):
    """What is compiled, and how."""

    bundle: BundledNetwork
    graph: Graph
    settings: Settings

    def open(self) -> Engine:
        """The graph, from the cache where that is faster. Raises ``BackendError``."""
        if not self.settings.shape and worth_keeping(self.bundle, self.graph):
            blob = kept_blob(self._key(), self._compile)
            if blob is not None:
                try:
                    return self._load(blob)
                except BackendError:
                    pass  # OpenVINO refuses its own blob: the graph itself is still there
        return self._load(self.path)

    @property
    def path(self) -> str:
        return str(self.bundle.path(self.graph.file))

    def fixed(self, shape: tuple[int, ...]) -> Self:
        """The same graph for one shape of its only input."""
        return replace(self, settings=replace(self.settings, shape=shape))

    @property
    def fixed_seconds(self) -> float:
        """What compiling for one shape takes, roughly: Swin2SR light 0.7 to 1.6 s, SRGAN 0.2 s,
        U-Net-256 0.4 s on two cores."""
        files = self.bundle.files
        weights = sum(files[name].bytes for name in self.graph.data)
        return 7.5e-6 * files[self.graph.file].bytes + 1.5e-9 * weights

    def _key(self) -> str:
        settings = f"{self.settings.load_config()} {self.settings.kept}"
        return cache_key(self.bundle, self.graph, settings, self._versions())

    @abstractmethod
    def _versions(self) -> tuple[str, ...]:
        """Of all that decides what is in a compiled graph."""

    @abstractmethod
    def _compile(self) -> bytes:
        """The compiled graph as a file holds it. Raises ``BackendError``."""

    @abstractmethod
    def _load(self, model: str | bytes) -> Engine:
        """A graph by its path, or a compiled one. Raises ``BackendError``."""

    def _error(self, exc: Exception) -> BackendError:
        what = f"{self.graph.file} of {self.bundle.root}"
        if speaks_of_memory(exc):
            return OutOfMemoryError(f"OpenVINO ran out of memory on {what}", found=str(exc))
        return BackendError(f"OpenVINO could not load {what}", found=str(exc))


@dataclass(frozen=True)
class OrtEngine:
    """A session of onnxruntime, all of it computed by OpenVINO."""

    session: onnxruntime.InferenceSession

    def run(self, outputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> dict[str, Array]:
        return run_ort(self.session, outputs, feeds)


@dataclass(frozen=True)
class PluginSource(Source):
    """Through onnxruntime's plugin."""

    plugin: Plugin

    def _versions(self) -> tuple[str, ...]:
        import onnxruntime as ort

        return (self.plugin.version, ort.__version__)

    def _compile(self) -> bytes:
        import onnxruntime as ort

        options = self._options()
        try:
            compiler = ort.ModelCompiler(options, self.path, embed_compiled_data_into_model=True)
            return bytes(compiler.compile_to_bytes())
        except Exception as exc:
            raise self._error(exc) from exc

    def _load(self, model: str | bytes) -> OrtEngine:
        import onnxruntime as ort

        try:
            session = ort.InferenceSession(model, sess_options=self._options())
        # onnxruntime's exceptions share no base class below Exception
        except Exception as exc:
            raise self._error(exc) from exc
        require_whole(session, PROVIDER)
        return OrtEngine(session)

    def _options(self) -> onnxruntime.SessionOptions:
        options = session_options(self.plugin, self.settings)
        for name, length in zip(self.graph.inputs[0].shape, self.settings.shape, strict=False):
            if isinstance(name, str):
                options.add_free_dimension_override_by_name(name, length)
        return options
