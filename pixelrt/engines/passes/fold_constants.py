"""Graph pass: compute once what depends on constants only.

Swin2SR's position bias (relative coordinates, a small network) is such a part: it is the
same in every run, and a large share of the nodes. onnxscript's folding does the work.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants as fold

from pixelrt.engines.passes.clean import unused_removed

MAX_RESULT = 2**22
"""Numbers in the largest tensor that may be stored (16 MiB in float32)."""
MAX_INPUT = 2**26


def fold_constants(model: ir.Model, *, max_result: int = MAX_RESULT) -> ir.Model:
    """A copy of ``model`` in which constant parts are weights.

    A result of more than ``max_result`` numbers is left to be computed, unless the weights
    that it makes superfluous are larger. Random nodes are never folded. Names and declared
    types of inputs and outputs stay.
    """
    model = model.clone()
    ir.external_data.load_to_model(model)
    fold(model, input_size_limit=MAX_INPUT, output_size_limit=max_result)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    unused_removed(model)
    return model
