"""A graph as OpenVINO compiles it: from the bundle, or from what was compiled before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError, OutOfMemoryError
from pixelrt.manifest import Graph
from pixelrt.runtime.backends.onnxruntime import speaks_of_memory
from pixelrt.runtime.backends.openvino_cache import cache_key, kept_blob, worth_keeping
from pixelrt.runtime.backends.openvino_plugin import PROVIDER, Plugin, Settings, session_options
from pixelrt.runtime.backends.ort_assignment import require_whole

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Source:
    """What is compiled, by what, and how."""

    bundle: BundledNetwork
    graph: Graph
    plugin: Plugin
    settings: Settings

    def open(self) -> onnxruntime.InferenceSession:
        """The graph, from the cache where that is faster. Raises ``BackendError``."""
        if not self.settings.shape and worth_keeping(self.bundle, self.graph):
            blob = kept_blob(self._key(), self._compile)
            if blob is not None:
                try:
                    return self._session(blob)
                except BackendError:
                    pass  # OpenVINO refuses its own blob: the graph itself is still there
        return self._session(str(self.bundle.path(self.graph.file)))

    def fixed(self, shape: tuple[int, ...]) -> Source:
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
        import onnxruntime as ort

        versions = (self.plugin.version, ort.__version__)
        return cache_key(self.bundle, self.graph, self.settings.load_config(), versions)

    def _compile(self) -> bytes:
        import onnxruntime as ort

        path = str(self.bundle.path(self.graph.file))
        options = self._options()
        try:
            compiler = ort.ModelCompiler(options, path, embed_compiled_data_into_model=True)
            return bytes(compiler.compile_to_bytes())
        except Exception as exc:
            raise self._error(exc) from exc

    def _session(self, model: str | bytes) -> onnxruntime.InferenceSession:
        import onnxruntime as ort

        try:
            session = ort.InferenceSession(model, sess_options=self._options())
        # onnxruntime's exceptions share no base class below Exception
        except Exception as exc:
            raise self._error(exc) from exc
        require_whole(session, PROVIDER)
        return session

    def _options(self) -> onnxruntime.SessionOptions:
        options = session_options(self.plugin, self.settings)
        for name, length in zip(self.graph.inputs[0].shape, self.settings.shape, strict=False):
            if isinstance(name, str):
                options.add_free_dimension_override_by_name(name, length)
        return options

    def _error(self, exc: Exception) -> BackendError:
        what = f"{self.graph.file} of {self.bundle.root}"
        if speaks_of_memory(exc):
            return OutOfMemoryError(f"OpenVINO ran out of memory on {what}", found=str(exc))
        return BackendError(f"OpenVINO could not load {what}", found=str(exc))
