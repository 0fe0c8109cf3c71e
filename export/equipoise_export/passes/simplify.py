"""Brings a front end's graph into the plain form that the passes know: no functions, constants as initializers."""

from __future__ import annotations

import onnx_ir.passes.common as common

from .compilation import Compilation


def simplify(c: Compilation) -> None:
    """Ensures one flat graph in which every constant is an initializer."""
    for clean in (
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        clean(c.model)
    c.graph.sort()
