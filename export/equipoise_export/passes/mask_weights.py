"""Channels dropped before a narrow 1×1 convolution are dropped from its weights instead, one set for each sample.

    Conv(x ⊙ m, W) = (W ⊙ m) · x,   x [N, C, V], m [N, 1, C], W [K, C]

K·C products take the place of C·V, and the few channels of the result are not padded to a block of 16 on their way.
Only for K < 16: wider layers are faster as convolutions.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.marker import DOMAIN, MASK, marker_of
from ..graph.nodes import number_of, replace
from .compilation import Compilation, Layout

BLOCK = 16


def mask_weights(c: Compilation) -> None:
    """Requires `sampled` and markers."""
    for node in list(c.graph):
        if node.op_type == "Conv" and not node.domain and _narrow(c, node):
            _mask(c, node)
    c.graph.sort()


def _narrow(c: Compilation, node: ir.Node) -> bool:
    weight, dropped = number_of(node.inputs[1]), node.inputs[0]
    if weight is None or dropped is None or len(weight) >= BLOCK or any(size != 1 for size in weight.shape[2:]):
        return False
    attributes = node.attributes
    if attributes.get_int("group", 1) != 1 or any(attributes.get_ints("pads", [])):
        return False
    if any(stride != 1 for stride in attributes.get_ints("strides", [])):
        return False
    marker = dropped.producer()
    if marker is None or marker.domain != DOMAIN or marker.op_type != MASK or len(dropped.uses()) != 1:
        return False
    layout = c.layouts.get(dropped)
    return marker_of(marker).axes == (0, 1) and layout is not None and layout.axis == 0 and layout.factor == 1


def _mask(c: Compilation, node: ir.Node) -> None:
    dropped, out = node.inputs[0], node.outputs[0]
    weight = number_of(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert dropped is not None and weight is not None
    marker = dropped.producer()
    assert marker is not None and marker.inputs[0] is not None
    source, layout = marker.inputs[0], c.layouts[out]
    outputs, channels = weight.shape[:2]
    matrix = c.constant(weight.reshape(1, outputs, channels))
    matrices = c.op("Expand", matrix, c.shape([c.images, 1, 1]))
    c.layouts[matrices] = c.layouts[dropped] = Layout((1, outputs, channels), 0, 1, (False,) * 3)
    marker.replace_input_with(0, matrices)
    marker.attributes["axes"] = ir.AttrInt64s("axes", [0, 2])
    spatial = range(2, layout.rank)
    flat = c.op("Reshape", source, c.constant([0, channels, -1]), like=source)
    moves = any(layout.dynamic)
    voxels = 1
    for axis in spatial:
        voxels *= layout.shape[axis]
    c.layouts[flat] = Layout((1, channels, voxels), 0, 1, (False, False, moves))
    if source in c.sampled:
        c.sampled.add(flat)
    result = c.op("MatMul", dropped, flat, like=out)
    c.layouts[result] = Layout((1, outputs, voxels), 0, 1, (False, False, moves))
    sizes = [(source, axis) if layout.dynamic[axis] else layout.shape[axis] for axis in spatial]
    shaped = c.op("Reshape", result, c.shape([-1, outputs, *sizes]), like=out)
    made = [result, shaped]
    if bias is not None:
        parameters = number_of(bias)
        assert parameters is not None
        shaped = c.op("Add", shaped, c.constant(parameters.reshape(-1, *[1] * len(spatial))), like=out)
        made.append(shaped)
    c.sampled.update(made)
    shaped.type = out.type
    replace(out, shaped)
    c.graph.remove(node, safe=True)
