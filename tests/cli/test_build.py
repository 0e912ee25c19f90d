"""``pixelrt build`` over TensorRT's real builder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pixelrt.bundle import Bundle
from pixelrt.cli.build import command, phase_bar
from pixelrt.engines import build
from pixelrt.engines.build import TensorRT
from pixelrt.errors import BackendError, CheckError, PixelrtError, UsageError
from tests.engines.support import required_tensorrt


@pytest.fixture(autouse=True)
def rtx(monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    """The builder under test as TensorRT for RTX, the kind that asks for no GPU."""
    trt = TensorRT(required_tensorrt().module, "tensorrt-rtx", "1.7.1")
    monkeypatch.setattr(build, "load_tensorrt", lambda flavour: trt)
    return trt


def run(bundle: Bundle, *arguments: Any, backend: str = "tensorrt-rtx") -> None:
    words = [str(bundle.root), "--backend", backend, *map(str, arguments)]
    command.main(words, prog_name="pixelrt build", standalone_mode=False)


def test_plan_and_facts(srgan_bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    plan, copy = tmp_path / "x.plan", tmp_path / "copy.json"
    run(srgan_bundle, "--shapes", "64x64", "--report", "--json", copy, "-o", plan)
    told = capsys.readouterr()
    assert "engine layers" in told.out
    assert "node_conv2d" in told.out
    assert "100.0% of multiply-adds" in told.err
    facts = json.loads((tmp_path / "x.plan.json").read_bytes())
    assert facts == json.loads(copy.read_bytes())
    assert facts["sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert facts["bytes"] == plan.stat().st_size
    assert facts["bundle"] == srgan_bundle.sha256
    assert facts["target"]["capabilities"] == ["sm86", "sm89", "sm120"]
    assert facts["options"]["profiles"] == ["1x64x64"]
    assert facts["graph"]["role"] == "image"
    assert facts["graph"]["weights"]
    assert list(facts["report"]["multiply_adds"]) == ["float16"]
    assert facts["conversion"]["precision"] == "float16"
    assert facts["conversion"]["worst_db"] >= 60
    assert facts["conversion"]["share"] >= 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy.json",
        "x.plan",
        "x.plan.json",
    ]


def test_float32_on_request(srgan_bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    run(srgan_bundle, "--static", "--precision", "float32", "-o", tmp_path / "x.plan")
    facts = json.loads((tmp_path / "x.plan.json").read_bytes())
    assert list(facts["report"]["multiply_adds"]) == ["float32"]
    assert facts["conversion"].keys() == {"precision", "sha256"}


def test_the_key_tells_builds_apart(srgan_bundle: Bundle, tmp_path: Path) -> None:
    keys = []
    changes = (
        [],
        [],
        ["--level", "1"],
        ["--workspace", "1GB"],
        ["--graph", "core"],
        ["--precision", "float32"],
        ["--target-db", "61"],
    )
    for arguments in changes:
        run(srgan_bundle, "--static", "-q", "-o", tmp_path / "x.plan", *arguments)
        keys.append(json.loads((tmp_path / "x.plan.json").read_bytes())["key"])
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(keys) - 1


def test_a_name_of_its_own(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(srgan_bundle, "--shapes", "8x8,64x64,128x128", "--shapes", "256x256", "-o", tmp_path)
    (name,) = (path.name for path in tmp_path.glob("*.plan"))
    assert name.startswith(
        f"{srgan_bundle.manifest.name}-image-tensorrt-rtx-1.7.1-sm86+sm89+sm120-"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(srgan_bundle, "--static")
    assert Path(name).is_file()


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["--target", "sm99"], UsageError, "sm75, sm86, sm89, sm120, sm121"),
        (["--shapes", "64"], UsageError, "is no profile"),
        (["--shapes", "64x64", "--shapes", "1x64x64"], UsageError, "given twice"),
        (["--hardware-compatibility", "ampere_plus"], UsageError, "no hardware compatibility"),
        (["--dla-core", "0"], UsageError, "no DLA"),
        (["--workspace", "1kB", "--static"], BackendError, "workspace"),
    ],
)
def test_mistakes(
    arguments: list[str],
    kind: type[PixelrtError],
    said: str,
    srgan_bundle: Bundle,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind) as caught:
        run(srgan_bundle, *arguments, "-o", tmp_path / "x.plan")
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_is_named(srgan_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="family srgan, variant"):
        run(srgan_bundle, "--workspace", "1kB", "--static", "-o", tmp_path / "x.plan")


def test_another_precision_is_not_written(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: Any, **__: Any) -> None:
        raise CheckError("the engine does not run in float16")

    monkeypatch.setattr("pixelrt.engines.report.check_precision", other)
    with pytest.raises(CheckError):
        run(srgan_bundle, "--static", "-o", tmp_path / "x.plan")
    assert list(tmp_path.iterdir()) == []


def test_timings_are_kept_in_the_cache(
    srgan_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PIXELRT_CACHE", str(tmp_path / "cache"))
    run(srgan_bundle, "--static", "-o", tmp_path / "x.plan")
    (kept,) = (tmp_path / "cache" / "timing").iterdir()
    assert kept.stat().st_size > 0
    kept.write_bytes(b"rubbish")
    run(srgan_bundle, "--static", "-o", tmp_path / "x.plan")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIXELRT_CACHE", str(tmp_path / "file"))
    run(srgan_bundle, "--static", "-o", tmp_path / "x.plan")
    assert "the next build measures again" in capsys.readouterr().err


def test_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with phase_bar(enabled=True) as step:
        assert step is None, "standard error is no terminal here"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with phase_bar(enabled=True) as step:
        assert step is not None
        step("Building engine", 0, 6)
        step("Building engine", 3, 6)
    assert "Building engine" in capsys.readouterr().err
