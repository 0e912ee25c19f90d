"""``pixelrt run`` with a TensorRT plan, on the fakes: what a user sees."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelrt.cli.main import run
from pixelrt.runtime import load as loading
from pixelrt.runtime.backends.tensorrt import TensorRTBackend
from pixelrt.spec import ReceptiveField
from tests.bundles import nearest, write_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.plan_cases import FUNCTIONS, Desk, image_net

PLAN = "1x8x8,2x24x24,4x64x64"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A machine on which ``--plan`` finds a fake GPU."""
    made = Desk(write_bundle(tmp_path / "double.pixelrt", field=ReceptiveField(1, 4)))
    here = partial(TensorRTBackend, machine=made.machine)
    monkeypatch.setattr(loading, "TensorRTBackend", here)
    return made


@pytest.fixture
def picture(tmp_path: Path, photo: Any) -> Path:
    path = tmp_path / "cat.png"
    Image.fromarray(photo[:120, :100]).save(path)
    return path


def pixelrt(*arguments: Any) -> int:
    return run([str(argument) for argument in arguments])


def test_a_plan_by_name(desk: Desk, picture: Path, photo: Any, capsys: Any) -> None:
    path = desk.build(image_net("image", PLAN))
    target = picture.with_name("out.png")
    assert (
        pixelrt("run", desk.bundle.root, picture, "-o", target, "--plan", path, "--streams", 3) == 0
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(target)), nearest(2)(photo[None, :120, :100])[0]
    )
    told = capsys.readouterr().err
    assert "tensorrt 11.4.0 (float16, NVIDIA Fake 100)" in told
    assert "verified now" in told
    desk.cuda.assert_clean()


def test_what_did_not_go_as_it_should_is_told(desk: Desk, picture: Path, capsys: Any) -> None:
    path = desk.build(image_net("image", PLAN))
    desk.world.capturable = False
    target = picture.with_name("out.png")
    more = ("--plan", path, "--tile", 24)
    assert pixelrt("run", desk.bundle.root, picture, "-o", target, *more) == 0
    assert "CUDA graphs are off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--plan", "nowhere.plan"), 3, "cannot be used as a plan"),
        (("--plan", "PLAN", "--backend", "onnxruntime-cpu"), 2, "does not run on onnxruntime-cpu"),
        (("--plan", "PLAN", "--build"), 2, "--build"),
        (("--streams", "0"), 2, "0 is not in the range"),
        (("--plan", "PLAN", "--max-memory", "1kB"), 4, "MiB for a tile of 9x9 (halo 4)"),
        (("--plan", "PLAN", "--tile", "off"), 2, "pixelrt build --shapes 120x100"),
    ],
)
def test_mistakes(
    desk: Desk, picture: Path, capsys: Any, arguments: tuple[str, ...], code: int, words: str
) -> None:
    path = desk.build(image_net("image", PLAN))
    given = [str(path) if one == "PLAN" else one for one in arguments]
    target = picture.with_name("out.png")
    assert pixelrt("run", desk.bundle.root, picture, "-o", target, *given) == code
    assert words in capsys.readouterr().err
    assert not target.exists()
    desk.cuda.assert_clean()


def test_a_device_that_goes_away(desk: Desk, picture: Path, capsys: Any) -> None:
    path = desk.build(image_net("image", PLAN))
    target = picture.with_name("out.png")
    desk.cuda = FakeCuda(fail_call="copy", lose_device=True)
    desk.functions = dict(FUNCTIONS)
    desk.__post_init__()
    assert pixelrt("run", desk.bundle.root, picture, "-o", target, "--plan", path) == 4
    told = capsys.readouterr().err
    assert told.startswith("pixelrt: planted failure of copy")
    assert "and while releasing: planted failure" in told
    assert not target.exists()
    desk.cuda.finish()
    desk.cuda.assert_clean()
