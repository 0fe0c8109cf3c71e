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
    halves = set(halves)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    nodes = list(graph.node)
    del graph.node[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:  # folded while loading; the tensor itself may lie outside the graph
            graph.node.append(helper.make_node("Cast", [f"{tensor.name} half"], [tensor.name], to=TensorProto.FLOAT))
            tensor.name += " half"
    for node in nodes:
        graph.node.append(node)
        placed = graph.node[-1]
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
            graph.output.append(helper.make_tensor_value_info(REACHED + name, TensorProto.FLOAT, []))
    del graph.value_info[:]
    return twin
