"""Runs the sampled part once for all samples, as a batch of N·T, images outermost.

Case 1, a marker on a shared value: y[N, T, …] = x[N, 1, …] · m[N, T, …]. Broadcasting makes the T copies, no one else.
Case 2, a marker on a sampled value: y[N·T, …] = x[N·T, …] · m[N·T, …].
Case 3, an element-wise operation or a product of matrices between sampled and shared: both get an axis for the samples
        and broadcast, as in 1.
Case 4, any other operation between sampled and shared: the shared value is repeated, [N, …] → [N, 1, …] → [N·T, …].
Case 5, an input that says the batch's size (a shape to reshape to): it is computed again with N·T for N.

Where k things are folded into the batch axis (N·k, heads or windows), it splits into [N, T, k].
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import onnx_ir as ir

from ..errors import CaptureRefused
from ..graph.marker import DOMAIN, KEEP, marker_of
from ..graph.nodes import attributes_of, remove, replace
from .compilation import Compilation, Entry

ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "PRelu", "Mod", "And", "Or", "Xor",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
}  # fmt: skip


class _Origin(Enum):
    """What a shared value is made of."""

    CONSTANT = "nothing that changes with the image or the batch"
    SHAPE = "only sizes that change with the batch"
    DATA = "the image"


def batch_samples(c: Compilation) -> None:
    """Requires `layouts` and `sampled`; ensures no marker is left and each site has its placeholder in `keeps`."""
    batching = _Batching(c)
    markers = set(c.markers())
    c.keeps = {}
    for node in list(c.graph):
        if node in markers:
            batching.mask(node)
        elif any(value in c.sampled for value in node.inputs):
            batching.node(node)
    c.graph.sort()


class _Batching:
    def __init__(self, c: Compilation) -> None:
        self.c = c
        self.origins: dict[ir.Value, _Origin] = {}
        self.repeated: dict[ir.Value, ir.Value] = {}
        self.resized: dict[ir.Value, ir.Value] = {}

    # --- Cases 1 and 2 ---

    def mask(self, node: ir.Node) -> None:
        c, x, marker = self.c, node.inputs[0], marker_of(node)
        assert x is not None
        layout = c.layouts[x]
        axis = layout.axis
        assert axis is not None
        keep = c.op(KEEP, domain=DOMAIN, site=marker.site, scale=marker.scale)  # [N·T, units]
        c.keeps[marker.site] = keep
        sizes: list[Entry] = [
            (c.size(x, index) if index in marker.axes else 1) for index in range(layout.rank) if index != axis
        ]
        fold: list[Entry] = [layout.factor] if layout.factor > 1 else []
        entries = [-1, *sizes[:axis], *fold, *sizes[axis:]]
        if x in c.sampled:
            mask = self._arranged(keep, axis, entries)
            if fold:
                mask = c.reshape(mask, [*sizes[:axis], -1, *sizes[axis:]])
            new = c.op("Mul", x, mask, like=node.outputs[0])
        else:
            mask = self._arranged(keep, axis, entries) if axis else keep
            mask = c.reshape(mask, [*sizes[:axis], c.images, c.samples, *fold, *sizes[axis:]])
            new = self.merged(c.op("Mul", self.split(x, sampled=False), mask), node.outputs[0])
        self._substitute(node, [new])

    def _arranged(self, keep: ir.Value, axis: int, entries: list[Entry]) -> ir.Value:
        """Units come samples first; the sample axis goes where the batch axis is."""
        mask = self.c.reshape(keep, entries)
        if axis == 0:
            return mask
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(entries))]
        return self.c.op("Transpose", mask, perm=order)

    # --- Cases 3 to 5 ---

    def node(self, node: ir.Node) -> None:
        c = self.c
        shared = [
            value is not None
            and value not in c.sampled
            and self.origin(value) is _Origin.DATA
            and c.layouts[value].axis is not None
            for value in node.inputs
        ]
        if self._broadcasts(node) and any(shared) and self._aligned(node, shared):
            self._broadcast(node, shared)
            return
        for index, value in enumerate(node.inputs):
            if value is None or value in c.sampled:
                continue
            if shared[index]:
                node.replace_input_with(index, self.repeat(value))
            elif self.origin(value) is _Origin.SHAPE:
                node.replace_input_with(index, self.resize(value))

    def _broadcasts(self, node: ir.Node) -> bool:
        out = self.c.layouts.get(node.outputs[0])
        if node.op_type == "MatMul":  # over the axes before the matrices
            return out is not None and out.axis is not None and out.axis < out.rank - 2
        return node.op_type in ELEMENTWISE

    def _aligned(self, node: ir.Node, shared: list[bool]) -> bool:
        """Whether all inputs have their batch axis at the same distance from the end, folded alike."""
        c = self.c
        out = c.layouts[node.outputs[0]]
        if out.axis is None:
            return False
        for value, is_shared in zip(node.inputs, shared, strict=True):
            if value is None:
                return False
            if is_shared or value in c.sampled or self.origin(value) is _Origin.SHAPE:
                layout = c.layouts.get(value)
                if layout is None:
                    return False
                if layout.axis is None:
                    if layout.rank >= out.rank - out.axis:
                        return False
                elif layout.rank - layout.axis != out.rank - out.axis or layout.factor != out.factor:
                    return False
        return True

    def _broadcast(self, node: ir.Node, shared: list[bool]) -> None:
        c = self.c
        out = c.layouts[node.outputs[0]]
        assert out.axis is not None
        distance = out.rank - out.axis
        inputs: list[ir.Value] = []
        for value, is_shared in zip(node.inputs, shared, strict=True):
            assert value is not None
            if is_shared:
                inputs.append(self.split(value, sampled=False))
            elif value in c.sampled or self.origin(value) is _Origin.SHAPE:
                if value not in c.sampled:
                    layout, value = c.layouts[value], self.resize(value)
                    c.layouts[value] = layout
                inputs.append(self.split(value, sampled=True) if c.layouts[value].axis is not None else value)
            else:
                rank = self._rank(value)
                if rank >= distance:  # it has a place at the batch axis, of size 1: the new axes come after it
                    place = rank - distance
                    new = [place + 1] + ([place + 2] if out.factor > 1 else [])
                    value = c.op("Unsqueeze", value, c.constant(new))
                inputs.append(value)
        result = c.op(node.op_type, *inputs, **attributes_of(node))
        self._substitute(node, [self.merged(result, node.outputs[0])])

    def _rank(self, value: ir.Value) -> int:
        if value in self.c.layouts:
            return self.c.layouts[value].rank
        assert value.const_value is not None
        return len(value.const_value.shape)

    # --- the sample axis ---

    def split(self, value: ir.Value, sampled: bool) -> ir.Value:
        """[…, N·T·k, …] → […, N, T, k, …], or a shared […, N·k, …] → […, N, 1, k, …]."""
        layout = self.c.layouts[value]
        assert layout.axis is not None
        before: list[Entry] = [self.c.size(value, index) for index in range(layout.axis)]
        after: list[Entry] = [self.c.size(value, index) for index in range(layout.axis + 1, layout.rank)]
        fold: list[Entry] = [layout.factor] if layout.factor > 1 else []
        return self.c.reshape(value, [*before, -1, self.c.samples if sampled else 1, *fold, *after])

    def merged(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """[…, N, T, k, …] → […, N·T·k, …], with the layout of `like`."""
        c, layout = self.c, self.c.layouts[like]
        assert layout.axis is not None
        split = 2 + (layout.factor > 1)
        entries: list[Entry] = []
        for index in range(layout.rank):
            if index == layout.axis:
                entries.append(-1)
            elif layout.dynamic[index]:
                entries.append((value, index if index < layout.axis else index + split - 1))
            else:
                entries.append(layout.shape[index])
        return c.op("Reshape", value, c.shape(entries), like=like)

    def repeat(self, value: ir.Value) -> ir.Value:
        """Case 4: a shared value, once for each sample."""
        if value not in self.repeated:
            c, layout = self.c, self.c.layouts[value]
            assert layout.axis is not None
            apart = self.split(value, sampled=False)
            ones = layout.rank + 1 + (layout.factor > 1)
            times: list[Entry] = [1] * ones
            times[layout.axis + 1] = c.samples
            self.repeated[value] = self.merged(c.op("Expand", apart, c.shape(times)), value)
        return self.repeated[value]

    # --- Case 5 ---

    def origin(self, value: ir.Value) -> _Origin:
        if value not in self.origins:
            self.origins[value] = self._origin(value)
        return self.origins[value]

    def _origin(self, value: ir.Value) -> _Origin:
        node = value.producer()
        if node is None:
            return _Origin.DATA if value.const_value is None else _Origin.CONSTANT
        if node.op_type in ("Shape", "Size"):
            measured = node.inputs[0]
            assert measured is not None
            layout = self.c.layouts.get(measured)
            if layout is None or layout.axis is None:
                return _Origin.CONSTANT
            start, end = _range(node, layout.rank)
            return _Origin.SHAPE if start <= layout.axis < end else _Origin.CONSTANT
        found = {self.origin(entry) for entry in node.inputs if entry is not None}
        for origin in (_Origin.DATA, _Origin.SHAPE):
            if origin in found:
                return origin
        return _Origin.CONSTANT

    def resize(self, value: ir.Value) -> ir.Value:
        """The same value for a batch of N·T."""
        if value in self.resized:
            return self.resized[value]
        if value in self.c.sampled or self.origin(value) is not _Origin.SHAPE:
            return value
        c, node = self.c, value.producer()
        assert node is not None
        if node.op_type in ("Shape", "Size"):
            measured = node.inputs[0]
            assert measured is not None
            layout = c.layouts[measured]
            assert layout.axis is not None
            start, end = _range(node, layout.rank)
            same = c.op(node.op_type, measured, **attributes_of(node))
            factors: list[Entry] = [c.samples if axis == layout.axis else 1 for axis in range(start, end)]
            times = c.samples if node.op_type == "Size" else c.shape(factors)
            new = c.op("Mul", same, c.op("Squeeze", times) if node.op_type == "Size" else times)
            self.resized[value] = new
            return new
        inputs = [None if entry is None else self.resize(entry) for entry in node.inputs]
        made = c.op(node.op_type, *inputs, outputs=len(node.outputs), domain=node.domain, **attributes_of(node))
        for old, new in zip(node.outputs, [made] if len(node.outputs) == 1 else made, strict=True):
            self.resized[old] = new
            new.type = old.type
        return self.resized[value]

    def _substitute(self, node: ir.Node, values: list[ir.Value]) -> None:
        for old, new in zip(node.outputs, values, strict=True):
            if old not in self.c.layouts:
                raise CaptureRefused("a tensor of unknown layout", str(old.name), "This is a fault of the exporter.")
            new.type = old.type
            self.c.sampled.add(new)
            replace(old, new)
        remove([node])


def _range(node: ir.Node, rank: int) -> tuple[int, int]:
    if node.op_type == "Size":
        return 0, rank
    edges = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return tuple(int(np.clip(edge + rank if edge < 0 else edge, 0, rank)) for edge in edges)  # type: ignore[return-value]
