"""Shared fixtures: a cache of its own for every run, and small bundles made once."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from pixelrt.bundle import Bundle, open_bundle


def pytest_configure() -> None:
    """Ctrl-C works in the tests and what they start, also where the caller ignores it.

    A shell ignores SIGINT for what it runs in the background, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of full size run by their name alone. Where files are dealt to several processes, those
    with most slow tests go first: a long one that is begun last would keep one process alone."""
    if "full_size" not in config.option.markexpr:
        large = [item for item in items if item.get_closest_marker("full_size")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("PIXELRT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What fixtures of a session or a module make does not touch the user's cache either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELRT_CACHE", str(tmp_path_factory.mktemp("session-cache")))
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run alone, shared by the test processes that run beside each other."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    folder = root / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made_once(run_folder: Path) -> Callable[..., Path]:
    """``made_once(name, make)``: the folder that ``make(folder)`` filled, once in this run.

    Tests only read it. A ``make`` that fails is called again by the next test that asks.
    """

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = run_folder / name, run_folder / f"{name}.done"
        with FileLock(run_folder / f"{name}.lock"):
            if not done.is_file():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session", autouse=True)
def equal_networks_are_exported_once(made_once: Callable[..., Path]) -> Iterator[None]:
    """See ``tests.exports``; tests that export nothing do not wait for torch."""
    part = sys.modules.get("pixelrt.export.part")
    if part is None:
        yield
        return
    from tests.exports import sharing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "export_module", sharing(part.export_module, made_once))
        yield


@pytest.fixture(scope="session")
def make_bundle(made_once: Callable[..., Path]) -> Callable[..., Bundle]:
    """``make_bundle(family, config, seed=0)``: a real export, made once per run."""

    def make(family: str, config: dict[str, Any] | None = None, seed: int = 0) -> Bundle:
        from pixelrt.export.pipeline import export_bundle

        def export(folder: Path) -> None:
            path = folder / f"{family}.pixelrt"
            export_bundle(None, path, family=family, config=config, random_seed=seed)

        key = hashlib.sha256(f"{config}-{seed}".encode()).hexdigest()[:16]
        return open_bundle(made_once(f"{family}-{key}", export) / f"{family}.pixelrt")

    return make


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """``gc.collect`` looks at what the test itself makes, not at all that torch has loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


SMALL_SRGAN = {"scale": 2, "channels": 16, "blocks": 2, "large_kernel": 5, "small_kernel": 3}


@pytest.fixture(scope="session")
def srgan_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A small SRResNet x2, halo about 10."""
    return make_bundle("srgan", SMALL_SRGAN)


@pytest.fixture(scope="session")
def photo() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A photograph, (300, 451, 3) uint8."""
    from skimage import data

    return np.asarray(data.chelsea())


def resized(pixels: Any, width: int, height: int) -> Any:
    """A photograph at another size, (height, width, 3) uint8."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height)))
