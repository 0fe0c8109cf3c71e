"""Removes what nothing uses, merges what is equal, and names everything by its place.

Two exports of one network have to be the same bytes, so names, which carry counters and module ids, and metadata, which
carries stack traces with paths, are not kept.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from .compilation import Compilation


def tidy(c: Compilation) -> None:
    """Ensures a sorted graph whose names depend on its structure alone."""
    for clean in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        clean(c.model)
    c.graph.sort()
    _name(c.graph)


def _name(graph: ir.Graph) -> None:
    fixed = {*graph.inputs, *graph.outputs}
    initializers = list(graph.initializers.values())
    used: dict[ir.Value, int] = {}
    for node in graph:
        for value in node.inputs:
            if value is not None:
                used.setdefault(value, len(used))
    initializers.sort(key=lambda value: used.get(value, len(used)))
    graph.initializers.clear()
    for index, value in enumerate(initializers):
        value.name = f"w{index}"
        if value.const_value is not None:
            value.const_value.name = value.name
        graph.register_initializer(value)
    count = 0
    for position, node in enumerate(graph):
        node.name = f"{node.op_type}_{position}"
        for value in node.outputs:
            if value not in fixed:
                value.name = f"v{count}"
                value.shape = None  # symbolic names of torch mean nothing to a reader, and change between exports
                count += 1
    for value in graph.inputs:
        value.metadata_props.clear()
