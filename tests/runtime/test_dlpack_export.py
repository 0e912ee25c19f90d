"""DLPack capsules of ours: numpy and torch take those that claim host memory; the rest by hand."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pixelrt.runtime.device import dlpack_export, dlpack_layout
from pixelrt.runtime.device.cuda import LEGACY_STREAM
from pixelrt.runtime.device.dlpack import dlpack_array
from pixelrt.runtime.device.dlpack_layout import Managed, ManagedVersioned
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from tests.runtime.fake_cuda import FakeCuda, Hazard

CPU_DEVICE = 1
SHAPE = (2, 3, 4)


class Owner:
    """What keeps the memory; numpy arrays take no weak references with attributes."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values


def exported(
    values: np.ndarray[Any, Any], *, readonly: bool = False, cuda: FakeCuda | None = None
) -> tuple[DeviceArray, weakref.ref[Owner]]:
    """Host memory as a result of ours, and whether it is still held."""
    owner = Owner(values)
    array = DeviceArray(
        *(values.ctypes.data, values.shape, values.dtype, None, readonly),
        owner=owner,
        cuda=cuda or FakeCuda(),
    )
    return array, weakref.ref(owner)


@pytest.fixture
def cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say that the memory is the host's."""
    monkeypatch.setattr(dlpack_layout, "CUDA_DEVICE", CPU_DEVICE)


@pytest.fixture(autouse=True)
def nothing_stays(quick_collection: None) -> Iterator[None]:
    yield
    gc.collect()
    assert not dlpack_export._held


def numbers(dtype: str) -> np.ndarray[Any, Any]:
    return np.arange(24).reshape(SHAPE).astype(dtype)


@pytest.mark.usefixtures("cpu_counts")
@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f2", "f4", "f8", "b1"])
@pytest.mark.parametrize("consumer", ["numpy", "torch"])
def test_a_consumer_sees_the_same_memory(consumer: str, dtype: str) -> None:
    values = numbers(dtype)
    array, held = exported(values)
    if consumer == "torch":
        taken = pytest.importorskip("torch").from_dlpack(array)
    else:
        taken = np.from_dlpack(array)
    del array
    gc.collect()
    assert held() is not None
    np.testing.assert_array_equal(np.asarray(taken), values)
    values[0, 0, 0] = 1
    assert taken[0, 0, 0] == values[0, 0, 0]
    del taken
    gc.collect()
    assert held() is None


@pytest.mark.usefixtures("cpu_counts")
def test_read_only_memory_stays_so() -> None:
    array, _ = exported(numbers("u1"), readonly=True)
    taken = np.from_dlpack(array)
    assert not taken.flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        array.__dlpack__()


@pytest.mark.usefixtures("cpu_counts")
def test_it_comes_back_by_our_own_way_in() -> None:
    array, held = exported(numbers("f4"))
    with Stream(FakeCuda()) as ours:
        view = dlpack_array(array, ours)
    assert (view.address, view.shape, view.dtype) == (array.address, array.shape, array.dtype)
    del array
    gc.collect()
    assert held() is not None
    del view
    gc.collect()
    assert held() is None


def pointer(capsule: object, name: bytes) -> int:
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    return int(get(capsule, name))


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3), (2, 0)])
def test_the_structure_of_a_capsule(version: tuple[int, int] | None) -> None:
    values = numbers("f2")
    array, _ = exported(values)
    array_device = FakeCuda()
    array_device.device = 3
    array = DeviceArray(array.address, SHAPE, values.dtype, cuda=array_device)
    capsule = array.__dlpack__(max_version=version, dl_device=(2, 3), copy=False)
    if version is None or version < (1, 0):
        tensor = Managed.from_address(pointer(capsule, b"dltensor")).tensor
    else:
        managed = ManagedVersioned.from_address(pointer(capsule, b"dltensor_versioned"))
        assert (managed.major, managed.minor, managed.flags) == (1, 0, 0)
        tensor = managed.tensor
    assert (tensor.data, tensor.byte_offset, tensor.ndim) == (array.address, 0, 3)
    assert (tensor.device.type, tensor.device.number) == (2, 3) == array.__dlpack_device__()
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (2, 16, 1)
    assert tuple(tensor.shape[:3]) == SHAPE
    assert tuple(tensor.strides[:3]) == (12, 4, 1)


@pytest.mark.parametrize("structure", [Managed, ManagedVersioned])
def test_the_memory_is_held_until_the_deleter_is_called(structure: Any) -> None:
    array, held = exported(numbers("u1"))
    versioned = structure is ManagedVersioned
    name = b"dltensor_versioned" if versioned else b"dltensor"
    used = b"used_" + name
    capsule = array.__dlpack__(max_version=(1, 0) if versioned else None)
    del array
    managed = structure.from_address(pointer(capsule, name))
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    rename(capsule, used)
    deleter, address = managed.deleter, ctypes.addressof(managed)
    del capsule
    gc.collect()
    assert held() is not None
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)(address)
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_that_nobody_takes_gives_the_memory_back(version: Any) -> None:
    array, held = exported(numbers("u1"))
    capsule = array.__dlpack__(max_version=version)
    del array
    gc.collect()
    assert held() is not None
    del capsule
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("said", [None, LEGACY_STREAM, 2, "handle"])
def test_the_consumers_stream_waits_for_the_result(said: Any) -> None:
    cuda = FakeCuda()
    made, theirs = Stream(cuda), Stream(cuda)
    result, copy = DeviceBuffer(cuda, 64), DeviceBuffer(cuda, 64)
    array = DeviceArray(result.address, (64,), np.dtype("u1"), made.handle, cuda=cuda)
    made.fill(result, 7)
    consumer = {None: LEGACY_STREAM, "handle": theirs.handle}.get(said, said)
    array.__dlpack__(stream=theirs.handle if said == "handle" else said)
    cuda.copy(copy.address, result.address, 64, "d2d", consumer)
    cuda.finish()
    assert set(cuda.allocations[copy.address].array) == {7}


def test_no_order_is_made_where_none_is_wanted() -> None:
    cuda = FakeCuda()
    made = Stream(cuda)
    result, copy = DeviceBuffer(cuda, 64), DeviceBuffer(cuda, 64)
    array = DeviceArray(result.address, (64,), np.dtype("u1"), made.handle, cuda=cuda)
    made.fill(result, 7)
    before = list(cuda.calls)
    array.__dlpack__(stream=-1)
    array.__dlpack__(stream=made.handle)
    assert cuda.calls == before
    with pytest.raises(Hazard, match="not ordered"):
        cuda.copy(copy.address, result.address, 64, "d2d", LEGACY_STREAM)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stream": 0}, "stream 0"),
        ({"stream": -2}, "stream -2"),
        ({"copy": True}, "in place"),
        ({"dl_device": (1, 0)}, "not on"),
        ({"dl_device": (2, 1)}, "not on"),
    ],
)
def test_what_is_not_possible_is_a_buffer_error(arguments: Any, words: str) -> None:
    array, _ = exported(numbers("u1"))
    with pytest.raises(BufferError, match=words):
        array.__dlpack__(**arguments)


def test_errors_of_the_device_and_unknown_devices_and_types() -> None:
    cuda = FakeCuda(fail_call="event_record")
    array = DeviceArray(4096, (1,), np.dtype("u1"), 2, cuda=cuda)
    with pytest.raises(BufferError, match="cannot wait"):
        array.__dlpack__()
    with pytest.raises(BufferError, match="not known"):
        DeviceArray(4096, (1,), np.dtype("u1")).__dlpack__()
    with pytest.raises(BufferError, match="complex64"):
        DeviceArray(4096, (1,), np.dtype("c8"), cuda=FakeCuda()).__dlpack__()
