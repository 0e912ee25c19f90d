"""The JSON that ``pixelrt bench`` writes. ``docs/benchmarks.md`` says what each field means.

Times are seconds, memory is bytes, sizes are pixels (width before height), fidelity is dB.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from pixelrt.errors import InputError

FORMAT = 1

STAGES = ("decode", "copy_in", "compute", "copy_out", "encode")


class Summary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A series of times in seconds."""

    runs: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float


class Warmup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ran before the measurement. ``first``: seconds of the very first run.
    ``spread``: of the last windows' medians, 0.1 for 10 %."""

    runs: int
    seconds: float
    first: float
    steady: bool
    spread: float


class Clocks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frequency of the processors that may be used, in MHz, as the system reports it."""

    lowest: float
    mean: float
    highest: float
    source: str


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where it ran. ``governor`` is ``null`` where the system does not tell."""

    processor: str
    features: list[str]
    usable_cpus: int
    cpus: int
    memory: int
    system: str
    governor: str | None
    load_average: float | None
    gpus: list[str]
    versions: dict[str, str]


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle that was measured."""

    name: str
    family: str
    variant: str
    weights: str
    scale: int
    sha256: str


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the image went through the network. ``work``: pixels computed per image pixel."""

    asked: str
    tiles: int
    tile_width: int
    tile_height: int
    halo: int
    work: float


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Peaks during the measured runs, and how they were found.

    ``host_peak``: resident memory of the whole process; ``host_before``: the same before the
    first run of this case. ``device_peak``: used memory of the whole device, ``null``
    where there is none.
    """

    host_peak: int
    host_before: int
    host_method: str
    device_peak: int | None
    device_method: str


class SampleFidelity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reference sample of the bundle on this backend, against PyTorch in float32."""

    name: str
    graph: str
    psnr: float
    max_abs: float
    passed: bool


class Fidelity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measured output, read back from its file, against the float32 reference route.

    ``psnr`` in dB of 8-bit levels, 300 where identical, ``null`` where nothing was compared;
    ``max_levels``: the largest difference of one value; ``limit``: the least PSNR that the
    precision has to reach, ``null`` where the halo asked for is not exact or nothing was
    compared; ``note``: what was compared.
    """

    psnr: float | None
    max_levels: int | None
    limit: float | None
    passed: bool
    compared_pixels: int
    reference: str
    note: str
    samples: list[SampleFidelity]


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One backend, precision, size and tile."""

    backend: str
    backend_version: str
    precision: str
    engine: str
    device: str
    verdict: str
    passed_over: list[str]
    notes: list[str]
    width: int
    height: int
    output_width: int
    output_height: int
    plan: Plan
    warmup: Warmup
    latency: Summary
    model: Summary
    stages: dict[str, Summary]
    images_per_second: float
    megapixels_per_second: float
    seconds_per_megapixel: float
    memory: Memory
    clocks_before: Clocks | None
    clocks_after: Clocks | None
    fidelity: Fidelity
    stable: bool
    spread: float
    reasons: list[str]
    samples: list[float]


class Skipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was asked for and could not be measured, with the reason."""

    backend: str
    precision: str
    size: str
    tile: str
    reason: str


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    format: int
    kind: Literal["bench"]
    made: str
    command: str
    pixelrt: str
    effort: str
    input: str
    subject: Subject
    machine: Machine
    results: list[Result]
    skipped: list[Skipped]


def encode_report(report: Report) -> bytes:
    """Indented JSON. Raises ``ValueError`` where a number is not finite: JSON has none such."""
    problems = problems_of(report)
    if problems:
        raise ValueError("; ".join(problems))
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def decode_report(raw: bytes) -> Report:
    """The report in ``raw``. Raises ``InputError`` saying which field is wrong."""
    try:
        report = msgspec.json.decode(raw, type=Report)
    except msgspec.MsgspecError as exc:
        raise InputError("this is no benchmark report", found=str(exc)) from exc
    if problems := problems_of(report):
        raise InputError("this benchmark report contradicts itself", found="; ".join(problems))
    return report


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``Report``."""
    return msgspec.json.schema(Report)


def problems_of(report: Report) -> list[str]:
    """What the types alone do not say, in words."""
    found = [] if report.format == FORMAT else [f"format {report.format}, known is {FORMAT}"]
    for number, result in enumerate(report.results):
        found += [f"results[{number}]: {text}" for text in _problems(result)]
    return found


def _problems(result: Result) -> list[str]:
    found = [
        f"{name} is not finite" for name, value in _numbers(result) if not math.isfinite(value)
    ]
    if sorted(result.stages) != sorted(STAGES):
        return [*found, f"stages are {', '.join(result.stages)}"]
    series = {"latency": result.latency, "model": result.model, **result.stages}
    for name, summary in series.items():
        if not summary.minimum <= summary.p50 <= summary.p90 <= summary.p95 <= summary.p99:
            found.append(f"percentiles of {name} do not rise")
        if summary.runs != len(result.samples):
            found.append(f"{name} has {summary.runs} runs, samples {len(result.samples)}")
    parts = sum(summary.mean for summary in result.stages.values())
    if not math.isclose(parts, result.latency.mean, rel_tol=0.01, abs_tol=1e-5):
        found.append(f"stages add up to {parts:.6f} s of {result.latency.mean:.6f} s")
    if result.stable == bool(result.reasons):
        found.append("stable and reasons disagree")
    return found


def _numbers(value: object, name: str = "result") -> list[tuple[str, float]]:
    """Every float in a struct, with its path."""
    if isinstance(value, float):
        return [(name, value)]
    if isinstance(value, msgspec.Struct):
        fields = value.__struct_fields__
        return [n for f in fields for n in _numbers(getattr(value, f), f"{name}.{f}")]
    if isinstance(value, dict):
        return [n for key, item in value.items() for n in _numbers(item, f"{name}.{key}")]
    if isinstance(value, list):
        return [n for i, item in enumerate(value) for n in _numbers(item, f"{name}[{i}]")]
    return []
