"""In which type the weights of a graph are stored. It computes in float32 all the same.

A weight in half precision is followed by a ``Cast`` to float32, which backends fold when they load
the graph, or keep as it is and convert while they run. What is stored is exactly what PyTorch
computes the references with: weights are rounded before, and a tensor whose values a type does
not hold (a table of sines, say) stays float32 in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from pixelrt.errors import ExportError

Weights = Literal["auto", "float32", "float16", "bfloat16"]
"""``auto``: float16 or bfloat16 where every weight of the network is one already, as in most
published checkpoints; else float32. The others round to what they name."""

HALVES = (torch.float16, torch.bfloat16)
STORED = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
SMALL = 256
"""Tensors up to this many bytes stay inside the graph's file, as in ``onnx_ir.save``."""
SAMPLE = 64
"""Numbers of a tensor that are looked at before all of them: a float32 checkpoint is found out at
once."""


def round_weights(module: nn.Module, weights: Weights, name: str) -> torch.dtype:
    """Round the parameters of ``module``, in place, to the type that they are stored in; gives it.

    Raises ``ExportError`` where a value is larger than the type's largest.
    """
    if weights == "auto":
        return next((kind for kind in HALVES if _held(module.parameters(), kind)), torch.float32)
    kind: torch.dtype = getattr(torch, weights)
    if kind == torch.float32:
        return kind
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            rounded = parameter.to(kind)
            if not bool(torch.isfinite(rounded).all()):
                raise ExportError(
                    f"the weights of {name} do not fit into {weights}",
                    found=f"{key} reaches {float(parameter.abs().max()):.3g}",
                    expected=f"at most {torch.finfo(kind).max:.3g}",
                    hint="use --weights float32" + (" or bfloat16" if weights == "float16" else ""),
                )
            parameter.copy_(rounded)
    return kind


def rounding(load: Callable[[str], Any], weights: Weights) -> Callable[[str], Any]:
    """``load``, which gives a module for a name, with the parameters as they are stored: whatever
    is computed with them, a whole pipeline too, is computed with the values in the bundle."""
    if weights == "auto":
        return load  # stored so that nothing is lost

    def rounded(name: str) -> Any:
        module = load(name)
        round_weights(module, weights, name)
        return module

    return rounded


def store(model: ir.Model, kind: torch.dtype) -> None:
    """Store, in place, the float32 weights of ``model`` in ``kind`` that it holds exactly."""
    if kind == torch.float32:
        return
    casts = []
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= SMALL:
            continue
        if any(output is value for output in model.graph.outputs) or not _tensor_held(
            tensor, STORED[kind]
        ):
            continue
        casts.append(_cast(model.graph, value, tensor, STORED[kind]))
    if casts:
        model.graph.insert_before(model.graph[0], casts)


def _cast(
    graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, kind: ir.DataType
) -> ir.Node:
    """``value`` becomes an initializer of ``kind``; what read it reads its cast to float32."""
    name, shape = str(value.name), ir.Shape(tensor.shape)
    users = list(value.uses())
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}.float32")
    (result,) = node.outputs
    result.name, result.shape, result.dtype = f"{name}.float32", shape, ir.DataType.FLOAT
    for user, at in users:
        user.replace_input_with(at, result)
    # One after the other as the file is written, not all at once.
    make = partial(_rounded, tensor, kind, name)
    value.const_value = ir.LazyTensor(make, dtype=kind, shape=shape, name=name)
    value.dtype = kind
    return node


def _rounded(tensor: ir.TensorProtocol, kind: ir.DataType, name: str) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(kind.numpy()), dtype=kind, name=name)


def _tensor_held(tensor: ir.TensorProtocol, kind: ir.DataType) -> bool:
    values = tensor.numpy()
    with np.errstate(over="ignore"):
        return bool((values.astype(kind.numpy()).astype(values.dtype) == values).all())


def _held(tensors: Iterable[Tensor], kind: torch.dtype) -> bool:
    """Whether ``kind`` holds every value of every float tensor."""

    def same(values: Tensor) -> bool:
        return bool((values.to(kind).to(values.dtype) == values).all())

    floats = [one for one in tensors if one.is_floating_point()]
    few = all(same(one.detach().reshape(-1)[:SAMPLE]) for one in floats)
    return few and all(same(one.detach()) for one in floats)
