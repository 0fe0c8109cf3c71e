"""Samplers with one fault each in how they drop: what a test of the sampling has to find."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TABLE = [256, 8]
"""Shape of the look-up from a mask's byte to its eight factors, see `equipoise_export.passes.unpack_masks`."""


def without_scaling(model: onnx.ModelProto) -> onnx.ModelProto:
    """Units are dropped, but what is kept is not multiplied by 1/(1 − p)."""
    mutant = _copy(model)
    for table in _tables(mutant):
        kept = (numpy_helper.to_array(table) > 0).astype(np.float32)
        table.CopyFrom(numpy_helper.from_array(kept, table.name))
    return mutant


def without_site(model: onnx.ModelProto, index: int) -> onnx.ModelProto:
    """The site of this index, in the contract's order, never drops."""
    mutant = _copy(model)
    names = {table.name for table in _tables(mutant)}
    lookups = [node for node in mutant.graph.node if node.op_type == "Gather" and node.input[0] in names]
    mutant.graph.initializer.append(numpy_helper.from_array(np.ones(_TABLE, np.float32), "keeps_everything"))
    lookups[index].input[0] = "keeps_everything"
    return mutant


def with_shared_masks(model: onnx.ModelProto) -> onnx.ModelProto:
    """All samples of a request are drawn under the first one's masks."""
    mutant = _copy(model)
    for node in mutant.graph.node:
        node.input[:] = ["shared_masks" if name == "masks" else name for name in node.input]
    for name, value in (("first", 0), ("second", 1), ("axis_of_samples", 1)):
        mutant.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    added = [
        helper.make_node("Slice", ["masks", "first", "second", "axis_of_samples"], ["first_masks"]),
        helper.make_node("Shape", ["masks"], ["shape_of_masks"]),
        helper.make_node("Expand", ["first_masks", "shape_of_masks"], ["shared_masks"]),
    ]
    nodes = [*added, *mutant.graph.node]
    del mutant.graph.node[:]
    mutant.graph.node.extend(nodes)
    return mutant


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _tables(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = [tensor for tensor in model.graph.initializer if list(tensor.dims) == _TABLE]
    assert found, "the graph unpacks its masks in a way that is not known here: these mutants have to follow it"
    return found
