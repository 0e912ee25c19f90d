"""The cases of ``tests/runtime/cuda_cases.py`` and ``device_cases.py`` on a real device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pixelrt.errors import BackendError
from pixelrt.runtime.device.cuda import Cuda, RealCuda
from pixelrt.runtime.device.memory import HostPool
from pixelrt.runtime.device.stages import FlowShape, TileFlow
from tests.runtime.cuda_cases import CASES, copying, photo, through
from tests.runtime.device_cases import DEVICE_CASES

SLACK = 64 * 2**20
"""Other processes on the GPU come and go."""


@pytest.fixture(scope="module")
def cuda() -> RealCuda:
    try:
        return RealCuda()
    except BackendError as exc:
        pytest.skip(f"no CUDA device: {exc}")


@pytest.fixture
def no_leak(cuda: RealCuda) -> Iterator[None]:
    before = cuda.memory_info()[0]
    yield
    assert cuda.memory_info()[0] > before - SLACK


@pytest.mark.parametrize("case", CASES + DEVICE_CASES, ids=lambda case: case.__name__)
@pytest.mark.usefixtures("no_leak")
def test_case(cuda: RealCuda, case: Callable[[Cuda], None]) -> None:
    case(cuda)


def test_the_device_says_what_it_is(cuda: RealCuda) -> None:
    assert cuda.device_name()
    assert cuda.compute_capability() >= (5, 0)
    free, total = cuda.memory_info()
    assert 0 < free <= total


@pytest.mark.usefixtures("no_leak")
def test_large_tiles_in_flight(cuda: RealCuda) -> None:
    """Copies of many milliseconds, so that a missing event would show."""
    tiles = photo(12, 1024, 1024)
    shape = FlowShape(tiles.shape[1:], tiles.shape[1:], slots=3)
    with HostPool(cuda) as pool, TileFlow(cuda, pool, copying(cuda), shape) as flow:
        for _ in range(5):
            np.testing.assert_array_equal(through(flow, tiles), tiles)
