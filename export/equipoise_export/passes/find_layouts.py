"""Finds the batch axis of every tensor by running the marked graph.

The network runs with 1 and with 2 images, and once with other spatial sizes where those are dynamic, and only the
shapes of its tensors come back. An axis that counts k and then 2·k is the batch axis with k folded into it. Symbolic
shape inference gives up at the first unusual operator; a run does not, and is the same for torch and for ONNX graphs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..errors import CaptureRefused
from ..graph.nodes import IMAGE, runnable, shapes_as_outputs
from ..graph.session import session
from ..graph.storage import store
from .compilation import Compilation, Layout


def find_layouts(c: Compilation) -> None:
    """Requires markers only; ensures `layouts` for every value."""
    contract = c.contract
    measure = _shape_meter(c)
    nominal = contract.nominal
    one, two = measure(1, contract.channels, nominal), measure(2, contract.channels, nominal)
    multiple = contract.preprocessing.multiple
    other = tuple(n + multiple if isinstance(s, str) else n for s, n in zip(contract.spatial, nominal, strict=True))
    larger = one
    if other != nominal:
        try:
            larger = measure(1, contract.channels, other)
        except Exception as error:
            raise CaptureRefused(
                f"the network does not work at every spatial size: at {other} ONNX Runtime says "
                f"{str(error).splitlines()[0]}",
                "the whole network",
                "Export for one size (--sizes fixed), or state the right divisor (--multiple).",
            ) from error
    for value in _values(c.model.graph):
        if value.name in one:
            name = str(value.name)
            c.layouts[value] = _layout(name, one[name], two[name], larger[name])
    for value in c.graph.initializers.values():
        shape = tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()
        c.layouts[value] = Layout(shape, None, 1, (False,) * len(shape))


def _layout(name: str, one: tuple[int, ...], two: tuple[int, ...], larger: tuple[int, ...]) -> Layout:
    grows = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if len(one) != len(two) or len(grows) > 1 or any(2 * one[axis] != two[axis] for axis in grows):
        raise CaptureRefused(
            f"tensor {name} has shape {one} for 1 image and {two} for 2: it mixes the images of a batch",
            name,
            "Each image's answer must be its own; remove operations between batch-mates.",
        )
    axis = grows[0] if grows else None
    factor = 1 if axis is None else one[axis]
    return Layout(one, axis, factor, tuple(a != b for a, b in zip(one, larger, strict=True)))


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]


def _shape_meter(c: Compilation):  # type: ignore[no-untyped-def]  # a closure over one session
    proto, weights = store(c.model, c.largest_file)
    names = shapes_as_outputs(runnable(proto))
    running = session(proto, weights=weights)

    def measure(images: int, channels: int, spatial: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        shape = (images, channels, *spatial)
        image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        shapes = running.run(None, {IMAGE: image})
        return {IMAGE: shape, **{name: tuple(int(s) for s in found) for name, found in zip(names, shapes, strict=True)}}

    return measure
