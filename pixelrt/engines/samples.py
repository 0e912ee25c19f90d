"""Pictures that a plan is held against: at its own sizes, answered by the float32 graph.

The bundle's samples are small and may fit no profile of a plan; a plan is only used once it
has reproduced something on its own GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pixelrt.bundle import Bundle, encode_reference
from pixelrt.engines.calibrate import Runner
from pixelrt.engines.prepare import check_graph, feed_of
from pixelrt.plans.facts import PlanSample
from pixelrt.plans.profiles import Profile, Shape


def plan_samples(
    bundle: Bundle, profiles: Sequence[Profile]
) -> tuple[list[PlanSample], dict[str, bytes]]:
    """A photograph at the optimum of every profile, and the files of these samples.

    ``expected`` comes from the bundle's float32 graph on onnxruntime, after that graph gave
    what PyTorch gives on the bundle's own sample. Raises ``FidelityError`` where it does not.
    """
    graph = bundle.component.graph("core")
    model = ir.load(bundle.path(graph.file))
    ir.external_data.load_to_model(model)
    references = bundle.manifest.references
    feeds = [feed_of(bundle, graph, sample) for sample in references]
    check_graph(bundle, graph, model, feeds, "run by onnxruntime here")
    name, result = graph.inputs[0].name, graph.outputs[0].name
    run = Runner(model, [result])

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = (images.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
        return np.asarray(run({name: np.ascontiguousarray(values)})[result], np.float32)

    photo = max((one for one in references if one.kind == "photo"), key=lambda one: one.width)
    pixels, _ = bundle.reference(photo)
    samples, files = [], {}
    for shape in dict.fromkeys(profile.shapes[1] for profile in profiles):
        images = enlarged(pixels[0], shape)
        file = f"sample-{shape}.npz"
        files[file] = encode_reference(images, answer(images))
        samples.append(PlanSample(f"photo-{shape}", file, shape.height, shape.width))
    return samples, files


def enlarged(photo: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """(N, H, W, C) of ``shape``: the photograph (H0, W0, C) mirrored on and on, or cut."""
    grow = [
        (0, max(0, want - have)) for want, have in zip(_sides(shape), photo.shape, strict=False)
    ]
    filled = np.pad(photo, (*grow, (0, 0)), mode="symmetric")[: shape.height, : shape.width]
    # a batch of different pictures: a plan that mixes them up is found
    return np.stack([np.roll(filled, 8 * index, axis=1) for index in range(shape.batch)])


def _sides(shape: Shape) -> tuple[int, int]:
    return shape.height, shape.width
