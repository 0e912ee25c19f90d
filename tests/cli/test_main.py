"""The command as a whole: help, lazy imports, inspect, verify, doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pixelrt.bundle import Bundle
from pixelrt.cli.main import VERBS, run
from pixelrt.runtime.backends.openvino import openvino_here

HEAVY = (
    *("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "transformers", "rich", "PIL"),
    *("av", "pixelrt.runtime.diffusion"),
)


def loaded(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after ``code``."""
    script = (
        f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stderr.strip().splitlines()[-1].replace("'", '"')))


def test_importing_and_help_load_nothing_heavy() -> None:
    assert loaded("import pixelrt") == []
    assert loaded("from pixelrt.cli.main import run; run(['--help'])") == []


def test_running_loads_no_torch_and_no_onnx(srgan_bundle: Bundle) -> None:
    code = (
        "import numpy, pixelrt\n"
        f"pixelrt.load({str(srgan_bundle.root)!r})(numpy.zeros((8, 8, 3), 'uint8'))"
    )
    assert loaded(code) == ["onnxruntime"]


def test_the_verb_that_runs_pictures_loads_what_pictures_need() -> None:
    assert loaded("import pixelrt.cli.run") == ["PIL"]


def test_public_names() -> None:
    import pixelrt

    for name in pixelrt.__all__:
        assert getattr(pixelrt, name) is not None
    assert set(dir(pixelrt)) == set(pixelrt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = pixelrt.lod  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: Any) -> None:
    assert run([verb, "--help"]) == 0
    assert "Usage: pixelrt" in capsys.readouterr().out


def test_unknown_verbs_and_options(capsys: Any) -> None:
    assert run(["fly"]) == 2
    assert run(["run", "--wings"]) == 2
    assert run(["run"]) == 2
    told = capsys.readouterr().err
    assert "fly" in told
    assert "--wings" in told


def test_inspect(srgan_bundle: Bundle, capsys: Any) -> None:
    assert run(["inspect", str(srgan_bundle.root)]) == 0
    told = capsys.readouterr().out
    assert "super-resolution, x2, RGB -> RGB" in told
    assert srgan_bundle.sha256 in told
    assert run(["inspect", str(srgan_bundle.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "srgan"


def test_verify(srgan_bundle: Bundle, capsys: Any, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert run(["verify", str(srgan_bundle.root), "--report", str(report)]) == 0
    told = capsys.readouterr().out
    assert told.count(" ok") == 20
    assert "20 of 20 checks passed" in told
    assert "<html" in report.read_text()[:500]
    assert run(["verify", str(srgan_bundle.root), "--backend", "cuda"]) == 2


def test_verify_of_an_altered_bundle(srgan_bundle: Bundle, capsys: Any, tmp_path: Path) -> None:
    """Weights that were changed together with their digest still fail the reference."""
    import hashlib
    import shutil

    root = tmp_path / "altered.pixelrt"
    shutil.copytree(srgan_bundle.root, root)
    weights = root / "graphs/weights.bin"
    data = bytearray(weights.read_bytes())
    data[1000:1400] = bytes(400)
    weights.write_bytes(data)
    assert run(["verify", str(root)]) == 3
    assert "altered" in capsys.readouterr().err
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"]["graphs/weights.bin"]["sha256"] = hashlib.sha256(data).hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert run(["verify", str(root)]) == 1
    assert "FAILED" in capsys.readouterr().out
    cat = Path(__file__).parents[2] / "examples/photos/cat.png"
    assert run(["run", str(root), str(cat), "-o", str(tmp_path / "o.png")]) == 1
    assert "does not reproduce the reference" in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_a_graph_that_is_no_onnx(srgan_bundle: Bundle, capsys: Any, tmp_path: Path) -> None:
    from tests.bundles import write_bundle

    write_bundle(tmp_path / "junk.pixelrt")
    cat = Path(__file__).parents[2] / "examples/photos/cat.png"
    code = run(["run", str(tmp_path / "junk.pixelrt"), str(cat), "-o", str(tmp_path / "o.png")])
    assert code == 4
    assert "could not load graphs/image.onnx" in capsys.readouterr().err


def test_doctor(capsys: Any) -> None:
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out.partition("\npackages")[0]
    for name in (openvino_here().name, "onnxruntime-cpu"):
        (line,) = [line for line in told.splitlines() if line.startswith(f"  {name}  ")]
        assert "works" in line
