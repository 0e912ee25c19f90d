"""The model's behaviour on a fake backend: kinds of image, channels, options, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, FidelityError, ImageError, OutOfMemoryError, UsageError
from pixelrt.runtime.backends.base import BackendInfo, Offer
from pixelrt.runtime.backends.fake import FakeBackend, FakeSession
from pixelrt.runtime.backends.select import PassedOver
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.pipelines.planes import luma
from pixelrt.spec import ReceptiveField
from tests.bundles import image_spec, nearest, write_bundle


def fake(scale: int = 2, offset: float = 0.0) -> FakeBackend:
    """A network that repeats pixels; ``offset`` in [0, 1] makes the float graph wrong."""

    def core(x: Any) -> Any:
        return nearest(scale)(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) + np.float32(offset)

    return FakeBackend({"core": core, "image": nearest(scale)})


def model(bundle: Bundle, backend: FakeBackend | None = None) -> ImageModel:
    return ImageModel(bundle, backends=(backend or fake(bundle.manifest.image.scale),))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "double.pixelrt")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_the_same_kind_comes_back(bundle: Bundle, dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    peak = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    array = (rng.random(shape) * peak).astype(dtype)
    out = model(bundle)(array)
    assert out.dtype == array.dtype
    expected = array.repeat(2, axis=0).repeat(2, axis=1)
    if dtype == "float32":
        np.testing.assert_allclose(out, expected, atol=1e-6)
    else:
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_pil_images_come_back_as_such(bundle: Bundle, mode: str, photo: Any) -> None:
    image = Image.fromarray(photo[:20, :30]).convert(mode)
    out = model(bundle)(image)
    assert out.size == (60, 40)
    expected = {"P": "RGB", "1": "L"}.get(mode, mode)
    assert out.mode == expected
    high = image.convert(expected).resize((60, 40), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(high))


def test_a_grey_network_sees_each_plane(tmp_path: Path, photo: Any) -> None:
    bundle = write_bundle(tmp_path / "g.pixelrt", image_spec(channels_in=1, channels_out=1))
    out = model(bundle)(photo[:9, :11])
    np.testing.assert_array_equal(out, photo[:9, :11].repeat(2, axis=0).repeat(2, axis=1))


def test_a_grey_translator_gets_luma(tmp_path: Path, photo: Any) -> None:
    spec = image_spec(task="translation", scale=1, channels_in=1, channels_out=1)
    bundle = write_bundle(tmp_path / "g.pixelrt", spec)
    out = model(bundle)(photo[:9, :11])
    np.testing.assert_array_equal(out, luma(photo[:9, :11]))
    np.testing.assert_array_equal(
        out[..., 0], np.asarray(Image.fromarray(photo[:9, :11]).convert("L"))
    )


def test_alpha_of_a_translator_is_kept(tmp_path: Path, photo: Any) -> None:
    bundle = write_bundle(tmp_path / "t.pixelrt", image_spec(task="translation", scale=1))
    image = Image.fromarray(photo[:9, :11]).convert("RGBA")
    image.putalpha(Image.fromarray(photo[:9, :11, 0]))
    out = model(bundle)(image)
    np.testing.assert_array_equal(np.asarray(out)[..., 3], photo[:9, :11, 0])


def test_the_grid_is_padded_and_cropped(tmp_path: Path, photo: Any) -> None:
    spec = image_spec(multiple=8, minimum=8, pad_mode="symmetric", library_divisor=8)
    bundle = write_bundle(tmp_path / "w.pixelrt", spec, ReceptiveField(8, 8))
    for pad, grid in (("grid", 24), ("library", 32)):
        backend = fake()
        out = model(bundle, backend)(photo[:24, :17], pad=pad)
        assert out.shape == (48, 34, 3)
        assert backend.sessions[0].calls[-1] == (1, grid, 24, 3)


def test_tiles_are_used_and_change_nothing(bundle: Bundle, photo: Any) -> None:
    backend = fake()
    small = photo[:150, :170]
    out = model(bundle, backend)(small, tile=100)
    np.testing.assert_array_equal(out, small.repeat(2, axis=0).repeat(2, axis=1))
    assert [call[1:3] for call in backend.sessions[0].calls[1:]] == [(100, 100)] * 4


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2)"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (np.zeros((4,), np.uint8), "shape (4,)"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.full((4, 4, 3), 200, np.float32), "200"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
    ],
)
def test_wrong_arrays_are_refused(bundle: Bundle, array: Any, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        model(bundle)(array)
    assert words in str(caught.value)


def test_unknown_options_are_refused(bundle: Bundle, photo: Any) -> None:
    with pytest.raises(UsageError, match="tiles"):
        model(bundle)(photo, tiles=3)
    with pytest.raises(UsageError, match="halo"):
        model(bundle)(photo, halo="70dB")
    with pytest.raises(UsageError, match="library"):
        model(bundle)(photo, pad="library")


def test_too_little_memory_says_what_is_needed(tmp_path: Path, photo: Any) -> None:
    field = ReceptiveField(1, 20, {"60dB": 5})
    bundle = write_bundle(tmp_path / "m.pixelrt", field=field, per_pixel=1000)
    with pytest.raises(OutOfMemoryError) as caught:
        model(bundle)(photo, max_memory=1_000_000)
    assert "41x41" in str(caught.value)
    plan = model(bundle).plan(300, 451, max_memory=10_000_000)
    assert plan.tile.pixels * 1000 <= 10_000_000
    assert len(plan) > 1


def test_a_backend_that_takes_less_memory_gets_larger_tiles(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "m.pixelrt", field=ReceptiveField(1, 20, {}), per_pixel=1000)

    def tile(share: float) -> int:
        backend = fake()
        (offer,) = backend.offers(bundle, "image")
        less = replace(offer.info, memory_share=share)
        backend.offers = lambda *_: (  # type: ignore[method-assign]
            Offer(less, lambda: backend._open(bundle, "image", less)),
        )
        return model(bundle, backend).plan(300, 451, max_memory=20_000_000).tile.pixels

    assert tile(0.5) * 500 <= 20_000_000 < tile(0.5) * 1000
    assert tile(1.0) * 1000 <= 20_000_000


class Shaped(FakeSession):
    """Takes a quarter of the memory for one shape; a blur, whose result depends on all within
    ``HALO`` pixels and on where the image ends."""

    one_shape_share = 0.25
    fails = ""

    def infer_one_shape(self, feeds: Any, corner: Any, same: tuple[slice, ...]) -> Any:
        if self.fails:
            raise BackendError(self.fails)
        self.corners = [*getattr(self, "corners", []), corner["image"].shape]
        results, small = self.infer(feeds)["result"], self._function(corner["image"])
        np.testing.assert_array_equal(small[same], results[same])
        whole = small.shape
        assert np.any(small != results[:, : whole[1], : whole[2]])  # no more than that is the same
        return {"result": results}


HALO = 20


def blurred(images: Any) -> Any:
    """Twice the size; maxima of (2*HALO + 1)^2 pixels, zeros beyond the image."""
    from scipy.ndimage import maximum_filter

    side = 2 * HALO + 1
    return maximum_filter(images, (1, side, side, 1), mode="constant").repeat(2, 1).repeat(2, 2)


def shaped(tmp_path: Path) -> tuple[ImageModel, list[Shaped]]:
    bundle = write_bundle(tmp_path / "m.pixelrt", field=ReceptiveField(1, HALO, {}), per_pixel=1000)
    backend, opened = FakeBackend({"image": blurred, "core": blurred}), list[Shaped]()

    def offers(bundle: Any, role: Any) -> tuple[Offer, ...]:
        info, graph = BackendInfo("fake", "1", "none", "float32"), bundle.component.graph(role)

        def open_session() -> Shaped:
            opened.append(Shaped(blurred, tuple(graph.inputs), tuple(graph.outputs), info))
            return opened[-1]

        return (Offer(info, open_session),)

    backend.offers = offers  # type: ignore[method-assign]
    return ImageModel(bundle, backends=(backend,), verify=False), opened


def test_a_graph_for_one_shape_gets_larger_tiles(tmp_path: Path, photo: Any) -> None:
    one, opened = shaped(tmp_path)
    pixels = photo[:300, :400]
    budget = 10_000_000
    plan = one.plan(300, 400, max_memory=budget)
    assert 250 * plan.tile.pixels <= budget < 1000 * plan.tile.pixels
    result = one(pixels, max_memory=budget)
    np.testing.assert_array_equal(result, blurred(pixels[None])[0])
    (session,) = opened
    corner = min(plan.tile.height, 2 * HALO + 1), min(plan.tile.width, 2 * HALO + 1)
    assert session.corners == [(1, *corner, 3)] * len(plan)
    assert one.plan(300, 400, max_memory=budget, tile=100).tile.height == 100  # as asked
    assert one.notes == ()


def test_a_graph_for_one_shape_takes_all_of_an_image_at_once(tmp_path: Path, photo: Any) -> None:
    one, opened = shaped(tmp_path)
    pixels = photo[:300, :400]
    assert len(one.plan(300, 400, max_memory=31_000_000)) == 1
    result = one(pixels, max_memory=31_000_000)
    np.testing.assert_array_equal(result, blurred(pixels[None])[0])
    assert opened[0].corners == [(1, 2 * HALO + 1, 2 * HALO + 1, 3)]
    assert one.notes == ()


def test_a_corner_that_there_is_no_memory_for_is_not_run(tmp_path: Path) -> None:
    """With less than the exact halo tiles can be smaller than the piece that proves."""
    one, _ = shaped(tmp_path)
    plan = one.plan(300, 400, max_memory=900_000, halo=2)
    assert plan.tile.pixels * 1000 <= 900_000


def test_one_that_fails_gives_way_to_smaller_tiles(tmp_path: Path, photo: Any) -> None:
    one, opened = shaped(tmp_path)
    one.session()
    opened[0].fails = "other results"
    result = one(photo[:300, :400], max_memory=10_000_000)
    np.testing.assert_array_equal(result, blurred(photo[None, :300, :400])[0])
    assert {shape[1] * shape[2] * 1000 <= 10_000_000 for shape in opened[0].calls} == {True}
    (told,) = one.notes
    assert told.startswith("other results; again from the start with ")


def test_whole_image_statistics_are_never_tiled(tmp_path: Path, photo: Any) -> None:
    spec = image_spec(task="translation", scale=1, statistics="image")
    bundle = write_bundle(tmp_path / "i.pixelrt", spec, ReceptiveField(1, None), per_pixel=1000)
    one = model(bundle)
    with pytest.raises(OutOfMemoryError, match="whole image"):
        one(photo, max_memory=1_000_000)
    with pytest.raises(UsageError, match="whole image"):
        one(photo, tile=128)
    assert one(photo, tile="off", max_memory=1_000_000).shape == photo.shape


def test_a_wrong_backend_is_refused_and_not_remembered(bundle: Bundle, photo: Any) -> None:
    wrong = fake(offset=0.01)
    small = photo[:8, :8].astype(np.float32) / 255
    for _ in range(2):
        with pytest.raises(FidelityError) as caught:
            model(bundle, wrong)(small)
        assert "1.00e-02" in str(caught.value)
        assert wrong.sessions[-1].closed
    model(bundle)(small)


def test_the_verdict_is_remembered_per_backend(bundle: Bundle, photo: Any) -> None:
    first, second = fake(), fake()
    assert_words = []
    for backend in (first, second):
        one = model(bundle, backend)
        one(photo[:8, :8])
        assert_words.append(one.fidelity["image"].split(":")[0])
    assert assert_words == ["verified now", "verified before"]
    assert len(first.sessions[0].calls) == 2
    assert len(second.sessions[0].calls) == 1


def test_what_is_passed_over_is_told(bundle: Bundle, photo: Any) -> None:
    absent = FakeBackend({}, reason="no device")
    one = ImageModel(bundle, backends=(absent, fake()))
    one(photo[:8, :8])
    assert [str(p) for p in one.passed_over] == ["fake: no device"]
    with pytest.raises(BackendError, match="no backend") as caught:
        ImageModel(bundle, backends=(absent,))(photo[:8, :8])
    assert "no device" in str(caught.value)
    with pytest.raises(BackendError, match="cannot be used"):
        ImageModel(bundle, backend="fake", backends=(absent, fake()))(photo[:8, :8])
    with pytest.raises(UsageError, match="tensorflow"):
        ImageModel(bundle, backend="tensorflow", backends=(fake(),))(photo[:8, :8])


def test_low_precision_that_holds_is_taken(bundle: Bundle, photo: Any) -> None:
    backend = fake_low({"float16": 0.0005, "float32": 0.0})
    one = ImageModel(bundle, backends=(backend,))
    one.run_core(as_core(photo[:8, :8]))
    assert one.session("core").info.precision == "float16"
    assert one.passed_over == ()
    assert "at least 60 dB" in one.fidelity["core"]


def test_low_precision_that_does_not_hold_is_passed_over(bundle: Bundle, photo: Any) -> None:
    """float16 at 54 dB gives way to bfloat16 at 66 dB; the verdict is remembered."""
    backend = fake_low({"float16": 0.002, "bfloat16": 0.0005, "float32": 0.0})
    for opened in (2, 1):
        backend.sessions.clear()
        one = ImageModel(bundle, backends=(backend,))
        one.run_core(as_core(photo[:8, :8]))
        assert one.session("core").info.precision == "bfloat16"
        (passed,) = one.passed_over
        assert passed.backend == "fake float16"
        assert "54.0 dB" in passed.reason
        assert len(backend.sessions) == opened
        one.close()
    wanted = ImageModel(bundle, precision="float32", backends=(backend,))
    assert wanted.session("core").info.precision == "float32"
    with pytest.raises(FidelityError, match="does not reproduce"):
        ImageModel(bundle, precision="float16", backends=(backend,)).session("core")
    with pytest.raises(UsageError, match="float8"):
        ImageModel(bundle, precision="float8", backends=(backend,)).session("core")


def test_a_precision_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="only float32"):
        ImageModel(bundle, precision="bfloat16", backend="fake", backends=(fake(),)).session()


def test_a_wrong_backend_gives_way_to_a_right_one(bundle: Bundle, photo: Any) -> None:
    wrong, right = fake(offset=0.1), fake()
    wrong.name = "wrong"
    one = ImageModel(bundle, backends=(wrong, right))
    one.run_core(as_core(photo[:8, :8]))
    assert one.session("core").info.name == "fake"
    assert "does not reproduce the reference" in str(one.passed_over[0])
    with pytest.raises(FidelityError):
        ImageModel(bundle, backend="wrong", backends=(wrong, right)).session("core")


def test_a_black_spot_is_no_float16(bundle: Bundle) -> None:
    """One value off by 0.2 leaves 75 dB and more, but it shows."""

    def core(x: Any) -> Any:
        out = nearest(2)(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        out[0, 0, 0, 0] += 0.2
        return out

    backend = FakeBackend({"core": core}, precisions=("float16",))
    with pytest.raises(FidelityError, match=r"max abs 2\.00e-01"):
        ImageModel(bundle, backends=(backend,)).session("core")


def fake_low(errors: dict[str, float]) -> FakeBackend:
    """One offer a precision, whose float graph is off by so much everywhere."""
    backend = FakeBackend({}, precisions=tuple(errors))
    opened = backend._open

    def wrong(bundle: Any, role: Any, info: Any) -> Any:
        backend.functions = fake(offset=errors[info.precision]).functions
        return opened(bundle, role, info)

    backend._open = wrong  # type: ignore[method-assign]
    return backend


def as_core(pixels: Any) -> Any:
    return np.ascontiguousarray((pixels[None] / np.float32(255)).transpose(0, 3, 1, 2))


def test_noise_may_lose_more_than_photographs(tmp_path: Path) -> None:
    """57 dB do for noise in low precision and do not for a photograph; 47 dB do for neither."""
    for kind, offset, holds in (
        ("noise", 0.0014, True),
        ("photo", 0.0014, False),
        ("noise", 0.0045, False),
    ):
        bundle = write_bundle(tmp_path / f"{kind}.pixelrt")
        reference = msgspec.structs.replace(bundle.manifest.references[0], kind=kind)
        manifest = msgspec.structs.replace(bundle.manifest, references=[reference])
        changed = Bundle(bundle.root, manifest, f"{kind}-{offset}")
        one = ImageModel(changed, backends=(fake_low({"bfloat16": offset}),))
        if holds:
            assert "at least 50 dB" in str(one.session("core") and one.fidelity["core"])
        else:
            with pytest.raises(FidelityError):
                one.session("core")


def test_a_short_reason() -> None:
    error = FidelityError("wrong", found="54 dB", expected="60 dB", hint="another")
    assert PassedOver("fake float16", str(error)).short == "fake float16: wrong (54 dB)"
    assert PassedOver("cuda", "not installed; pip install x").short == "cuda: not installed"
