"""Marks what depends on a mask: everything that can be reached from a marker. The rest is the trunk, computed once."""

from __future__ import annotations

import onnx_ir as ir

from ..errors import CaptureRefused
from ..graph.nodes import inner_graphs
from .compilation import Compilation


def mark_sampled(c: Compilation) -> None:
    """Ensures `sampled`; refuses where a sampled value enters a loop or a branch, or never reaches the output."""
    c.graph.sort()
    c.sampled = set()
    markers = set(c.markers())
    for node in c.graph:
        if node in markers or any(value in c.sampled for value in node.inputs):
            if inner_graphs(node):
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
    parts = (part for graph in inner_graphs(node) for part in ir.traversal.RecursiveGraphIterator(graph))
    return any(value in sampled for part in parts for value in part.inputs)


def _refuse(node: ir.Node) -> None:
    raise CaptureRefused(
        f"what dropout changes goes into a {node.op_type}, whose iterations or branches cannot be batched over samples",
        str(node.name or node.op_type),
        "Unroll the loop or replace the branch by torch.where.",
    )
