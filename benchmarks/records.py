"""What the scripts write to ``benchmarks/results/``: JSON, validated when it is read."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

import pixelrt
from pixelrt.bench.machine import describe_machine
from pixelrt.bench.schema import Machine, Result, Subject, Summary, Warmup
from pixelrt.errors import InputError
from pixelrt.files import atomic_write

FORMAT = 1


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who made a file: when, with which command, where."""

    format: int
    made: str
    command: str
    pixelrt: str
    machine: Machine


class Side(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the two of a pair. ``seconds``: of one image (``parts`` times what was run: a
    peer that cannot tile runs one tile, and the image is so many of them). ``share``: of
    the measured ceiling of its precision, counted in the multiply-adds of the plain graph,
    or ``null``. ``kept``: what stays in float32 all the same. ``psnr``: of its output against
    the float32 route, in 8-bit levels."""

    name: str
    settings: str
    precision: str
    note: str
    parts: int
    seconds: Summary
    warmup: Warmup
    peak_memory: int
    psnr: float | None
    compared: str
    share: float | None
    stable: bool
    reasons: list[str]
    kept: str = ""

    @property
    def arithmetic(self) -> str:
        return f"{self.precision} and float32" if self.kept else self.precision


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer and pixelrt in turn, each in its own process. ``ratio``: the median over the
    rounds of peer over pixelrt; ``low`` and ``high``: its quartiles."""

    peer: Side
    ours: Side
    rounds: int
    ratio: float
    low: float
    high: float


class Absent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair that could not be measured, and why."""

    peer: str
    ours: str
    reason: str


class Compared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One case. ``multiply_adds``: of the plain graph for the whole image, tiles' halos not
    counted."""

    name: str
    subject: Subject
    width: int
    height: int
    multiply_adds: int
    pairs: list[Pair]
    absent: list[Absent]


class Ceiling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that was seen here: floating-point operations or bytes per second."""

    what: str
    precision: str
    per_second: float
    reason: str


class CompareReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Literal["compare"] = "compare"
    origin: Origin
    quick: bool
    ceilings: list[Ceiling]
    cases: list[Compared]


class Growth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process's measurement. ``sweep``: what was varied (size, tile, halo, threads).
    ``result`` is ``null`` where ``reason`` says why."""

    sweep: str
    value: str
    threads: int
    result: Result | None
    reason: str


class GrowthReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Literal["growth"] = "growth"
    origin: Origin
    quick: bool
    subject: Subject
    rows: list[Growth]


class GpuRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the GPU measurement. ``seconds`` of one image or copy, ``null`` where
    ``reason`` says why; ``facts`` are further numbers by name."""

    part: str
    name: str
    seconds: Summary | None
    facts: dict[str, float]
    note: str
    reason: str


class GpuReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Literal["gpu"] = "gpu"
    origin: Origin
    quick: bool
    device: str
    rows: list[GpuRow]
    timeline: str


class OpenVinoRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement of a part of ``benchmarks.openvino``. ``name``: a precision, an emulated
    rounding, or an operation with its kernel; empty where the whole part failed. ``facts``:
    numbers by name, in seconds, bytes, dB."""

    part: str
    name: str
    facts: dict[str, float]
    note: str = ""
    reason: str = ""


class OpenVinoCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network with pictures of one size."""

    name: str
    subject: Subject
    width: int
    height: int
    rows: list[OpenVinoRow]


class OpenVinoReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Literal["openvino"] = "openvino"
    origin: Origin
    quick: bool
    ceilings: list[Ceiling]
    cases: list[OpenVinoCase]


class DiffusionReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``cases``: networks of one pipeline; ``operations``: of each, as OpenVINO counts them;
    ``overhead``: by scheduler, ``seconds`` of a step outside the networks, and their ``share`` of
    the UNet's."""

    kind: Literal["diffusion"] = "diffusion"
    origin: Origin
    quick: bool
    ceilings: list[Ceiling]
    cases: list[Compared]
    operations: list[OpenVinoCase]
    overhead: list[OpenVinoRow]


class StartRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process from its start to its end, with its picture on the disk."""

    name: str
    note: str
    seconds: Summary
    stable: bool


class StartReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    kind: Literal["start"] = "start"
    origin: Origin
    quick: bool
    width: int
    height: int
    rows: list[StartRow]


AnyReport = (
    CompareReport | GrowthReport | GpuReport | OpenVinoReport | DiffusionReport | StartReport
)
KINDS: dict[str, type[AnyReport]] = {
    "compare": CompareReport,
    "growth": GrowthReport,
    "gpu": GpuReport,
    "openvino": OpenVinoReport,
    "diffusion": DiffusionReport,
    "start": StartReport,
}


class _Head(msgspec.Struct):
    kind: str


def origin(module: str) -> Origin:
    """Of the running script."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    made = datetime.now().astimezone().isoformat(timespec="seconds")
    return Origin(FORMAT, made, command, pixelrt.__version__, describe_machine())


def write_record(path: Path, record: AnyReport) -> None:
    """Write ``record`` as indented JSON and read it back, so that nothing invalid is kept."""
    raw = msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"
    decode_record(raw, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(raw)


def read_record(path: Path) -> AnyReport:
    """Raises ``InputError`` naming the field that is wrong."""
    return decode_record(path.read_bytes(), str(path))


def decode_record(raw: bytes, name: str) -> AnyReport:
    try:
        kind = msgspec.json.decode(raw, type=_Head).kind
        if kind not in KINDS:
            raise InputError(f"{name} is of an unknown kind", found=kind, expected=", ".join(KINDS))
        record: AnyReport = msgspec.json.decode(raw, type=KINDS[kind])
    except msgspec.MsgspecError as exc:
        raise InputError(f"{name} is no benchmark result", found=str(exc)) from exc
    if record.origin.format != FORMAT:
        raise InputError(f"{name} has format {record.origin.format}", expected=str(FORMAT))
    return record
