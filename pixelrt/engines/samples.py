"""What a plan is held against: samples at its own sizes, answered by the float32 graph.

The bundle's samples are small and may fit no profile of a plan; a plan is only used once it
has reproduced something on its own GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pixelrt.bundle import Bundle, BundledNetwork, encode_reference
from pixelrt.engines.calibrate import Runner
from pixelrt.engines.prepare import check_graph, load_graph
from pixelrt.engines.tensors import network_samples
from pixelrt.manifest import Graph, GraphRole
from pixelrt.pipeline_bundle import PipelineNetwork
from pixelrt.plans.axis_profiles import AxisProfile
from pixelrt.plans.facts import PlanSample
from pixelrt.plans.profiles import Profile, Shape


def plan_samples(
    bundle: BundledNetwork, profiles: Sequence[Profile | AxisProfile]
) -> tuple[list[PlanSample], dict[str, bytes]]:
    """A sample at the optimum of every profile, and the files of these samples.

    ``expected`` comes from the bundle's float32 graph on onnxruntime, after that graph gave
    what PyTorch gives on the bundle's own sample. Raises ``FidelityError`` where it does not.
    """
    role: GraphRole = "network" if isinstance(bundle, PipelineNetwork) else "core"
    graph = bundle.component.graph(role)
    model = load_graph(bundle, graph)
    check_graph(bundle, graph, model, "run by onnxruntime here")
    if isinstance(bundle, PipelineNetwork):
        axes = [profile for profile in profiles if isinstance(profile, AxisProfile)]
        return network_samples(bundle, model, axes)
    assert isinstance(bundle, Bundle)
    shapes = dict.fromkeys(p.shapes[1] for p in profiles if isinstance(p, Profile))
    return _pictures(bundle, graph, model, shapes)


def _pictures(
    bundle: Bundle, graph: Graph, model: ir.Model, shapes: Iterable[Shape]
) -> tuple[list[PlanSample], dict[str, bytes]]:
    """A photograph at each shape."""
    references = bundle.manifest.references
    name, result = graph.inputs[0].name, graph.outputs[0].name
    run = Runner(model, [result])

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = (images.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)
        return np.asarray(run({name: np.ascontiguousarray(values)})[result], np.float32)

    photo = max((one for one in references if one.kind == "photo"), key=lambda one: one.width)
    pixels, _ = bundle.reference(photo)
    samples, files = [], {}
    for shape in shapes:
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
