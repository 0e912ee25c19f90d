"""OpenVINO on the CPU: through its plugin for onnxruntime, or through its own package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError
from pixelrt.manifest import OPENVINO, OPENVINO_BFLOAT16, OPENVINO_LOW, Graph, GraphRole
from pixelrt.runtime.backends.base import BackendInfo, Offer
from pixelrt.runtime.backends.openvino_package import (
    ENDS,
    SUMS,
    PackageSource,
    load_package,
    missing_package,
)
from pixelrt.runtime.backends.openvino_plugin import Settings, load_plugin, missing_packages
from pixelrt.runtime.backends.openvino_session import open_openvino
from pixelrt.runtime.backends.openvino_source import PluginSource, Source
from pixelrt.runtime.machine import processor_flags, processor_name, usable_cpus

MEMORY_SHARES = {"float32": 0.75, "bfloat16": 0.6, "float16": 0.6}
"""Peak per pixel, of what plain onnxruntime takes, with a margin. Measured in float32:
Swin2SR light 0.65, SRGAN 0.63, the demonstration network 0.63, U-Net-256 0.49, ResNet-9 0.27;
in bfloat16 0.42, 0.34, 0.32, 0.52, 0.17."""

ONE_SHAPE_SHARES = {"float32": 0.28, "bfloat16": 0.17}
"""The same of networks of tokens, compiled for one shape: memory is laid out before the run and
used again. Measured for Swin2SR classical and light: in float32 0.23 and 0.21 (0.60 and 0.51 for
any shape), in bfloat16 0.13 and 0.12, with the first and last convolution in float32 0.14 and 0.13
(0.28 to 0.38). Networks of convolutions would save little work by larger tiles."""

SourceOf = Callable[[BundledNetwork, Graph, Settings], Source]


class _OpenVinoCpu:
    """OpenVINO's CPU kernels, in the fastest precision that the reference outputs allow."""

    name: str
    typed: frozenset[str] = frozenset()
    mixes = False
    """Whether parts of a graph can stay in float32."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def _offers(
        self,
        bundle: BundledNetwork,
        role: GraphRole,
        version: str,
        capabilities: frozenset[str],
        source_of: SourceOf,
    ) -> tuple[Offer, ...]:
        offers = []
        one_shape = ONE_SHAPE_SHARES if _of_tokens(bundle) else {}
        for precision, kept in self._arithmetics(bundle, capabilities):
            memory = "float32" if kept == SUMS else precision
            info = BackendInfo(
                self.name,
                version,
                processor_name(),
                precision,
                memory_share=MEMORY_SHARES[memory],
                kept=kept,
            )
            settings = Settings(precision, self.threads or usable_cpus(), kept=kept)
            source = source_of(bundle, _graph(bundle, role, precision, self.typed), settings)
            share = one_shape.get(memory)
            offers.append(Offer(info, partial(open_openvino, source, info, share)))
        return tuple(offers)

    def _arithmetics(
        self, bundle: BundledNetwork, capabilities: frozenset[str]
    ) -> Iterator[tuple[str, str]]:
        """Precisions, and what stays in float32; where all products are convolutions, too little
        would be left."""
        for precision in precisions(capabilities, processor_flags()):
            yield precision, ""
            if precision == "bfloat16" and self.mixes and _of_tokens(bundle):
                yield from ((precision, kept) for kept in (ENDS, SUMS))


class OnnxRuntimeOpenVino(_OpenVinoCpu):
    """Through onnxruntime's plugin, which takes Intel's processors alone."""

    name = "onnxruntime-openvino"

    def missing(self) -> str:
        return missing_packages()

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        import onnxruntime as ort

        plugin = load_plugin()
        version = f"{plugin.version} in onnxruntime {ort.__version__}"
        source = partial(PluginSource, plugin=plugin)
        return self._offers(bundle, role, version, plugin.capabilities, source)


class OpenVino(_OpenVinoCpu):
    """Through OpenVINO's own package, on any processor that it has kernels for."""

    name = "openvino"
    typed = frozenset({"bfloat16"})
    mixes = True

    def missing(self) -> str:
        return missing_package()

    def offers(self, bundle: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        package = load_package()
        source = partial(PackageSource, package=package)
        version = package.version.partition("-")[0]  # the rest names the build
        return self._offers(bundle, role, version, package.capabilities, source)


def openvino_here() -> OnnxRuntimeOpenVino | OpenVino:
    """What ``auto`` comes to on this processor. Raises ``BackendError`` where it is neither."""
    plugin, package = OnnxRuntimeOpenVino(), OpenVino()
    with suppress(BackendError):  # another processor than it takes: the package may
        if not plugin.missing():
            load_plugin()
            return plugin
    if reason := package.missing():
        raise BackendError("there is no OpenVINO here", found=reason)
    return package


def _of_tokens(bundle: BundledNetwork) -> bool:
    """Only networks of tokens have a graph of their own for every precision."""
    return any(variant.backend == OPENVINO for variant in bundle.component.variants)


def _graph(bundle: BundledNetwork, role: GraphRole, precision: str, typed: frozenset[str]) -> Graph:
    """``typed``: precisions whose own graphs are read."""
    made = {variant.backend for variant in bundle.component.variants}
    if precision in typed and OPENVINO_BFLOAT16 in made:
        return bundle.component.graph(role, OPENVINO_BFLOAT16)
    low = precision != "float32" and OPENVINO_LOW in made
    return bundle.component.graph(role, OPENVINO_LOW if low else OPENVINO)


def precisions(capabilities: frozenset[str], flags: frozenset[str]) -> tuple[str, ...]:
    """What this processor computes in, fastest first.

    ``capabilities``: OpenVINO's own list, which holds more than is good: bfloat16 everywhere,
    though with AVX-512 alone it takes four times as long as float32, and with AVX2 alone a run
    ended in a segmentation fault. ``flags``: the kernel's; where it tells none, float32 it is.

    float16 needs AMX with float16 to be fast. AVX-512 with float16 widens every value to float32
    first: SRGAN took 0.60 s, 0.32 s in float32 and 0.05 s in bfloat16. It goes last then, for
    those who ask for it.
    """
    found = ["float32"]
    if "BF16" in capabilities and not flags.isdisjoint({"amx_bf16", "avx512_bf16"}):
        found.insert(0, "bfloat16")
    if "FP16" in capabilities and "amx_fp16" in flags:
        found.insert(0, "float16")
    elif "FP16" in capabilities and "avx512_fp16" in flags:
        found.append("float16")
    return tuple(found)
