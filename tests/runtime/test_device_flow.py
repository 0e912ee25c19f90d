"""Images in device memory, on the fake of the CUDA calls."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pixelrt.errors import ImageError, OutOfMemoryError
from pixelrt.geometry import Size, plan_tiles
from pixelrt.grid import pad_runs
from pixelrt.runtime.device.array_flow import DeviceFlow, OwnedMemory
from pixelrt.runtime.device.cuda import Cuda
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.memory import PageableMemoryWarning
from pixelrt.runtime.device.resources import DeviceBuffer, Stream
from tests.bundles import image_spec
from tests.runtime.device_cases import (
    DEVICE_CASES,
    MODES,
    doubling,
    flow_shape,
    images_keep_to_the_callers_order,
    on_device,
    pictures,
    results_outlive_the_flow,
)
from tests.runtime.fake_cuda import FakeCuda, Hazard
from tests.runtime.test_memory import outcome

SPEC = image_spec(multiple=4, minimum=4)
PLAN = plan_tiles(Size(12, 12), Size(8, 8), 2)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", DEVICE_CASES, ids=lambda case: case.__name__)
def test_case(case: Callable[[Cuda], None], seed: int) -> None:
    cuda = FakeCuda(seed)
    case(cuda)
    gc.collect()
    cuda.assert_clean()


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize("case", [images_keep_to_the_callers_order, results_outlive_the_flow])
@pytest.mark.parametrize("lose_device", [False, True], ids=["once", "device lost"])
def test_whatever_call_fails_everything_is_released(
    case: Callable[[Cuda], None], lose_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collection has nobody to tell of a failure: it is printed, and nothing else."""
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    whole = FakeCuda()
    case(whole)
    for k in range(0, len(whole.calls), 9):
        cuda = FakeCuda(k, fail_at=k, lose_device=lose_device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PageableMemoryWarning)
            hazard = outcome(case, cuda)
        assert not hazard, f"{hazard}, after call {k}, {whole.calls[k]}, failed"
        gc.collect()
        cuda.finish()
        cuda.host = (1 << len(cuda.operations)) - 1 if lose_device else cuda.host
        cuda.assert_clean()


@pytest.mark.parametrize(
    ("mode", "length"),
    [
        (mode, length)
        for mode in MODES
        for length in (1, 2, 3, 8, 37)
        # a single row has nothing to be reflected in
        if length > 1 or mode != "reflect"
    ],
)
def test_padding_takes_few_copies(mode: Any, length: int) -> None:
    values = np.arange(4000)
    for padded in (length, length + 1, 2 * length, 5 * length, 4000):
        got = np.where(values < length, values, -1)
        runs = list(pad_runs(length, padded, mode))
        for run in runs:
            assert run.source + run.count <= run.target
            got[run.target : run.target + run.count] = got[run.source : run.source + run.count]
        np.testing.assert_array_equal(
            got[:padded], np.pad(values[:length], (0, padded - length), mode=mode)
        )
        assert len(runs) <= min(padded - length, length + 12)


def run(cuda: FakeCuda, **facts: Any) -> None:
    """One image, with another ``out``."""
    with (
        Stream(cuda) as ours,
        on_device(cuda, pictures(1, 11, 9, 3), ours) as image,
        DeviceFlow(cuda, ours, doubling(cuda), flow_shape(PLAN, 3), SPEC) as flow,
        DeviceBuffer(cuda, 22 * 18 * 3) as memory,
    ):
        given = {
            "address": memory.address,
            "shape": (1, 22, 18, 3),
            "dtype": np.dtype("u1"),
            **{name: fact(image) for name, fact in facts.items()},
        }
        flow.run(image, PLAN, DeviceArray(**given))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"shape": lambda _: (1, 22, 18, 1)}, r"uint8 \(1, 22, 18, 1\)"),
        ({"dtype": lambda _: np.dtype("f2")}, "float16"),
        ({"readonly": lambda _: True}, "may not be written"),
        ({"address": lambda image: image.address + 296}, "the image lies in"),
        ({"address": lambda image: image.address - 1187}, "the image lies in"),
    ],
)
def test_an_output_that_does_not_fit(facts: Any, words: str) -> None:
    cuda = FakeCuda()
    with pytest.raises(ImageError, match=words):
        run(cuda, **facts)
    cuda.assert_clean()


def test_too_little_memory_leaves_nothing_behind() -> None:
    for memory in range(1000, 6000, 500):
        cuda = FakeCuda(memory=memory)
        with pytest.raises(OutOfMemoryError):
            results_outlive_the_flow(cuda)
        cuda.finish()
        cuda.assert_clean()


def test_a_missing_wait_would_be_seen() -> None:
    """The image belongs to a stream that is not the one it says."""
    cuda = FakeCuda()
    cuda.haste = 0
    theirs, ours = Stream(cuda), Stream(cuda)
    flow = DeviceFlow(cuda, ours, doubling(cuda), flow_shape(PLAN, 3), SPEC)
    memory = DeviceBuffer(cuda, 11 * 9 * 3)
    theirs.fill(memory)
    image = DeviceArray(memory.address, (1, 11, 9, 3), np.dtype("u1"), 2)
    with pytest.raises(Hazard, match="not ordered after fill"):
        flow.run(image, PLAN)


def test_memory_is_freed_from_any_thread_and_leaves_the_current_device() -> None:
    cuda = FakeCuda()
    memory = OwnedMemory(cuda, 64)
    with Stream(cuda) as stream:
        cuda.fill(memory.address, 1, 64, stream.handle)
        cuda.activate(5)
        thread = threading.Thread(target=memory.close)
        thread.start()
        thread.join()
        memory.close()
    assert cuda.current == 5
    cuda.assert_clean()
