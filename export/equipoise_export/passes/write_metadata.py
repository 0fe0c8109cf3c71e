"""Writes the contract into the graph, and the graph's own name and inputs as the contract says them."""

from __future__ import annotations

import onnx_ir as ir

from .compilation import Compilation


def write_metadata(c: Compilation) -> None:
    """Ensures that whoever has only the ONNX file knows what its mask bits mean."""
    c.image.dtype = ir.DataType.FLOAT
    c.image.shape = ir.Shape(["N", c.contract.channels, *c.contract.spatial])
    c.graph.name = c.contract.name
    c.graph.doc_string = None
    c.model.producer_name = "equipoise"
    c.model.producer_version = None
    c.model.model_version = None
    c.model.doc_string = None
    c.model.ir_version = 10
    c.model.metadata_props.clear()
    c.model.metadata_props.update(c.contract.graph_metadata())
