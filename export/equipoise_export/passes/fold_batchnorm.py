"""Folds a frozen BatchNorm into the convolution or matrix product before it.

    Y = W·X + B,   BatchNorm(Y) = γ·(Y − μ)/√(σ² + ε) + β   ⇒   W' = W·s,   B' = (B − μ)·s + β,   s = γ/√(σ² + ε)

per output channel, so that `split_concat` finds the convolution's result unhindered.

Case 1: Conv, weight [out, in/group, …].   Case 2: ConvTranspose with group 1, weight [in, out, …].
Case 3: Gemm with alpha = beta = 1, weight [in, out] or, with transB, [out, in].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph.nodes import attributes_of, number_of, remove, replace
from .compilation import Compilation


def fold_batchnorm(c: Compilation) -> None:
    """Ensures that BatchNorm is left only where no linear operation of its own precedes it."""
    for node in list(c.graph):
        if node.op_type == "BatchNormalization" and not node.domain:
            _fold(c, node)
    c.graph.sort()


def _fold(c: Compilation, norm: ir.Node) -> None:
    source = norm.inputs[0]
    linear = source.producer() if source is not None else None
    if linear is None or source is None or len(source.uses()) != 1 or norm.attributes.get_int("training_mode"):
        return
    if source in c.graph.outputs or any(output.uses() for output in norm.outputs[1:]):
        return
    parameters = [number_of(value) for value in norm.inputs[1:5]]
    weight = number_of(linear.inputs[1]) if len(linear.inputs) > 1 else None
    bias_value = linear.inputs[2] if len(linear.inputs) > 2 else None
    bias = number_of(bias_value) if bias_value is not None else np.float32(0)
    if weight is None or bias is None or any(array is None for array in parameters):
        return
    axis = _output_axis(linear)
    if axis is None:
        return
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in parameters)
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    along = [1] * weight.ndim
    along[axis] = -1
    inputs = [
        linear.inputs[0],
        c.constant((weight * scale.reshape(along)).astype(weight.dtype)),
        c.constant(((bias - mean) * scale + beta).astype(weight.dtype)),
    ]
    folded = c.op(linear.op_type, *inputs, like=source, **attributes_of(linear))
    folded.type = norm.outputs[0].type
    folded.name = norm.outputs[0].name
    replace(norm.outputs[0], folded)
    remove([norm, linear])


def _output_axis(linear: ir.Node) -> int | None:
    """The weight's axis of output channels; None where the operation is none of the cases."""
    attributes = linear.attributes
    if linear.domain:
        return None
    if linear.op_type == "Conv":
        return 0
    if linear.op_type == "ConvTranspose" and attributes.get_int("group", 1) == 1:
        return 1
    if linear.op_type == "Gemm" and attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1:
        return 0 if attributes.get_int("transB", 0) else 1
    return None
