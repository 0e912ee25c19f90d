"""``ImageModel.run_device`` on the fake: what the host's way gives, in the caller's order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, ImageError, OutOfMemoryError, UsageError
from pixelrt.plans.profiles import Profile, Shape
from pixelrt.runtime.backends.fake import FakeBackend
from pixelrt.runtime.device.cuda import LEGACY_STREAM
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.resources import DeviceBuffer, Stream, settled
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.spec import ReceptiveField
from tests.bundles import image_spec, nearest, write_bundle
from tests.runtime.device_cases import MODES, on_device, pictures, read_back
from tests.runtime.doubling_engine import DoublingBackend
from tests.runtime.fake_cuda import FakeCuda, Hazard

Array = np.ndarray[Any, Any]


def write(path: Path, **facts: Any) -> Bundle:
    spec = image_spec(**{"multiple": 4, "minimum": 8, **facts})
    return write_bundle(path / "double.pixelrt", spec, ReceptiveField(4, 4))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path)


@contextmanager
def opened(cuda: FakeCuda, bundle: Bundle, *profiles: Profile) -> Iterator[ImageModel]:
    # fixed batches do not hold the sample, one image
    verify = all(profile.batch.minimum == 1 for profile in profiles)
    backends = (DoublingBackend(cuda, profiles),)
    with ImageModel(bundle, backends=backends, verify=verify) as model:
        yield model
    gc.collect()
    cuda.finish()


def on_host(bundle: Bundle, images: Array, **options: Any) -> Array:
    backend = FakeBackend(
        {"image": nearest(2), "core": lambda x: x.repeat(2, axis=2).repeat(2, axis=3)}
    )
    with ImageModel(bundle, backends=(backend,)) as model:
        return np.stack([model(image, **options) for image in images])


@given(data=st.data())
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_result_is_the_hosts_bit_by_bit(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mode = data.draw(st.sampled_from(MODES))
    bundle = write(tmp_path_factory.mktemp("bundle"), pad_mode=mode)
    ints = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    images = pictures(ints(1, 3), ints(1, 40), ints(1, 40), 3)
    options = {"tile": data.draw(st.sampled_from(["off", 12, 16, 24]))}
    batch = ints(1, 4)
    most = Shape(batch, 64, 64)
    profile = Profile.between(Shape(data.draw(st.sampled_from([1, batch])), 8, 8), most, most)
    cuda = FakeCuda(ints(0, 99))
    with opened(cuda, bundle, profile) as model, Stream(cuda) as theirs:
        with on_device(cuda, images, theirs) as array:
            for _ in range(4):
                result = model.run_device(array, **options)
                got = read_back(cuda, result)
                np.testing.assert_array_equal(got, on_host(bundle, images, **options))
        del result
    cuda.assert_clean()


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
@pytest.mark.parametrize("given", [True, False], ids=["stream given", "stream not given"])
def test_the_callers_order_is_kept(bundle: Bundle, kind: str, given: bool) -> None:
    """The image is still being written, and is overwritten as soon as the call returns."""
    cuda = FakeCuda(3)
    image = pictures(11, 9, 3)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda) as theirs,
        on_device(cuda, image, theirs) as array,
    ):
        foreign = Foreign(cuda, array, kind)
        result = model.run_device(foreign, stream=theirs.handle if given else None)
        cuda.fill(array.address, 0, array.size, theirs.handle)
        assert result.shape == (22, 18, 3)
        assert result.stream == (theirs.handle if given or kind == "interface" else None)
        np.testing.assert_array_equal(read_back(cuda, result), nearest(2)(image[None])[0])
        del result
    cuda.assert_clean()


class Foreign:
    """An array of another library: torch and CuPy have both ways, some only DLPack."""

    def __init__(self, cuda: FakeCuda, array: DeviceArray, kind: str) -> None:
        self.array = DeviceArray(array.address, array.shape, array.dtype, array.stream, cuda=cuda)
        if kind == "interface":
            self.__cuda_array_interface__ = array.__cuda_array_interface__
        else:
            self.__dlpack__ = self.array.__dlpack__
            self.__dlpack_device__ = self.array.__dlpack_device__


def test_arrays_that_name_no_stream_are_ordered_with_the_default_one(bundle: Bundle) -> None:
    """torch's arrays are of version 2 and say nothing."""
    cuda = FakeCuda()
    image = pictures(9, 9, 3)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda, LEGACY_STREAM) as legacy,
        on_device(cuda, image, legacy) as array,
    ):
        facts = {**array.__cuda_array_interface__, "version": 2, "stream": None}
        tensor = SimpleNamespace(__cuda_array_interface__=facts)
        for stream in (None, 0):
            result = model.run_device(tensor, stream=stream)
            assert result.stream == LEGACY_STREAM
            np.testing.assert_array_equal(read_back(cuda, result), nearest(2)(image[None])[0])
        del result
    cuda.assert_clean()


def test_a_result_in_the_callers_array(bundle: Bundle) -> None:
    cuda = FakeCuda()
    image = pictures(2, 9, 9, 3)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda) as theirs,
        on_device(cuda, image, theirs) as array,
        DeviceBuffer(cuda, 4 * image.size) as memory,
        settled(theirs),
    ):
        out = DeviceArray(memory.address, (2, 18, 18, 3), image.dtype, theirs.handle)
        result = model.run_device(array, out=out)
        assert (result.address, result.owner) == (memory.address, out)
        np.testing.assert_array_equal(read_back(cuda, result), nearest(2)(image))
        with pytest.raises(ImageError, match="cannot take the result"):
            model.run_device(array, out=array)
    cuda.assert_clean()


def test_a_grey_network_takes_planes(tmp_path: Path) -> None:
    bundle = write(tmp_path, channels_in=1, channels_out=1)
    cuda = FakeCuda()
    image = pictures(9, 10)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda) as theirs,
        on_device(cuda, image, theirs) as array,
    ):
        result = model.run_device(array)
        assert result.shape == (18, 20)
        np.testing.assert_array_equal(
            read_back(cuda, result), image.repeat(2, axis=0).repeat(2, axis=1)
        )
        del result
    cuda.assert_clean()


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((9, 9), "u1", r"uint8 \(9, 9\)"),
        ((9, 9, 1), "u1", r"uint8 \(1, 9, 9, 1\)|uint8 \(9, 9, 1\)"),
        ((3, 9, 9), "u1", r"\(3, 9, 9\)"),
        ((9, 9, 3), "f4", "float32"),
        ((1, 1, 9, 9, 3), "u1", r"\(1, 1, 9, 9, 3\)"),
    ],
)
def test_what_is_no_image_for_the_network(
    bundle: Bundle, shape: Any, dtype: str, words: str
) -> None:
    cuda = FakeCuda()
    with opened(cuda, bundle) as model, Stream(cuda) as theirs:
        with on_device(cuda, np.zeros(shape, dtype).view("u1"), theirs) as array:
            wrong = DeviceArray(array.address, shape, np.dtype(dtype), theirs.handle)
            with pytest.raises(ImageError, match=words):
                model.run_device(wrong)
        with pytest.raises(ImageError, match="no array in GPU memory"):
            model.run_device("photo.jpg")
        with pytest.raises(ImageError, match="not in GPU memory"):
            model.run_device(np.zeros((9, 9, 3), np.uint8))
        with pytest.raises(UsageError, match="tiles"):
            model.run_device(array, tiles=3)
    cuda.assert_clean()


def test_a_backend_of_the_host_says_so(bundle: Bundle) -> None:
    backend = FakeBackend({"image": nearest(2)})
    model = ImageModel(bundle, backends=(backend,))
    with model, pytest.raises(BackendError, match="does not run on a GPU") as caught:
        model.run_device(object())
    assert "host array" in caught.value.hint


def test_short_memory_means_smaller_tiles_from_the_start(bundle: Bundle) -> None:
    cuda = FakeCuda(memory=40_000)
    image = pictures(40, 40, 3)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda) as theirs,
        on_device(cuda, image, theirs) as array,
    ):
        result = model.run_device(array, max_memory=1 << 30)
        np.testing.assert_array_equal(read_back(cuda, result), nearest(2)(image[None])[0])
        assert "out of device memory" in model.notes[0]
        del result
        gc.collect()
        with pytest.raises(OutOfMemoryError, match=r"smallest plan|too small"):
            model.run_device(
                DeviceArray(array.address, (80, 20, 3), array.dtype, theirs.handle),
                max_memory=1,
            )
    cuda.assert_clean()


@pytest.mark.parametrize("side", [64, 61])
def test_results_and_padded_copies_are_planned_for(bundle: Bundle, side: int) -> None:
    """The result is more than half of the memory that is free: nothing fails on the way."""
    image = pictures(side, side, 3)
    cuda = FakeCuda(memory=image.size + 4 * image.size * 10 // 6 + (side % 4) * 20_000)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda) as theirs,
        on_device(cuda, image, theirs) as array,
    ):
        result = model.run_device(array)
        np.testing.assert_array_equal(read_back(cuda, result), nearest(2)(image[None])[0])
        assert model.notes == ()
        del result
    cuda.assert_clean()


STYLES: dict[str, dict[str, Any]] = {
    "torch": {"version": 2, "strides": None},
    "cupy": {"version": 3, "strides": None, "stream": 1},
    "numba": {"version": 3, "strides": None, "stream": None},
    "numba of one row": {"version": 3, "strides": (999, 3, 1), "stream": 2},
    "pycuda": {"version": 3, "strides": (27, 3, 1), "descr": [("", "|u1")]},
}
"""What these libraries say of their arrays in ``__cuda_array_interface__``."""


@pytest.mark.parametrize("style", STYLES)
def test_arrays_as_other_libraries_have_them(bundle: Bundle, style: str) -> None:
    cuda = FakeCuda(5)
    said = STYLES[style]
    stream = said.get("stream") if said["version"] == 3 else LEGACY_STREAM
    image = pictures(1 if "row" in style else 9, 9, 3)
    with (
        opened(cuda, bundle) as model,
        Stream(cuda, stream or 2) as theirs,
        on_device(cuda, image, theirs) as array,
    ):
        if stream is None:
            theirs.synchronize()
        facts = {"shape": image.shape, "typestr": "|u1", "data": (array.address, False), **said}
        result = model.run_device(SimpleNamespace(__cuda_array_interface__=facts))
        assert result.stream == stream
        assert result.__cuda_array_interface__["stream"] == stream
        np.testing.assert_array_equal(read_back(cuda, result), nearest(2)(image[None])[0])
        del result
    cuda.assert_clean()


def test_tiles_of_the_host_and_of_the_device_take_turns(bundle: Bundle) -> None:
    cuda = FakeCuda(7)
    image = pictures(30, 21, 3)
    expected = nearest(2)(image[None])[0]
    with (
        opened(cuda, bundle) as model,
        Stream(cuda) as theirs,
        on_device(cuda, image, theirs) as array,
    ):
        results = []
        for _ in range(3):
            results.append(model.run_device(array, tile=16))
            np.testing.assert_array_equal(model(image, tile=16), expected)
        model.close()
        for result in results:
            np.testing.assert_array_equal(read_back(cuda, result), expected)
        del results, result
    cuda.assert_clean()


@pytest.mark.usefixtures("quick_collection")
def test_every_failing_call_leaves_nothing_behind(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    image = pictures(13, 9, 3)

    def case(cuda: FakeCuda) -> None:
        with (
            opened(cuda, bundle) as model,
            Stream(cuda) as theirs,
            DeviceBuffer(cuda, image.size) as memory,
            settled(theirs),
        ):
            theirs.fill(memory, 3)
            array = DeviceArray(memory.address, image.shape, image.dtype, theirs.handle)
            model.run_device(array, tile=16)

    whole = FakeCuda()
    case(whole)
    for k in range(0, len(whole.calls), 5):
        cuda = FakeCuda(k, fail_at=k)
        try:
            case(cuda)
        except Hazard as exc:
            pytest.fail(f"{exc}, after call {k}, {whole.calls[k]}, failed")
        except (BackendError, ImageError, Warning):
            pass
        gc.collect()
        cuda.finish()
        cuda.assert_clean()
