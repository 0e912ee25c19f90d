"""pixelrt: image-to-image networks from PyTorch to production.

::

    import pixelrt

    model = pixelrt.load("swin2sr-x2.pixelrt")
    out = model(image)  # PIL.Image or array in, the same kind out

Importing this package loads neither torch, onnx nor onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pixelrt.bundle import Bundle, open_bundle
    from pixelrt.errors import PixelrtError
    from pixelrt.runtime.diffusion.load import load_pipeline
    from pixelrt.runtime.load import load
    from pixelrt.runtime.pipelines.image import ImageModel
    from pixelrt.runtime.stylegan.model import load_stylegan
    from pixelrt.runtime.video.options import VideoOptions
    from pixelrt.runtime.video.run import run_video

__all__ = [
    "Bundle",
    "ImageModel",
    "PixelrtError",
    "VideoOptions",
    "__version__",
    "load",
    "load_pipeline",
    "load_stylegan",
    "open_bundle",
    "run_video",
]

_HOMES = {
    "Bundle": "pixelrt.bundle",
    "ImageModel": "pixelrt.runtime.pipelines.image",
    "PixelrtError": "pixelrt.errors",
    "VideoOptions": "pixelrt.runtime.video.options",
    "load": "pixelrt.runtime.load",
    "load_pipeline": "pixelrt.runtime.diffusion.load",
    "load_stylegan": "pixelrt.runtime.stylegan.model",
    "open_bundle": "pixelrt.bundle",
    "run_video": "pixelrt.runtime.video.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
