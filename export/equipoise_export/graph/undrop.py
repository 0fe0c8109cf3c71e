"""A marked graph → the graph of the same network in evaluation mode, where that follows from the markers alone.

Case 1, dropout: `Mask(x) · 1/(1 − p)` becomes x.
Case 2, noise that is drawn apart: a mask over a number c, scaled on its way to the activations. With nothing dropped it
        is its expectation, c·(1 − p). Where the scale makes 1 of that, `x · noise` becomes x (stochastic depth).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .marker import DOMAIN, MASK, marker_of
from .nodes import number_of, remove, replace

_EXACT = 1e-6
"""By which 1 may be missed: (1 − p) / (1 − p) in single precision."""


def undrop(model: ir.Model) -> bool:
    """Takes the markers out, in place, of a graph whose constants are initializers.

    Returns:
        False where that would leave another graph than that of the network in evaluation mode; it is changed all the
        same, and of no use.
    """
    noise: dict[ir.Value, float] = {}
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == MASK:
            if not _mask(node, noise):
                return False
        elif any(value in noise for value in node.inputs) and not _follow(node, noise):
            return False
    return not any(output in noise for output in model.graph.outputs)


def _mask(node: ir.Node, noise: dict[ir.Value, float]) -> bool:
    (x,) = node.inputs
    assert x is not None
    marker, number = marker_of(node), _everywhere(x)
    if number is not None and not marker.inverted:
        noise[node.outputs[0]] = number * (1.0 - marker.p) * marker.scale
        return True
    producer = x.producer()
    repeated = producer is not None and producer.op_type == "Expand"  # for the mask's sake
    if x in noise or repeated or marker.inverted or marker.scale != 1.0 / (1.0 - marker.p):
        return False
    replace(node.outputs[0], x)
    remove([node])
    return True


def _follow(node: ir.Node, noise: dict[ir.Value, float]) -> bool:
    """Scales noise by a constant, or multiplies activations by it."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return False
    left, right = node.inputs
    assert left is not None and right is not None
    if left in noise and (number := _everywhere(right)) is not None:
        noise[node.outputs[0]] = noise[left] * number if node.op_type == "Mul" else noise[left] / number
        return True
    if node.op_type != "Mul" or (left in noise and right in noise):
        return False
    drawn, x = (left, right) if left in noise else (right, left)
    if (number := _everywhere(x)) is not None:
        noise[node.outputs[0]] = noise[drawn] * number
        return True
    if abs(noise[drawn] - 1.0) > _EXACT:
        return False
    replace(node.outputs[0], x)
    return True


def _everywhere(value: ir.Value) -> float | None:
    """The one number that a tensor holds everywhere, where it is known."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Expand" and producer.inputs[0] is not None:
        return _everywhere(producer.inputs[0])
    array = number_of(value)
    if array is None or not array.size or not np.issubdtype(array.dtype, np.floating) or (array != array.flat[0]).any():
        return None
    return float(array.flat[0])
