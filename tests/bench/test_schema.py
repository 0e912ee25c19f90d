"""The JSON of a benchmark: what is written is read back, what is wrong is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pixelrt.bench import schema
from pixelrt.bench.schema import (
    STAGES,
    Fidelity,
    Machine,
    Memory,
    Plan,
    Report,
    Result,
    SampleFidelity,
    Skipped,
    Subject,
    Warmup,
    decode_report,
    encode_report,
    json_schema,
)
from pixelrt.bench.statistics import summarise
from pixelrt.errors import InputError

ROOT = Path(__file__).parents[2]
SAMPLES = [1.0, 1.02, 1.04]


def make_result(**changes: Any) -> Result:
    part = [value / len(STAGES) for value in SAMPLES]
    facts: dict[str, Any] = {
        "backend": "onnxruntime-cpu", "backend_version": "1.31", "precision": "float32",
        "engine": "", "device": "a processor", "verdict": "verified now", "passed_over": [],
        "notes": [],
        "width": 100, "height": 50, "output_width": 200, "output_height": 100,
        "plan": Plan("tile auto, halo exact", 2, 80, 50, 12, 1.6),
        "warmup": Warmup(9, 8.0, 3.0, True, 0.02),
        "latency": summarise(SAMPLES), "model": summarise(SAMPLES),
        "stages": {name: summarise(part) for name in STAGES},
        "images_per_second": 1 / 1.02, "megapixels_per_second": 0.005,
        "seconds_per_megapixel": 204.0,
        "memory": Memory(10**8, 10**7, "VmHWM", None, "no device memory is used"),
        "clocks_before": None, "clocks_after": schema.Clocks(2600.0, 2600.0, 2600.0, "cpuinfo"),
        "fidelity": Fidelity(
            70.1, 1, 68.0, True, 20000, "plain onnxruntime", "the whole output",
            [SampleFidelity("photo-small", "core", 120.0, 1e-6, True)],
        ),
        "stable": True, "spread": 0.02, "reasons": [], "samples": list(SAMPLES),
    }  # fmt: skip
    return Result(**{**facts, **changes})


def make_report(*results: Result, **changes: Any) -> Report:
    facts: dict[str, Any] = {
        "format": schema.FORMAT, "kind": "bench", "made": "2026-01-02T03:04:05+00:00",
        "command": "pixelrt bench demo", "pixelrt": "0.1.0", "effort": "3 runs",
        "input": "the photograph", "subject": Subject("demo", "srgan", "x", "w", 2, "ab" * 32),
        "machine": Machine("a processor", ["avx2"], 2, 4, 2**34, "Linux", None, 0.5, [], {}),
        "results": list(results) or [make_result()],
        "skipped": [Skipped("cuda", "auto", "all", "all", "no device")],
    }  # fmt: skip
    return Report(**{**facts, **changes})


def test_round_trip() -> None:
    report = make_report()
    raw = encode_report(report)
    assert decode_report(raw) == report
    assert encode_report(decode_report(raw)) == raw


DAMAGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "another format": (lambda r: r.update(format=99), "format 99"),
    "a field too many": (lambda r: r.update(extra=1), "extra"),
    "a field missing": (lambda r: r["results"][0].pop("latency"), "latency"),
    "a text for a number": (lambda r: r["results"][0].update(width="wide"), "width"),
    "null for a number": (lambda r: r["results"][0]["latency"].update(p50=None), "p50"),
    "percentiles that fall": (
        lambda r: r["results"][0]["latency"].update(p90=0.1),
        "percentiles of latency do not rise",
    ),
    "stages that do not add up": (
        lambda r: r["results"][0]["stages"]["compute"].update(mean=9.0),
        "stages add up to",
    ),
    "a stage missing": (lambda r: r["results"][0]["stages"].pop("decode"), "stages are"),
    "samples lost": (lambda r: r["results"][0]["samples"].pop(), "runs, samples 2"),
    "unstable without a reason": (lambda r: r["results"][0].update(stable=False), "disagree"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str) -> None:
    damage, words = DAMAGES[name]
    raw = json.loads(encode_report(make_report()))
    damage(raw)
    with pytest.raises(InputError, match=re.escape(words)):
        decode_report(json.dumps(raw).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_report_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="no benchmark report"):
        decode_report(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="spread is not finite"):
        encode_report(make_report(make_result(spread=value)))


def structs() -> Iterator[type[msgspec.Struct]]:
    for value in vars(schema).values():
        if isinstance(value, type) and issubclass(value, msgspec.Struct):
            yield value


def test_the_page_names_every_field() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    fields = {f"`{name}`" for one in structs() if one is not msgspec.Struct
              for name in one.__struct_fields__}  # fmt: skip
    assert len(fields) > 60
    assert sorted(name for name in fields if name not in text) == []


def test_the_json_schema_knows_every_struct() -> None:
    assert len(json_schema()["$defs"]) == len(list(structs()))
