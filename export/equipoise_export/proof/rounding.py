"""A half-precision sampler as half-precision hardware computes it, on a machine that has none.

ONNX Runtime's CPU provider computes what it has no half kernels for in single precision and keeps the results so from
one operation to the next: nothing is rounded and nothing overflows, so a proof there would prove the wrong function.
Here every half tensor is a single one that is rounded to half and back by explicit casts, which ONNX Runtime leaves
alone: operations accumulate in single and round their result once, as tensor cores do.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

MOVES = {
    "Reshape", "Transpose", "Slice", "Gather", "GatherElements", "GatherND", "Concat", "Split", "Squeeze", "Unsqueeze",
    "Expand", "Tile", "Flatten", "Identity", "Pad", "DepthToSpace", "SpaceToDepth", "ScatterND", "ScatterElements",
}  # fmt: skip
"""What computes nothing, so rounds nothing. The pass that makes samplers half has such a list too; this one is the
proof's own: an operation that the pass mistakes for a move is rounded here all the same."""
REACHED = "reached by "
"""Before the name of a tensor: the output that says how large it gets, before it is rounded."""


def rounded(model: onnx.ModelProto, halves: Iterable[str]) -> onnx.ModelProto:
    """The same sampler in single precision with every result rounded, and with an output `REACHED` for each of them.

    Args:
        halves: names of the half tensors.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for name in _round(twin.graph, set(halves)):
        twin.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    return twin


def _round(graph: onnx.GraphProto, halves: set[str]) -> list[str]:
    """In place. Names of scalars that say how large the half tensors get."""
    nodes = list(graph.node)
    del graph.node[:]
    reached = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:  # folded while loading; the tensor itself may lie outside the graph
            graph.node.append(helper.make_node("Cast", [f"{tensor.name} half"], [tensor.name], to=TensorProto.FLOAT))
            tensor.name += " half"
    for node in nodes:
        graph.node.append(node)
        placed = graph.node[-1]
        if placed.op_type == "Scan":
            reached += _round_each(graph, placed, halves)
        for index, name in enumerate(placed.output):
            if name not in halves:
                continue
            if placed.op_type == "Cast":  # to half: now the identity, and the rounding follows
                placed.attribute[0].i = TensorProto.FLOAT
            if placed.op_type in MOVES:
                continue
            exact, half = f"{name} exact", f"{name} half"
            placed.output[index] = exact
            graph.node.extend(
                [
                    helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16),
                    helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT),
                    helper.make_node("Abs", [exact], [f"{name} size"]),
                    helper.make_node("ReduceMax", [f"{name} size"], [REACHED + name], keepdims=0),
                ]
            )
            reached.append(REACHED + name)
    del graph.value_info[:]
    return reached


def _round_each(graph: onnx.GraphProto, scan: onnx.NodeProto, halves: set[str]) -> list[str]:
    """What is done to each slice of a volume: of its scalars, the largest over all slices."""
    attributes = {attribute.name: attribute for attribute in scan.attribute}
    body = attributes["body"].g
    reached = _round(body, halves)
    for name in reached:
        body.output.append(helper.make_tensor_value_info(f"{name} here", TensorProto.FLOAT, []))
        body.node.append(helper.make_node("Identity", [name], [f"{name} here"]))
        attributes["scan_output_axes"].ints.append(0)
        scan.output.append(f"{name} in each")
        graph.node.append(helper.make_node("ReduceMax", [f"{name} in each"], [name], keepdims=0))
    return reached
