"""Plans on disk: found, matched, sealed; every way to be wrong has its words."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.manifest import FileEntry
from pixelrt.plans.cache import PlanCache
from pixelrt.plans.facts import FORMAT, PlanFacts, PlanGraph, PlanSample, PlanTarget
from pixelrt.plans.store import (
    as_artefact,
    facts_path,
    find_plans,
    from_entry,
    plan_at,
    plan_cache,
    write_plan,
)
from pixelrt.plans.target import Capability, Target, mismatch
from tests.bundles import write_bundle

FILES = {"engine.plan": b"p" * 1000, "sample-1x64x64.npz": b"sample", "report.json": b"{}"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "double.pixelrt")


def facts_for(bundle: Bundle, role: str = "image", **changes: Any) -> PlanFacts:
    graph = bundle.component.graph(role)  # type: ignore[arg-type]
    files = bundle.manifest.files
    weights = [files[name].sha256 for name in graph.data]
    told: dict[str, Any] = {
        "format": FORMAT,
        "plan": "engine.plan",
        "key": "ab" * 32,
        "target": PlanTarget(
            "tensorrt", "11.4.0.106", ["sm89"], "NVIDIA L4", "13.0", "linux-x86_64"
        ),
        "graph": PlanGraph(role, files[graph.file].sha256, weights, graph.inputs, graph.outputs),  # type: ignore[arg-type]
        "profiles": ["1x8x8,1x64x64,1x128x128"],
        "precision": "float16",
        "target_db": 60.0,
        "options": {"version_compatible": False},
        "conversion": {},
        "bundle": bundle.sha256,
        "samples": [PlanSample("photo-1x64x64", "sample-1x64x64.npz", 64, 64)],
        "seconds": 1.0,
        "warnings": [],
        "report": {},
        "made_by": {},
        "files": {
            name: FileEntry(hashlib.sha256(data).hexdigest(), len(data))
            for name, data in FILES.items()
        },
    }
    return PlanFacts(**{**told, **changes})


def stored(bundle: Bundle, name: str = "one", **changes: Any) -> Path:
    path = bundle.root / "engines" / "tensorrt-11" / f"{name}.plan"
    write_plan(path, facts_for(bundle, **changes), FILES)
    return path


def test_written_and_read(bundle: Bundle) -> None:
    path = stored(bundle)
    again = plan_at(path)
    assert again.facts == facts_for(bundle)
    assert {name: bytes(data) for name, data in again.read().items()} == FILES
    assert path.read_bytes() == FILES["engine.plan"]


def test_two_plans_in_one_folder_keep_their_files(bundle: Bundle) -> None:
    one, two = stored(bundle), stored(bundle, "two", key="cd" * 32)
    found = find_plans(bundle, bundle.component.graph("image"))
    assert {plan.place for plan in found.plans} == {str(one), str(two)}
    assert found.problems == ()
    assert find_plans(bundle, bundle.component.graph("core")).plans == ()


def test_through_the_cache(bundle: Bundle) -> None:
    cache: PlanCache = plan_cache()
    key = "ab" * 32
    with cache.get_or_make(key, lambda: as_artefact(facts_for(bundle), FILES)) as entry:
        facts, files = from_entry(entry)
    assert facts == facts_for(bundle)
    assert {name: bytes(data) for name, data in files.items()} == FILES
    (found,) = find_plans(bundle, bundle.component.graph("image")).plans
    assert found.read() == files
    assert cache.get("cd" * 32) is None
    data = bytearray(entry.path.read_bytes())
    data[5] ^= 1
    entry.path.write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        found.read()


def alter_plan(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def alter_sample(path: Path) -> None:
    path.with_name(f"{path.name}.sample-1x64x64.npz").write_bytes(b"samplf")


def make_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


READ_CASES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (alter_plan, "engine.plan was altered: its sha256 is another"),
    (lambda path: path.write_bytes(b"p" * 999), "999 bytes, not 1000"),
    (lambda path: path.write_bytes(b""), "0 bytes, not 1000"),
    (lambda path: path.unlink(), "No such file"),
    (alter_sample, "sample-1x64x64.npz was altered"),
    (make_link, "levels of symbolic links"),
    (lambda path: path.chmod(0o666), "is no file of ours"),
)


@pytest.mark.parametrize(("damage", "said"), READ_CASES, ids=[said for _, said in READ_CASES])
def test_damaged_files(bundle: Bundle, damage: Callable[[Path], object], said: str) -> None:
    path = stored(bundle)
    (found,) = find_plans(bundle, bundle.component.graph("image")).plans
    damage(path)
    with pytest.raises(InputError) as caught:
        found.read()
    assert said in str(caught.value)
    assert "pixelrt build" in str(caught.value)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    told = json.loads(facts_path(path).read_bytes())
    change(told)
    facts_path(path).write_text(json.dumps(told))


def resealed(path: Path, **changes: Any) -> None:
    """Facts altered by somebody who knows how to seal them."""
    facts = msgspec.structs.replace(plan_at(path).facts, **changes)
    raw = msgspec.json.encode({"facts": facts, "seal": facts.seal()})
    facts_path(path).write_bytes(raw)


FACT_CASES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda p: changed(p, lambda t: t["facts"].update(precision="float32")), "it was altered"),
    (lambda p: changed(p, lambda t: t.update(seal="0" * 64)), "it was altered"),
    (lambda p: changed(p, lambda t: t["facts"].pop("key")), "missing required field `key`"),
    (lambda p: facts_path(p).write_bytes(b"\xff"), "does not describe a plan"),
    (lambda p: facts_path(p).write_bytes(b"[" * 100_000), "does not describe a plan"),
    (lambda p: facts_path(p).write_bytes(b" " * (17 << 20)), "too large"),
    (lambda p: facts_path(p).unlink(), "cannot be used as a plan"),
    (lambda p: resealed(p, format=2), "format 2, not 1"),
    (lambda p: resealed(p, plan="other"), "other is not among its files"),
    (lambda p: resealed(p, profiles=["64"]), "is no profile"),
    (
        lambda p: resealed(p, files={"engine.plan": FileEntry("", 1), "../x": FileEntry("", 1)}),
        "'../x'",
    ),
    (lambda p: resealed(p, samples=[PlanSample("x", "y", 1, 1)]), "y is not among its files"),
    (lambda p: resealed(p, target=PlanTarget("tensorrt", "11", ["fast"])), "'fast'"),
)


@pytest.mark.parametrize(("damage", "said"), FACT_CASES, ids=[said for _, said in FACT_CASES])
def test_wrong_facts(bundle: Bundle, damage: Callable[[Path], object], said: str) -> None:
    """A plan whose facts are wrong is not offered, and the reason is told."""
    path = stored(bundle)
    damage(path)
    found = find_plans(bundle, bundle.component.graph("image"))
    assert found.plans == ()
    assert said in found.problems[0]
    assert str(path) in found.problems[0]


def test_a_plan_of_another_graph(bundle: Bundle) -> None:
    stored(bundle, graph=PlanGraph("image", "0" * 64, [], [], []))
    found = find_plans(bundle, bundle.component.graph("image"))
    assert found.plans == ()
    assert "it was made from another graph than graphs/image.onnx of double" in found.problems[0]


def test_a_folder_behind_a_link_is_not_looked_into(bundle: Bundle, tmp_path: Path) -> None:
    path = stored(bundle)
    shutil.move(path.parent, tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    assert find_plans(bundle, bundle.component.graph("image")).plans == ()


L4 = Target("tensorrt", "11.4.0.106", (Capability(8, 9),), "NVIDIA L4", "13.0", "linux-x86_64")
RTX = Target("tensorrt-rtx", "1.7.1", (Capability(8, 6), Capability(8, 9)), system="linux-x86_64")
H200 = replace(L4, capabilities=(Capability(9, 0),), gpu="NVIDIA H200")


@pytest.mark.parametrize(
    ("plan", "here", "options", "said"),
    [
        (L4, L4, {}, ""),
        (L4, H200, {}, "built for NVIDIA L4 (sm89), this is NVIDIA H200 (sm90)"),
        (L4, H200, {"hardware_compatibility": "ampere_plus"}, ""),
        (
            L4,
            replace(L4, gpu="Tesla T4", capabilities=(Capability(7, 5),)),
            {"hardware_compatibility": "ampere_plus"},
            "Ampere and later GPUs, this is Tesla T4 (sm75)",
        ),
        (L4, replace(L4, gpu="NVIDIA L40S"), {}, "tuned for NVIDIA L4, this is NVIDIA L40S"),
        (
            L4,
            replace(L4, gpu="NVIDIA L40S"),
            {"hardware_compatibility": "same_compute_capability"},
            "",
        ),
        (L4, replace(L4, version="11.5.0.1"), {}, "built by tensorrt 11.4.0.106, this is 11.5.0.1"),
        (L4, replace(L4, version="11.5.0.1"), {"version_compatible": True}, ""),
        (L4, replace(L4, version="11.3.0.1"), {"version_compatible": True}, "an earlier one"),
        (L4, replace(L4, cuda="12.9"), {}, "CUDA 13.0, this is 12.9"),
        (L4, replace(L4, cuda="13.2"), {}, ""),
        (L4, replace(L4, system="linux-aarch64"), {}, "built on linux-x86_64"),
        (RTX, L4, {}, "it is for tensorrt-rtx, this is tensorrt"),
        (RTX, replace(L4, flavour="tensorrt-rtx", version="1.7.1"), {}, ""),
        (RTX, replace(H200, flavour="tensorrt-rtx", version="1.7.1"), {}, "GPUs (sm86 or sm89)"),
    ],
)
def test_mismatch(plan: Target, here: Target, options: dict[str, Any], said: str) -> None:
    found = mismatch(plan, here, options)
    assert said in found
    assert bool(said) == bool(found)
