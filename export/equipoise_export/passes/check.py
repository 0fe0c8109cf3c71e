"""Checks the finished graph: a sampler under the contract, with nothing random left."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from equipoise_core.moments import sampler_outputs

from ..errors import CaptureRefused, PassFailed
from ..graph.nodes import IMAGE, MASKS, RANDOM
from .compilation import Compilation


def check(c: Compilation) -> None:
    """Ensures: no marker, no random operator, frozen BatchNorm, inputs and outputs by name, valid ONNX."""
    for node in ir.traversal.RecursiveGraphIterator(c.graph):
        if node.domain not in ("", "ai.onnx"):
            raise PassFailed(f"{node.domain}::{node.op_type} {node.name} is left in the graph")
        if node.op_type in {*RANDOM, "Dropout"}:
            raise CaptureRefused(
                f"a random operator ({node.op_type}) is left in the graph",
                str(node.name),
                "Take it out of the network: every random number has to come in as a mask.",
            )
        if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode"):
            raise CaptureRefused(
                "BatchNorm is in training mode, so an image's answer would depend on its batch-mates",
                str(node.name),
                "Export it in evaluation mode.",
            )
    inputs = [value.name for value in c.graph.inputs]
    expected = [IMAGE, MASKS] if c.contract.stochastic else [IMAGE]
    if inputs != expected:
        raise PassFailed(f"the sampler's inputs are {inputs}; expected {expected}")
    outputs = tuple(value.name for value in c.graph.outputs)
    if outputs != sampler_outputs(c.contract):
        raise PassFailed(f"the sampler's outputs are {outputs}; expected {sampler_outputs(c.contract)}")
    # Without the weights, which may be more than protobuf holds; it puts them back in another order, hence the clone.
    common.CheckerPass(full_check=True)(c.model.clone())
