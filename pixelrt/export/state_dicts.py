"""Finds the state dicts in what a checkpoint holds: nested mappings and records of modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrt.export.pickle_machine import Record, malformed, shown
from pixelrt.export.tensor_record import TensorRecord

# More than any network's, so that a forged tree of shared modules ends.
_MOST_MODULES = 100_000
_MOST_TENSORS = 1_000_000
_DEEPEST_MODULE = 100
_DEEPEST_GROUP = 16

Tensors = list[tuple[str, torch.Tensor | TensorRecord]]
Settings = dict[str, bool | int | float | str | None]


def state_dicts(tree: object) -> Iterator[tuple[str, Tensors]]:
    """Every state dict in a tree of mappings and modules, with the path that leads to it.

    A mapping that stands in two places is found in the first only. Optimizers and lists are
    not entered, nor anything more than 16 levels deep.
    """
    for where, value in _walk(tree):
        if tensors := _tensors_of(value):
            yield where, tensors


def single_tensors(tree: object) -> Iterator[tuple[str, torch.Tensor | TensorRecord]]:
    """The tensors of the tree that belong to no state dict, such as ``latent_avg`` beside one."""
    for where, value in _walk(tree):
        if not is_module(value) and not _tensors_of(value):
            for key, item in (mapping_of(value) or {}).items():
                if isinstance(key, str) and isinstance(item, (torch.Tensor, TensorRecord)):
                    yield f"{where}.{key}".lstrip("."), item


def module_settings(tree: object) -> Iterator[tuple[str, Settings]]:
    """For every whole module of the tree, by the path that leads to it, the public attributes
    of it and of its parts that are plain values, by dotted name."""
    for where, value in _walk(tree):
        if is_module(value):
            yield where, dict(_settings_of(value))


def _walk(tree: object) -> Iterator[tuple[str, object]]:
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), tree)]
    while waiting:
        keys, value = waiting.pop()
        if id(value) in seen or len(keys) > _DEEPEST_GROUP:
            continue
        seen.add(id(value))
        yield ".".join(keys), value
        waiting += [((*keys, key), child) for key, child in _children(value)[::-1]]


def _tensors_of(value: object) -> Tensors:
    """The tensors of a module, or of a mapping that is a state dict: more than half of it are
    tensors, and one has a dimension. Otherwise none."""
    if is_module(value):
        return list(module_tensors(value).items())
    items = mapping_of(value) or {}
    tensors = [
        (key, item)
        for key, item in items.items()
        if isinstance(key, str) and isinstance(item, (torch.Tensor, TensorRecord))
    ]
    if 2 * len(tensors) <= len(items) or not any(_has_dimension(item) for _, item in tensors):
        return []
    return tensors


def _has_dimension(value: torch.Tensor | TensorRecord) -> bool:
    return bool(value.dim() if isinstance(value, torch.Tensor) else value.size)


def _children(value: object) -> list[tuple[str, object]]:
    items = {} if is_module(value) else mapping_of(value) or {}
    if {"state", "param_groups"} <= items.keys():  # the state dict of an optimizer
        return []
    return [(key, child) for key, child in items.items() if isinstance(key, str)]


def outline(tree: object) -> str:
    """What ``tree`` is, in one line, for an error message."""
    items = mapping_of(tree)
    if items is not None:
        names = [shown(k)[:40] if isinstance(k, str) else f"a {type(k).__name__}" for k in items]
        return "a mapping with the keys " + (", ".join(names[:10]) or "(none)")
    return f"an instance of {tree.cls}" if isinstance(tree, Record) else f"a {type(tree).__name__}"


def mapping_of(value: object) -> dict[object, object] | None:
    """The items of a dict or of an instance of a subclass of dict; ``None`` for others."""
    if isinstance(value, Record):
        return value.items or None
    return value if isinstance(value, dict) else None


def is_module(value: object) -> bool:
    """Whether ``value`` is the record of a ``torch.nn.Module``."""
    parts = ("_parameters", "_buffers", "_modules")
    return isinstance(value, Record) and all(
        isinstance(value.state.get(part), (dict, Record)) for part in parts
    )


def module_tensors(module: object) -> dict[str, TensorRecord]:
    """The state dict of the record of a module: parameters and persistent buffers by
    dotted name, children after the module itself, as ``Module.state_dict`` orders them.

    Raises ``CheckpointError`` where modules are nested without end.
    """
    found: dict[str, TensorRecord] = {}
    for prefix, record in _modules(module):
        found.update(_own_tensors(prefix, record))
        if len(found) > _MOST_TENSORS:
            raise malformed("modules nested without end")
    return found


def _modules(module: object) -> Iterator[tuple[str, Record]]:
    """A module and its parts, depth first, each with what stands before its names."""
    waiting: list[tuple[str, object, int]] = [("", module, 0)]
    visited = 0
    while waiting:
        prefix, record, depth = waiting.pop()
        if not isinstance(record, Record) or not is_module(record):
            continue
        yield prefix, record
        children = _part_items(record, "_modules")
        waiting += [(f"{prefix}{key}.", child, depth + 1) for key, child in children[::-1]]
        visited += 1
        if visited > _MOST_MODULES or depth > _DEEPEST_MODULE:
            raise malformed("modules nested without end")


def _settings_of(module: object) -> Iterator[tuple[str, bool | int | float | str | None]]:
    for prefix, record in _modules(module):
        for name, value in record.state.items():
            plain = value is None or type(value) in (bool, int, float, str)
            if isinstance(name, str) and not name.startswith("_") and plain:
                yield f"{prefix}{name}", value  # type: ignore[misc]


def _own_tensors(prefix: str, module: Record) -> Iterator[tuple[str, TensorRecord]]:
    skipped = module.state.get("_non_persistent_buffers_set", ())
    transient = skipped if isinstance(skipped, (set, frozenset)) else ()
    buffers = [(k, v) for k, v in _part_items(module, "_buffers") if k not in transient]
    for name, value in _part_items(module, "_parameters") + buffers:
        if isinstance(value, TensorRecord):
            yield f"{prefix}{name}", value


def _part_items(module: Record, part: str) -> list[tuple[str, object]]:
    items = mapping_of(module.state[part]) or {}
    return [(key, value) for key, value in items.items() if isinstance(key, str)]
