"""What capture, passes and proof do to ONNX graphs alike: names of inputs, constants, edits, shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from .marker import DOMAIN

IMAGE = "image"
MASKS = "masks"


def number_of(value: ir.Value | None) -> NDArray[Any] | None:
    """A value's constant content, where it has one."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def replace(old: ir.Value, new: ir.Value) -> None:
    """Every use of `old`, as a graph output too, becomes one of `new`."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def remove(nodes: Iterable[ir.Node]) -> None:
    """Takes nodes out whose outputs nobody uses any more."""
    for node in nodes:
        node.graph.remove(node, safe=True)  # type: ignore[union-attr]


def runnable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The marked graph, in place, with identities for its markers."""
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    del proto.graph.value_info[:]
    kept = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def shapes_as_outputs(proto: onnx.ModelProto) -> list[str]:
    """Makes the shapes of all computed tensors the graph's outputs, in place; the tensors' names, in that order."""
    names = [name for node in proto.graph.node for name in node.output if name]
    del proto.graph.output[:]
    for index, name in enumerate(names):
        proto.graph.node.append(helper.make_node("Shape", [name], [f"shape_{index}"]))
        proto.graph.output.append(helper.make_tensor_value_info(f"shape_{index}", onnx.TensorProto.INT64, None))
    return names
