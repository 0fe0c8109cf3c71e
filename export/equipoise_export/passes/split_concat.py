"""Splits a linear operation over a concatenation of shared and sampled parts.

    W · [a; b] + c  =  (W_a · a + c)  +  W_b · b

where a is shared (a skip connection), b is sampled, and W = [W_a, W_b] along the input channels. The shared part, bias
included, runs once for each image; its result is broadcast over the samples when the two are added.

Case 1: Conv with group 1, concatenation along the channels (axis 1), weight [out, in, …] split along axis 1.
Case 2: ConvTranspose with group 1, the same, weight [in, out, …] split along axis 0.
Case 3: MatMul, concatenation along the last axis, constant right operand [in, out] split along axis 0.
Case 4: Gemm, concatenation along the last axis, weight [in, out] or, with transB, [out, in].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.nodes import attributes_of, number_of, remove, replace
from .compilation import Compilation


def split_concat(c: Compilation) -> None:
    """Requires `sampled`; ensures that no linear operation runs T times over channels that no mask can change."""
    for node in list(c.graph):
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and not node.domain:
            _split(c, node)
    c.graph.sort()


def _split(c: Compilation, node: ir.Node) -> None:
    joined, weight = node.inputs[0], node.inputs[1]
    concat = joined.producer() if joined is not None else None
    array = number_of(weight)
    if concat is None or joined is None or concat.op_type != "Concat" or array is None or joined not in c.layouts:
        return
    axis = concat.attributes["axis"].as_int() % c.layouts[joined].rank
    channels = 1 if node.op_type.startswith("Conv") else c.layouts[joined].rank - 1
    if axis != channels or c.layouts[joined].axis == axis or array.ndim < 2:
        return
    if node.op_type.startswith("Conv") and node.attributes.get_int("group", 1) != 1:
        return
    if node.op_type == "Gemm" and node.attributes.get_int("transA"):
        return
    parts = [part for part in concat.inputs if part is not None]
    shared = [part for part in parts if part not in c.sampled]
    if not shared or len(shared) == len(parts):
        return
    if any(part not in c.layouts for part in parts) or any(c.layouts[part].axis is None for part in shared):
        return  # a constant plane: nothing to gain, and no batch axis to broadcast
    ends = np.cumsum([c.layouts[part].shape[axis] for part in parts])
    along = _weight_axis(node, array.ndim)
    if len(set(parts)) < len(parts):
        return
    pieces = dict(zip(parts, np.split(array, ends[:-1], axis=along), strict=True))
    sampled = [part for part in parts if part in c.sampled]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    once = _part(c, node, shared, pieces, axis, along, bias)
    often = _part(c, node, sampled, pieces, axis, along, None)
    c.sampled.add(often)
    result = c.op("Add", once, often, like=node.outputs[0])
    result.type = node.outputs[0].type
    c.sampled.add(result)
    replace(node.outputs[0], result)
    remove([node])
    if not concat.outputs[0].uses():
        remove([concat])


def _part(
    c: Compilation, node: ir.Node, parts: list[ir.Value], pieces: dict, axis: int, along: int, bias: ir.Value | None
) -> ir.Value:  # type: ignore[type-arg]
    """The operation over some of the concatenated parts, with their piece of the weight."""
    source = parts[0]
    if len(parts) > 1:
        source = c.op("Concat", *parts, axis=axis)
        layout = c.layouts[parts[0]]
        width = sum(c.layouts[part].shape[axis] for part in parts)
        shape = (*layout.shape[:axis], width, *layout.shape[axis + 1 :])
        c.layouts[source] = type(layout)(shape, layout.axis, layout.factor, layout.dynamic)
        if parts[0] in c.sampled:
            c.sampled.add(source)
    weight = c.constant(np.concatenate([pieces[part] for part in parts], axis=along))
    inputs = [source, weight] + ([bias] if bias is not None else [])
    attributes = attributes_of(node)
    if node.op_type == "Gemm" and bias is None:
        attributes.pop("beta", None)
    return c.op(node.op_type, *inputs, like=node.outputs[0], **attributes)  # type: ignore[no-any-return]


def _weight_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 1
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return rank - 2 if node.op_type == "MatMul" else 0
