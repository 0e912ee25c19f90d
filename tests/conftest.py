"""Shared fixtures: a cache of its own for every run, and small bundles made once."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pixelrt.bundle import Bundle, open_bundle


def pytest_configure() -> None:
    """Ctrl-C works in the tests and what they start, also where the caller ignores it.

    A shell ignores SIGINT for what it runs in the background, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """``make_bundle(family, config, seed=0)``: a real export, made once per session."""
    made: dict[str, Bundle] = {}
    folder = tmp_path_factory.mktemp("bundles")

    def make(family: str, config: dict[str, Any] | None = None, seed: int = 0) -> Bundle:
        key = f"{family}-{config}-{seed}"
        if key not in made:
            from pixelrt.export.pipeline import export_bundle

            path = folder / f"{family}-{len(made)}.pixelrt"
            export_bundle(None, path, family=family, config=config, random_seed=seed)
            made[key] = open_bundle(path)
        return made[key]

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
