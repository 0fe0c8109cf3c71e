"""What capture, passes and proof do to ONNX graphs alike: names of inputs, constants, edits, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from ..options import LARGEST_FILE
from .marker import DOMAIN
from .session import session
from .storage import store

IMAGE = "image"
MASKS = "masks"
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
"""Operators that draw random numbers; Dropout does in training mode."""
Shape = tuple[int, ...]


def number_of(value: ir.Value | None) -> NDArray[Any] | None:
    """A value's constant content, where it has one."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new constant of the graph."""
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """Name → plain value, as `ir.node` takes them."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def inner_graphs(node: ir.Node) -> list[ir.Graph]:
    """Loop bodies and branches that the node itself holds."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


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
    without_markers(proto)
    return proto


def without_markers(proto: onnx.ModelProto) -> None:
    """Takes the markers' domain, which nothing uses any more, out of the imports, in place."""
    kept = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def shape_meter(model: ir.Model, largest_file: int = LARGEST_FILE) -> Callable[[NDArray[np.float32]], dict[str, Shape]]:
    """Runs a marked graph for the shapes of its tensors alone: images `[N, C, *S]` → tensor's name → shape.

    What it gives raises whatever ONNX Runtime says of images that do not fit.
    """
    proto, weights = store(model, largest_file)
    runnable(proto)
    names = [name for node in proto.graph.node for name in node.output if name]
    del proto.graph.output[:]
    for index, name in enumerate(names):
        proto.graph.node.append(helper.make_node("Shape", [name], [f"shape_{index}"]))
        proto.graph.output.append(helper.make_tensor_value_info(f"shape_{index}", onnx.TensorProto.INT64, None))
    running = session(proto, weights=weights)

    def measure(images: NDArray[np.float32]) -> dict[str, Shape]:
        shapes = running.run(None, {IMAGE: images})
        return {IMAGE: images.shape, **{n: tuple(map(int, shape)) for n, shape in zip(names, shapes, strict=True)}}

    return measure
