"""Test support: a real TensorRT builder without a GPU. No part of pixelrt.

TensorRT for RTX is an ordinary package (``tensorrt-rtx-cu13``) that builds on a CPU; it is used
as users use it. Where a full ``tensorrt`` is installed, that one is used too. Elsewhere
TensorRT's own Python bindings (``tensorrt-cu13-bindings``) are run over the libraries of
TensorRT for RTX; ``shim.c`` forwards the entry points. This is the one place where the choice
is made.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pixelrt.engines.build import TensorRT, load_tensorrt, use_module
from pixelrt.errors import BackendError
from pixelrt.plans.target import Flavour

WHEELS = ("tensorrt_bindings", "tensorrt_rtx_libs")
SONAMES = ("libnvinfer.so.11", "libnvonnxparser.so.11", "libnvinfer_plugin.so.11")


class NoBuilderError(Exception):
    """Why this machine cannot run TensorRT's builder."""


def required_tensorrt(flavour: Flavour = "tensorrt") -> TensorRT:
    """A working TensorRT; without one, a failure in CI and a skip elsewhere."""
    try:
        return load_tensorrt(flavour) if flavour == "tensorrt-rtx" else real_tensorrt()
    except (NoBuilderError, BackendError) as exc:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run TensorRT's builder: {exc}")
        pytest.skip(str(exc))


@cache
def real_tensorrt() -> TensorRT:
    """A full ``tensorrt`` where one is installed, else the bindings over the shim."""
    if importlib.util.find_spec("tensorrt"):
        return use_module(importlib.import_module("tensorrt"), "tensorrt")
    lacking = [name for name in WHEELS if importlib.util.find_spec(name) is None]
    if lacking:
        raise NoBuilderError(f"no tensorrt is installed, nor {' and '.join(lacking)}")
    _open_shim(_wheel_folder("tensorrt_rtx_libs"))
    return use_module(importlib.import_module("tensorrt_bindings"), "tensorrt")


def _wheel_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _open_shim(libraries: Path) -> None:
    """Open the libraries by their full paths: the bindings then find them by soname."""
    with tempfile.TemporaryDirectory(prefix="pixelrt-shim-") as folder:
        opened = [
            ctypes.CDLL(str(_compile(Path(folder), soname)), mode=ctypes.RTLD_GLOBAL)
            for soname in SONAMES
        ]
    shim = opened[0]
    shim.shim_error.restype = ctypes.c_char_p
    names = ("libtensorrt_rtx.so.1*", "libtensorrt_onnxparser_rtx.so.1*")
    paths = [os.fsencode(min(libraries.glob(name))) for name in names]
    if shim.shim_open(*paths):
        raise NoBuilderError(f"the TensorRT-RTX libraries do not load: {shim.shim_error()}")


def _compile(folder: Path, soname: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise NoBuilderError("a C compiler is needed for the test shim: install gcc")
    source = Path(__file__).parent / "shim.c"
    if soname != SONAMES[0]:
        source = folder / "empty.c"
        source.write_text("int pixelrt_test_shim;\n")
    library = folder / soname
    command = [compiler, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{soname}"]
    done = subprocess.run(
        [*command, "-o", str(library), str(source), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise NoBuilderError(f"the test shim does not compile: {done.stderr}")
    return library


def graph_file(path: Path, text: str, **names: str) -> Path:
    """Write a model from ONNX text; ``names``: output of a node → the node's name."""
    import onnx

    model: Any = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = names.get(node.output[0], f"node_{node.output[0]}")
    path.write_bytes(model.SerializeToString())
    return path
