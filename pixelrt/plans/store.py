"""Where plans are kept: in their bundle, in the cache, or in a file that a user names.

In a bundle: ``engines/TARGET/NAME.plan``, with ``NAME.plan.json`` and what else belongs to it
beside it. In the cache one artefact holds the files of a plan one after another, in the order of
``PlanFacts.files``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pixelrt.bundle import BundledNetwork
from pixelrt.cache import cache_folder
from pixelrt.errors import InputError, OutputError
from pixelrt.files import atomic_write
from pixelrt.manifest import Graph
from pixelrt.plans.cache import PlanCache
from pixelrt.plans.facts import MAX_BYTES, SUFFIX, PlanFacts, decode_facts, encode_facts
from pixelrt.plans.seal import Artefact, DamagedError, Entry, open_file

ENGINES = "engines"
FACTS = "facts"
"""Key of the cache's metadata."""

Files = Mapping[str, bytes | memoryview]


@dataclass(frozen=True)
class StoredPlan:
    """A plan that was found. ``place``: where, in words."""

    facts: PlanFacts
    place: str
    _read: Callable[[], dict[str, memoryview]]

    def read(self) -> dict[str, memoryview]:
        """All files of the plan by name, each compared with its digest just now.

        Raises ``InputError`` for one that is missing, cut off or altered.
        """
        try:
            files = self._read()
        except (OSError, DamagedError) as exc:
            raise _damaged(self.place, str(exc)) from exc
        for name, entry in self.facts.files.items():
            data = files[name]
            if len(data) != entry.bytes:
                raise _damaged(self.place, f"{name} has {len(data)} bytes, not {entry.bytes}")
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise _damaged(self.place, f"{name} was altered: its sha256 is another")
        return files


@dataclass(frozen=True)
class Search:
    """What was found for a graph: its plans, and what could not be used with the reason."""

    plans: tuple[StoredPlan, ...]
    problems: tuple[str, ...]


def find_plans(bundle: BundledNetwork, graph: Graph) -> Search:
    """Plans made from ``graph`` of ``bundle``: those in the bundle, then those in the cache.

    Newest first in each place. Whether they fit this machine is for the caller to ask.
    """
    plans: list[StoredPlan] = []
    problems: list[str] = []
    for path in _newest(bundle.root / ENGINES):
        try:
            plans.append(plan_at(path))
        except InputError as exc:
            problems.append(str(exc))
    plans += _cached(problems)
    fitting = []
    for plan in plans:
        problem = graph_mismatch(plan.facts, bundle, graph)
        if not problem:
            fitting.append(plan)
        elif _meant(plan.facts, bundle, graph):
            problems.append(f"{plan.place}: {problem}")
    return Search(tuple(fitting), tuple(problems))


def graph_mismatch(facts: PlanFacts, bundle: BundledNetwork, graph: Graph) -> str:
    """Why a plan is not one of this graph, or an empty string."""
    files = bundle.files
    if facts.graph.role != graph.role:
        return f"it was made from the {facts.graph.role} graph, not from {graph.role}"
    weights = [files[name].sha256 for name in graph.data]
    if facts.graph.sha256 != files[graph.file].sha256 or facts.graph.weights != weights:
        return f"it was made from another graph than {graph.file} of {bundle.name}"
    return ""


def _meant(facts: PlanFacts, bundle: BundledNetwork, graph: Graph) -> bool:
    """Whether a plan says of itself that it is one of this graph."""
    of_network = facts.graph.network in ("", bundle.component.name)
    return facts.graph.role == graph.role and of_network and facts.bundle == bundle.sha256


def plan_at(path: Path) -> StoredPlan:
    """The plan ``NAME.plan``, with its facts ``NAME.plan.json`` and files beside it.

    Raises ``InputError`` where the facts are missing or not those of a plan.
    """
    beside = facts_path(path)
    try:
        with open_file(beside) as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, DamagedError) as exc:
        raise InputError(
            f"{path} cannot be used as a plan",
            found=f"{beside.name}: {exc}",
            expected="the two files that `pixelrt build` writes",
        ) from exc
    if len(raw) > MAX_BYTES:
        raise InputError(f"{beside} is too large to describe a plan", found=f"{len(raw)} bytes")
    facts = decode_facts(raw, beside)

    def read() -> dict[str, memoryview]:
        return {name: memoryview(_bytes(_place(path, facts, name))) for name in facts.files}

    return StoredPlan(facts, str(path), read)


def write_plan(path: Path, facts: PlanFacts, files: Files) -> None:
    """Write a plan and what belongs to it; its facts appear last, which make it visible.

    ``files``: every file of ``facts.files`` by name; the plan itself goes to ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in facts.files:
        with atomic_write(_place(path, facts, name)) as file:
            file.write(files[name])
    with atomic_write(facts_path(path)) as file:
        file.write(encode_facts(facts))


def _place(path: Path, facts: PlanFacts, name: str) -> Path:
    """Where a file of the plan at ``path`` lies: ``X.plan`` has ``X.plan.NAME`` beside it."""
    return path if name == facts.plan else path.with_name(f"{path.name}.{name}")


def facts_path(plan: Path) -> Path:
    return plan.with_name(f"{plan.name}.json")


def plan_cache(report: Callable[[str], None] | None = None) -> PlanCache:
    return PlanCache(cache_folder() / "plans", report=report)


def as_artefact(facts: PlanFacts, files: Files) -> Artefact:
    """A plan as the cache keeps it."""
    return Artefact(
        b"".join(files[name] for name in facts.files), {FACTS: msgspec.to_builtins(facts)}
    )


def from_entry(entry: Entry) -> tuple[PlanFacts, dict[str, memoryview]]:
    """A plan as it was given to the cache. Raises ``InputError`` if the entry was altered."""
    facts = _facts_of(entry.metadata, str(entry.path))
    return facts, _split(facts, entry.read())


def _cached(problems: list[str]) -> Iterator[StoredPlan]:
    cache = plan_cache()
    try:
        stored = cache.entries()
    except OutputError as exc:
        problems.append(str(exc))
        return
    for one in reversed(stored):
        if one.problem:
            problems.append(f"{one.path}: {one.problem}")
            continue
        facts = _facts_of(one.metadata, str(one.path))
        yield StoredPlan(facts, f"the cache ({one.key[:12]})", _reader(cache, one.key, facts))


def _reader(cache: PlanCache, key: str, facts: PlanFacts) -> Callable[[], dict[str, memoryview]]:
    def read() -> dict[str, memoryview]:
        entry = cache.get(key)
        if entry is None:
            raise DamagedError("it is no longer there, or damaged")
        with entry:
            return _split(facts, entry.read())

    return read


def _facts_of(metadata: Mapping[str, object], place: str) -> PlanFacts:
    try:
        return msgspec.convert(metadata.get(FACTS), PlanFacts)
    except msgspec.ValidationError as exc:
        raise _damaged(place, str(exc)) from exc


def _split(facts: PlanFacts, data: bytes) -> dict[str, memoryview]:
    view, files, start = memoryview(data), {}, 0
    for name, entry in facts.files.items():
        files[name] = view[start : start + entry.bytes]
        start += entry.bytes
    return files


def _newest(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"*/*{SUFFIX}") if not path.parent.is_symlink()]
    return sorted(found, key=lambda path: (path.lstat().st_mtime, path.name), reverse=True)


def _bytes(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def _damaged(place: str, found: str) -> InputError:
    return InputError(
        f"the plan in {place} is damaged", found=found, hint="build it again with `pixelrt build`"
    )
