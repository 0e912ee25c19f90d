"""Graphs of equal networks, exported once in a run.

Most of the suite's time is torch.export, and small pipelines share networks: the same VAE, the
same text encoder, in every process that runs tests the same pipeline. Which network a graph
belongs to is told by all that decides the graph, see ``digest``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from pixelrt.export import part
from pixelrt.export.to_onnx import export_module

PLACES = {"_name_or_path", "name_or_path", "_use_default_values", "_diffusers_version"}
"""Entries of a configuration that say where it came from."""


LARGE = 10_000_000
"""Parameters of a network whose graph is not kept."""


def sharing(export: Callable[..., ir.Model], made_once: Callable[..., Path]) -> Any:
    """``export_module`` that gives the graph of an equal network where this run has one."""

    def shared(module: nn.Module, *arguments: Any) -> ir.Model:
        if sum(weights.numel() for weights in module.parameters()) > LARGE:
            return export(module, *arguments)

        def make(folder: Path) -> None:
            model = export(module, *arguments)
            ir.save(model, folder / "graph.onnx", external_data="graph.bin")

        folder = made_once(f"graph-{digest(module, *arguments)}", make)
        return ir.load(folder / "graph.onnx")

    return shared


def traced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list to which each call of ``torch.export.export`` adds whether it is in strict mode; no
    graph that this run has is taken from there."""
    export, found = torch.export.export, []

    def noted(*arguments: Any, strict: bool = False, **options: Any) -> Any:
        found.append(strict)
        return export(*arguments, strict=strict, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    monkeypatch.setattr(part, "export_module", export_module)
    return found


def digest(*things: object) -> str:
    """The same for modules of the same classes, code of ``forward``, attributes and weights."""
    found = hashlib.sha256()
    seen: dict[int, int] = {}
    alive: list[object] = []  # so that no id is used twice

    def note(*words: object) -> None:
        found.update(repr(words).encode())

    def add(thing: object) -> None:
        if thing is None or isinstance(thing, bool | int | float | str | bytes | torch.dtype):
            note(type(thing).__name__, thing)
        elif id(thing) in seen:
            note("seen", seen[id(thing)])
        else:
            seen[id(thing)] = len(seen)
            alive.append(thing)
            parts(thing)

    def parts(thing: Any) -> None:
        kind = thing if isinstance(thing, type) else type(thing)
        note(kind.__module__, kind.__qualname__)
        if isinstance(thing, torch.Tensor):
            note(thing.dtype, tuple(thing.shape), thing.stride(), thing.requires_grad)
            found.update(thing.detach().contiguous().numpy().tobytes())
        elif isinstance(thing, Mapping):
            for key, value in thing.items():
                if key not in PLACES:
                    add(key)
                    add(value)
        elif isinstance(thing, list | tuple):
            note(len(thing))
            for value in thing:
                add(value)
        elif isinstance(thing, set | frozenset):
            note(sorted(map(repr, thing)))
        elif isinstance(thing, FunctionType):
            note(thing.__module__, thing.__qualname__, thing.__code__.co_code)
            add([cell.cell_contents for cell in thing.__closure__ or ()])
        elif isinstance(thing, MethodType):
            add([thing.__self__, thing.__func__])
        elif not isinstance(thing, type):
            if isinstance(thing, nn.Module):
                add(type(thing).forward)
            add({**vars(thing)} if hasattr(thing, "__dict__") else repr(thing))

    add(list(things))
    return found.hexdigest()[:24]
