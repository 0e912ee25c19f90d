"""DLPack, with numpy as the producer: its capsules are real, only the device differs."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest

from pixelrt.errors import ImageError
from pixelrt.runtime.device import dlpack_layout
from pixelrt.runtime.device.dlpack import dlpack_array
from pixelrt.runtime.device.resources import Stream
from tests.runtime.fake_cuda import FakeCuda

CPU_DEVICE = 1


class Producer:
    """Hands a numpy array over and notes the stream it was asked for."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU_DEVICE, 0

    def __dlpack__(self, *, stream: int) -> object:
        self.streams.append(stream)
        return self.array.__dlpack__()


@pytest.fixture
def cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the memory that numpy hands over for a device's."""
    monkeypatch.setattr(dlpack_layout, "CUDA_DEVICE", CPU_DEVICE)


@pytest.mark.usefixtures("cpu_counts")
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f2", "f4", "f8", "b1"])
def test_a_view_of_the_producers_memory(dtype: str) -> None:
    array = np.zeros((4, 5, 3), dtype)[1:]
    producer = Producer(array)
    with Stream(FakeCuda()) as ours:
        view = dlpack_array(producer, ours)
        assert producer.streams == [ours.handle]
    assert view.address == array.ctypes.data
    assert (view.shape, view.dtype, view.size) == (array.shape, array.dtype, array.nbytes)
    assert view.stream is None


@pytest.mark.usefixtures("cpu_counts")
def test_the_producer_gets_its_memory_back_once() -> None:
    array = np.zeros((4, 5), np.uint8)
    before = sys.getrefcount(array)
    with Stream(FakeCuda()) as ours:
        views = [dlpack_array(Producer(array), ours) for _ in range(5)]
        assert sys.getrefcount(array) == before + 5
        views.clear()
        gc.collect()
        assert sys.getrefcount(array) == before
        for wrong in (array[:, ::2], array[:0]):
            with pytest.raises(ImageError):
                dlpack_array(Producer(wrong), ours)
    del wrong
    gc.collect()
    assert sys.getrefcount(array) == before


@pytest.mark.usefixtures("cpu_counts")
@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 6), np.uint8)[:, ::2], "strides"),
        (np.zeros((4, 6), np.uint8).T, "strides"),
        (np.zeros((0, 6), np.uint8), "shape"),
        (np.zeros((4, 6), np.complex64), "type code 5"),
    ],
)
def test_what_cannot_be_used(array: np.ndarray[Any, Any], found: str) -> None:
    with Stream(FakeCuda()) as ours, pytest.raises(ImageError, match=found):
        dlpack_array(Producer(array), ours)


@pytest.mark.usefixtures("cpu_counts")
def test_a_capsule_is_taken_once() -> None:
    capsule = np.zeros(3).__dlpack__()

    class Again(Producer):
        def __dlpack__(self, *, stream: int) -> object:
            return capsule

    with Stream(FakeCuda()) as ours:
        dlpack_array(Again(np.zeros(3)), ours)
        with pytest.raises(ImageError, match="no fresh DLPack capsule"):
            dlpack_array(Again(np.zeros(3)), ours)


def test_what_is_not_on_a_gpu_is_refused() -> None:
    with Stream(FakeCuda()) as ours:
        with pytest.raises(ImageError, match="not in GPU memory"):
            dlpack_array(np.zeros(3), ours)
        with pytest.raises(ImageError, match="does not come by DLPack"):
            dlpack_array("text", ours)
