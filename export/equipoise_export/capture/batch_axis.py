"""An ONNX file made for one image → the same graph for any number of images.

torch.onnx writes the batch of its example as a number by default. The batch axis is followed from the image
through the graph, and where the number 1 was written for it, it becomes dynamic:

Case 1: Reshape, its target. Where the 1 is folded into a neighbour (`[L, 1, E]` → `[L, H·1, E/H]`), the axis of size
        L·N or H·N follows from the order of the elements; where that leaves two, the one that is no last axis.
Case 2: Resize to sizes: the other axes only.
Case 3: Concat with a constant (a class token): the constant is repeated for each image.

Guessing is allowed here because `verify` runs the result on two images at once and on each alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from equipoise_core.contract import Contract

from ..errors import CaptureRefused
from ..graph.nodes import IMAGE, Shape, initializer, number_of, shape_meter
from ..graph.session import session
from ..graph.storage import store

_REMEDY = "Export the file with a dynamic batch (torch.onnx.export with dynamic_shapes or dynamic_axes for axis 0)."
_FROM_SIZES = {"Shape", "Size"}


@dataclass(frozen=True)
class Batch:
    """Where the batch lies in a tensor: axis `axis` counts `before · N · after`."""

    axis: int
    before: int = 1
    after: int = 1


def make_batch_dynamic(model: ir.Model, image: ir.Value, draft: Contract) -> None:
    """Ensures, as far as it can, that the graph works for any number of images."""
    for value in [*model.graph.outputs, *(output for node in model.graph for output in node.outputs)]:
        value.shape = None  # they say batch 1
    shapes = shapes_for(model, draft, 1)
    dynamic = _DynamicBatch(model, shapes)
    dynamic.batches[image] = Batch(0)
    for node in list(model.graph):
        dynamic.node(node)


def shapes_for(model: ir.Model, draft: Contract, images: int) -> dict[str, Shape]:
    """Shape of every tensor for that many images.

    Raises:
        CaptureRefused: the graph does not run on them.
    """
    picture = np.zeros((images, draft.channels, *draft.nominal), np.float32)
    try:
        return shape_meter(model)(picture)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise CaptureRefused(
            f"the graph does not run on {images} image{'s' if images > 1 else ''} {list(picture.shape)}: {first}",
            "the whole network",
            f"State the right --input-shape. {_REMEDY}" if images > 1 else "State the right --input-shape.",
        ) from error


def verify(model: ir.Model, draft: Contract) -> None:
    """Refuses a graph whose answer to two images is not its answers to each."""
    proto, weights = store(model)
    runner = session(proto, weights=weights)
    pictures = np.random.default_rng(0).standard_normal((2, draft.channels, *draft.nominal)).astype(np.float32)
    try:
        (both,) = runner.run(None, {IMAGE: pictures})
        alone = np.concatenate([runner.run(None, {IMAGE: picture[None]})[0] for picture in pictures])
        same = both.shape == alone.shape and np.allclose(both, alone, rtol=1e-3, atol=1e-3 * np.abs(alone).max())
    except Exception:  # noqa: BLE001  # ONNX Runtime raises anything
        same = False
    if not same:
        raise CaptureRefused("the file is made for one image at a time", str(model.graph.outputs[0].name), _REMEDY)


class _DynamicBatch:
    def __init__(self, model: ir.Model, shapes: Mapping[str, Shape]) -> None:
        self.model = model
        self.shapes = shapes
        self.batches: dict[ir.Value, Batch] = {}

    def node(self, node: ir.Node) -> None:
        """Finds the batch in a node's outputs, and makes what the node says about it dynamic."""
        data = next((value for value in node.inputs if value in self.batches), None)
        if data is None or node.op_type in _FROM_SIZES:
            return
        batch, before = self.batches[data], self._shape(data)
        if node.op_type == "Reshape":
            found = self._reshape(node, batch, before)
        elif node.op_type == "Concat":
            found = self._concat(node, batch)
        else:
            if node.op_type == "Resize":
                self._resize(node, batch, before)
            found = _carried(node, batch, before, self._shape(node.outputs[0]))
        if found is not None:
            for output in node.outputs:
                self.batches[output] = found

    def _shape(self, value: ir.Value) -> Shape:
        return self.shapes.get(str(value.name), ())

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        return initializer(self.model.graph, name, array)

    def _reshape(self, node: ir.Node, batch: Batch, before: Shape) -> Batch | None:
        target = number_of(node.inputs[1])
        after = self._shape(node.outputs[0])
        found = _reshaped(batch, before, after)
        if target is None or found is None:
            return found
        free = [int(size) for size in after]
        free[found.axis] = -1
        node.replace_input_with(1, self._constant(np.array(free, np.int64), f"free shape of {node.outputs[0].name}"))
        return found

    def _resize(self, node: ir.Node, batch: Batch, before: Shape) -> None:
        sizes = number_of(node.inputs[3]) if len(node.inputs) > 3 else None
        if sizes is None or "axes" in node.attributes or len(sizes) != len(before):
            return
        others = [axis for axis in range(len(before)) if axis != batch.axis]
        node.replace_input_with(3, self._constant(sizes[others], f"free sizes of {node.outputs[0].name}"))
        node.attributes["axes"] = ir.AttrInt64s("axes", others)

    def _concat(self, node: ir.Node, batch: Batch) -> Batch:
        rank = len(self._shape(node.outputs[0]))
        if node.attributes["axis"].as_int() % rank == batch.axis:
            return batch
        images = None
        for index, value in enumerate(node.inputs):
            array = number_of(value)
            if value is None or value in self.batches or (array is not None and array.shape[batch.axis] != 1):
                continue
            if images is None:
                counted = next(entry for entry in node.inputs if entry in self.batches)
                shape = ir.node("Shape", [counted], {"start": batch.axis, "end": batch.axis + 1})
                ones = self._constant(np.ones(rank, np.int64), f"ones for {node.outputs[0].name}")
                place = self._constant(np.array([batch.axis], np.int64), f"axis for {node.outputs[0].name}")
                times = ir.node("ScatterElements", [ones, place, shape.outputs[0]], {"axis": 0})
                shape.outputs[0].name = f"images for {node.outputs[0].name}"
                times.outputs[0].name = f"times for {node.outputs[0].name}"
                self.model.graph.insert_before(node, [shape, times])
                images = times.outputs[0]
            repeated = ir.node("Expand", [value, images])
            repeated.outputs[0].name = f"repeated {index} for {node.outputs[0].name}"
            repeated.outputs[0].type = value.type
            self.model.graph.insert_before(node, repeated)
            node.replace_input_with(index, repeated.outputs[0])
        return batch


def _reshaped(batch: Batch, before: Shape, after: Shape) -> Batch | None:
    """Where the batch of a reshaped tensor lies: behind as many elements as before."""
    ahead = prod(before[: batch.axis]) * batch.before
    merged: list[Batch] = []
    for axis, size in enumerate(after):
        front = prod(after[:axis])
        if front == ahead and size == batch.after:
            return Batch(axis, 1, size)  # an axis of its own, or the same things folded into it
        if front == ahead and size == 1:
            return Batch(axis)
        if front <= ahead <= front * size and ahead % front == 0 and (front * size) % ahead == 0:
            merged.append(Batch(axis, ahead // front, front * size // ahead))
    inner = [found for found in merged if found.axis < len(after) - 1]
    return inner[-1] if inner else merged[-1] if merged else None


def _carried(node: ir.Node, batch: Batch, before: Shape, after: Shape) -> Batch | None:
    """The batch behind an operation that leaves it alone; None where that is not known."""
    axis, attributes = batch.axis, node.attributes
    if node.op_type == "Transpose":
        order = attributes["perm"].as_ints() if "perm" in attributes else list(reversed(range(len(before))))
        axis = list(order).index(batch.axis)
    elif node.op_type in ("Unsqueeze", "Squeeze"):
        axes = number_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return None
        larger = max(len(before), len(after))
        places = sorted(int(a) % larger for a in axes.reshape(-1))
        if node.op_type == "Squeeze":
            return None if axis in places else Batch(axis - sum(p < axis for p in places), batch.before, batch.after)
        for place in places:
            axis += place <= axis
    elif node.op_type == "Gather":
        along = attributes.get_int("axis", 0) % len(before)
        added = len(after) - len(before)
        if along == axis:
            return None
        axis += added if along < axis else 0
    elif node.op_type == "Flatten":
        return batch if axis == 0 else None
    elif len(after) != len(before):
        if node.op_type.startswith("Reduce") or node.op_type in ("ArgMax", "ArgMin"):
            return batch if axis == 0 else None
        axis += len(after) - len(before)  # broadcasting aligns at the end
        if axis < 0:
            return None
    return Batch(axis, batch.before, batch.after)
