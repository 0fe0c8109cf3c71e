"""Finds the batch axis of every tensor by running the marked graph.

The network runs with 1 and with 2 images, and once with other spatial sizes where those are dynamic, and only the
shapes of its tensors come back. An axis that counts k and then 2·k is the batch axis with k folded into it. Symbolic
shape inference gives up at the first unusual operator; a run does not, and is the same for torch and for ONNX graphs.
"""

from __future__ import annotations

import numpy as np

from ..errors import CaptureRefused
from ..graph.nodes import Shape, shape_meter
from .compilation import Compilation, Layout


def find_layouts(c: Compilation) -> None:
    """Requires markers only; ensures `layouts` for every value."""
    contract, nominal = c.contract, c.contract.nominal
    measure = shape_meter(c.model, c.largest_file)
    generator = np.random.default_rng(0)

    def shapes(images: int, spatial: Shape) -> dict[str, Shape]:
        return measure(generator.standard_normal((images, contract.channels, *spatial)).astype(np.float32))

    one, two = shapes(1, nominal), shapes(2, nominal)
    multiple = contract.preprocessing.multiple
    other = tuple(n + multiple if isinstance(s, str) else n for s, n in zip(contract.spatial, nominal, strict=True))
    larger = one
    if other != nominal:
        try:
            larger = shapes(1, other)
        except Exception as error:
            raise CaptureRefused(
                f"the network does not work at every spatial size: at {other} ONNX Runtime says "
                f"{str(error).splitlines()[0]}",
                "the whole network",
                "Export for one size (--sizes fixed), or state the right divisor (--multiple).",
            ) from error
    for value in (*c.graph.inputs, *(output for node in c.graph for output in node.outputs)):
        if value.name in one:
            name = str(value.name)
            c.layouts[value] = _layout(name, one[name], two[name], larger[name])
    for value in c.graph.initializers.values():
        shape = tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()
        c.layouts[value] = Layout(shape, None, 1, (False,) * len(shape))


def _layout(name: str, one: Shape, two: Shape, larger: Shape) -> Layout:
    grows = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if two == (2, *one):
        raise CaptureRefused(
            f"tensor {name} has shape {one} for 1 image and {two} for 2: a squeeze() takes the batch's axis as well",
            name,
            "Name the axis that is to go: squeeze(1).",
        )
    if len(one) != len(two) or len(grows) > 1 or any(2 * one[axis] != two[axis] for axis in grows):
        raise CaptureRefused(
            f"tensor {name} has shape {one} for 1 image and {two} for 2: it mixes the images of a batch",
            name,
            "Each image's answer must be its own; remove operations between batch-mates.",
        )
    axis = grows[0] if grows else None
    factor = 1 if axis is None else one[axis]
    return Layout(one, axis, factor, tuple(a != b for a, b in zip(one, larger, strict=True)))
