"""Targets and keys."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pixelrt.errors import BackendError, UsageError
from pixelrt.plans import target as module
from pixelrt.plans.target import (
    CAPABILITIES,
    RTX_CAPABILITIES,
    CacheKey,
    Capability,
    ahead_of_time,
    detect_target,
    parse_capabilities,
)


def test_capabilities_are_read_and_printed() -> None:
    assert parse_capabilities("sm120,sm86, 8.9,SM_86", "tensorrt-rtx") == (
        Capability(8, 6),
        Capability(8, 9),
        Capability(12, 0),
    )
    for name in CAPABILITIES:
        assert [str(c) for c in parse_capabilities(name, "tensorrt")] == [name]


@pytest.mark.parametrize("text", ["", "sm", "sm99", "sm90", "8", "ada", "sm86;sm89", "sm86,"])
def test_nonsense_names_the_known(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_capabilities(text, "tensorrt-rtx")
    assert ", ".join(RTX_CAPABILITIES) in str(caught.value)


def test_every_part_changes_the_key() -> None:
    target = ahead_of_time("tensorrt-rtx", "1.7.1", parse_capabilities("sm89", "tensorrt-rtx"))
    key = CacheKey("g", ("w",), {"level": 3, "profiles": ["1x64x64"]}, target)
    others = [
        replace(key, graph="h"),
        replace(key, weights=("w", "w")),
        replace(key, weights=()),
        replace(key, options={"level": 4, "profiles": ["1x64x64"]}),
        replace(key, options={"level": 3, "profiles": ["1x64x65"]}),
        replace(key, target=replace(target, version="1.7.2")),
        replace(key, target=replace(target, flavour="tensorrt")),
        replace(key, target=replace(target, capabilities=(Capability(8, 6),))),
        replace(key, target=replace(target, gpu="RTX 4090")),
        replace(key, target=replace(target, cuda="13.0")),
        replace(key, target=replace(target, system="windows-amd64")),
    ]
    keys = {key.key(), *(other.key() for other in others)}
    assert len(keys) == len(others) + 1
    reordered = replace(key, options={"profiles": ["1x64x64"], "level": 3})
    assert reordered.key() == key.key()


def test_a_plan_without_a_target_says_where_it_runs() -> None:
    assert "sm86+sm89+sm120" in str(ahead_of_time("tensorrt-rtx", "1.7.1"))


def cuda(count: int = 1, error: int = 0) -> Any:
    """CUDA's answers on a machine with ``count`` GPUs, or where every call fails."""
    facts = SimpleNamespace(major=8, minor=9, name=b"NVIDIA L4\0\0\0")
    return SimpleNamespace(
        cudaGetDeviceCount=lambda: (error, count),
        cudaGetDeviceProperties=lambda device: (error, facts),
        cudaRuntimeGetVersion=lambda: (error, 13040),
        cudaGetErrorString=lambda code: (0, b"CUDA driver version is insufficient"),
    )


def test_this_machines_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cuda_runtime", cuda)
    found = detect_target("tensorrt", "11.4.0")
    assert (found.gpu, found.cuda, found.capabilities) == ("NVIDIA L4", "13.4", (Capability(8, 9),))
    with pytest.raises(BackendError, match="no GPU number 1"):
        detect_target("tensorrt", "11.4.0", device=1)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cuda_runtime", lambda: cuda(error=35))
    with pytest.raises(BackendError, match="CUDA error 35, CUDA driver version is insufficient"):
        detect_target("tensorrt", "11.4.0")


def test_no_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(BackendError, match=r"pixelrt\[tensorrt\]"):
        detect_target("tensorrt", "11.4.0")
