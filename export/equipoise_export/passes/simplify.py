"""Brings a front end's graph into the plain form that the passes know: no functions, constants as initializers."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

from ..graph.nodes import number_of
from .compilation import Compilation

_RESHAPING = {"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity"}


def simplify(c: Compilation) -> None:
    """Ensures one flat graph in which every constant is an initializer, transposed weights too."""
    common.InlinePass()(c.model)
    common.RemoveInitializersFromInputsPass()(c.model)
    fold_constants(c.model, onnx_shape_inference=False, should_fold=_worthwhile)
    for clean in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    ):
        clean(c.model)
    for node in c.graph:
        _drop_zero_bias(node)
    c.graph.sort()


def _drop_zero_bias(node: ir.Node) -> None:
    """torch.onnx gives 3D convolutions without bias one of zeros, of a shape [out, 2] that is not even valid."""
    if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2:
        bias = number_of(node.inputs[2])
        if bias is not None and not bias.any():
            node.resize_inputs(2)


def _worthwhile(node: ir.Node) -> bool | None:
    """Weights of any size are transposed once, here; the folder's own limits hold for what could blow the file up."""
    return True if node.op_type in _RESHAPING else None
