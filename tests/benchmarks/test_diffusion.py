"""The benchmark of diffusion: small networks, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import diffusion
from benchmarks.records import DiffusionReport, read_record
from benchmarks.script import run_command


@pytest.mark.slow
def test_the_real_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    out = tmp_path / "out.json"
    arguments = ["--quick", "--work", str(tmp_path), "-o", str(out), "--peer", "float32"]
    assert run_command(diffusion.main, arguments) == 0
    report = read_record(out)
    assert isinstance(report, DiffusionReport)
    assert report.quick
    assert [case.name.partition(" ")[2] for case in report.cases] == [
        "UNet step, batch 2, 64x64",
        "VAE decode, 64x64",
    ]
    for case, counted in zip(report.cases, report.operations, strict=True):
        assert case.multiply_adds > 1_000_000
        ((pair,), absent) = case.pairs, case.absent
        assert not absent
        assert (pair.peer.psnr or 0) > 90  # PyTorch and onnxruntime with the same weights
        assert (pair.ours.psnr or 0) > 35
        total, *kernels = counted.rows
        if not total.reason:
            assert any(row.facts.get("multiply-adds") for row in kernels)
    assert len(report.overhead) == 4
    assert all(0 < row.facts["seconds"] < 1 for row in report.overhead)
