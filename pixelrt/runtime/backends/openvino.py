"""OpenVINO on the CPU, through its plugin for onnxruntime."""

from __future__ import annotations

from functools import partial

from pixelrt.bundle import Bundle
from pixelrt.manifest import GraphRole
from pixelrt.runtime.backends.base import BackendInfo, Offer
from pixelrt.runtime.backends.openvino_plugin import Settings, load_plugin, missing_packages
from pixelrt.runtime.backends.openvino_session import open_openvino
from pixelrt.runtime.backends.openvino_source import Source
from pixelrt.runtime.machine import processor_flags, processor_name, usable_cpus

MEMORY_SHARES = {"float32": 0.75, "bfloat16": 0.6, "float16": 0.6}
"""Peak per pixel, of what plain onnxruntime takes, with a margin. Measured in float32:
Swin2SR light 0.65, SRGAN 0.63, the demonstration network 0.63, U-Net-256 0.49, ResNet-9 0.27;
in bfloat16 0.42, 0.34, 0.32, 0.52, 0.17."""


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
            info = BackendInfo(
                self.name,
                version,
                processor_name(),
                precision,
                memory_share=MEMORY_SHARES[precision],
            )
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
