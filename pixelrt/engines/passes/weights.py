"""A tensor in another float type: what passes that change types have in common."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir


def retyped(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """``tensor`` in ``dtype``. It becomes that each time it is read, so that not all weights of a
    graph are held so at once."""
    make = partial(rounded, tensor, dtype, name)
    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(tensor.shape), name=name)


def rounded(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str | None) -> ir.Tensor:
    """``tensor`` in ``dtype``, to nearest; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)
