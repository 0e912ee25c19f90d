"""``pixelrt doctor``: what this machine can run, and why not the rest."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

import pixelrt
from pixelrt.bundle import open_bundle
from pixelrt.cache import cache_folder
from pixelrt.cli.terminal import table
from pixelrt.cli.verify import run_checks
from pixelrt.errors import BackendError, PixelrtError
from pixelrt.runtime.backends.base import Backend
from pixelrt.runtime.backends.select import BACKENDS
from pixelrt.runtime.load import SHIPPED, bundle_path
from pixelrt.runtime.machine import available_memory, processor_name, usable_cpus

NO_BACKEND = BackendError.exit_code
RUNTIME = (
    "numpy",
    "Pillow",
    "onnxruntime",
    "onnxruntime-ep-openvino",
    "openvino",
    "cuda-bindings",
    "tensorrt",
    "tensorrt_rtx_cu13",
)
EXPORT = ("torch", "onnx", "onnxscript", "onnx-ir", "transformers", "safetensors")


@click.command("doctor")
def command() -> int:
    """Show the machine, the backends and the installed packages; try the demo bundle."""
    click.echo(table(_machine()))
    click.echo("\nbackends, in the order in which auto tries them")
    states = [(backend.name, backend_state(backend)) for backend in BACKENDS]
    click.echo(table([(f"  {name}", text) for name, (_, text) in states]))
    click.echo("\npackages")
    click.echo(table([(f"  {name}", _version(name)) for name in (*RUNTIME, *EXPORT)]))
    return 0 if any(works for _, (works, _) in states) else NO_BACKEND


def _machine() -> list[tuple[str, str]]:
    return [
        ("pixelrt", pixelrt.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("processor", f"{processor_name()}, {usable_cpus()} usable"),
        ("memory", f"{available_memory() / 2**30:.1f} GiB free"),
        ("cache", str(cache_folder())),
        ("shipped bundles", ", ".join(SHIPPED)),
    ]


def backend_state(backend: Backend) -> tuple[bool, str]:
    """Whether a backend runs the demo bundle rightly, and the words for it."""
    try:
        bundle = open_bundle(bundle_path(SHIPPED[0]))
        checks, absent = run_checks(bundle, (backend,))
    except PixelrtError as exc:
        return False, f"broken: {exc}"
    if not checks:
        return False, f"not available: {absent[0].reason}"
    worst = max(check.comparison.max_abs for check in checks)
    works = not absent and all(check.passed for check in checks)
    words = "works" if works else "WRONG RESULTS"
    return works, f"{words}: {checks[0].info}, demo off by {worst:.0e}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
