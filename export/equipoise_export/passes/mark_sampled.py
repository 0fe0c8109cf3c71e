"""Marks what depends on a mask: everything that can be reached from a marker. The rest is the trunk, computed once."""

from __future__ import annotations

import onnx_ir as ir

from ..errors import CaptureRefused
from .compilation import Compilation


def mark_sampled(c: Compilation) -> None:
    """Ensures `sampled`; refuses where a sampled value enters a loop or a branch, or never reaches the output."""
    c.graph.sort()
    c.sampled = set()
    markers = set(c.markers())
    for node in c.graph:
        if node in markers or any(value in c.sampled for value in node.inputs if value is not None):
            if any(
                attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                for attribute in node.attributes.values()
            ):
                _refuse(node)
            c.sampled.update(node.outputs)
        elif _captures(node, c.sampled):
            _refuse(node)
    if markers and c.graph.outputs[0] not in c.sampled:
        raise CaptureRefused(
            "no mask reaches the chosen output, so its variance would be zero",
            "the whole network",
            "Choose another output (--output) or other sites (--sites).",
        )


def _captures(node: ir.Node, sampled: set[ir.Value]) -> bool:
    """Whether a graph inside the node (loop body, branch) uses a sampled value from outside."""
    for attribute in node.attributes.values():
        inner = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        inner += list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in inner:
            for part in graph:
                if any(value in sampled for value in part.inputs if value is not None) or _captures(part, sampled):
                    return True
    return False


def _refuse(node: ir.Node) -> None:
    raise CaptureRefused(
        f"what dropout changes goes into a {node.op_type}, whose iterations or branches cannot be batched over samples",
        str(node.name or node.op_type),
        "Unroll the loop or replace the branch by torch.where.",
    )
