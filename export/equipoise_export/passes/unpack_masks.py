"""Mask bits → factors, by a table of the 256 bytes.

The packed masks are UINT8 [N, T, B]; site s owns bits [o, o + u). Its bytes ⌊o/8⌋ … ⌈(o + u)/8⌉ index a table
[256, 8] whose row b holds (b >> i & 1) · scale for i = 0 … 7, so unpacking and scaling by 1/(1 − p) are one Gather;
the o mod 8 bits of the neighbour before are cut off. Shifting each bit out costs four times as much (FACTS).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from math import prod

import numpy as np
import onnx_ir as ir

from ..graph.nodes import replace
from .compilation import Compilation


def unpack_masks(c: Compilation) -> None:
    """Requires `keeps`, one placeholder for each site; ensures FP32 [N·T, units] in their place."""
    start: int | ir.Value = 0
    arithmetic = _Arithmetic(c)
    for site in c.contract.sites:
        placeholder = c.keeps.pop(site.name)
        node = placeholder.producer()
        assert node is not None
        scale = node.attributes["scale"].as_float()
        units = arithmetic.product([arithmetic.evaluate(entry) for entry in site.shape])
        end = arithmetic.apply("Add", start, units)
        first = arithmetic.apply("Div", start, 8)
        last = arithmetic.apply("Div", arithmetic.apply("Add", end, 7), 8)
        skipped = arithmetic.apply("Sub", start, arithmetic.apply("Mul", first, 8))
        packed = c.op("Slice", c.masks, arithmetic.value(first), arithmetic.value(last), c.constant([2]))
        bits = c.op("Gather", _table(c, scale), c.op("Cast", packed, to=ir.DataType.INT32.value), axis=0)
        flat = c.op("Reshape", bits, c.shape([c.made_once("N*T", lambda: c.op("Mul", c.images, c.samples)), -1]))
        stop = arithmetic.apply("Add", skipped, units)
        keep = c.op("Slice", flat, arithmetic.value(skipped), arithmetic.value(stop), c.constant([1]))
        keep.dtype = ir.DataType.FLOAT
        replace(placeholder, keep)
        c.graph.remove(node, safe=True)
        start = end
    c.graph.sort()


def _table(c: Compilation, scale: float) -> ir.Value:
    """FP32 [256, 8]."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return c.constant(bits.astype(np.float32) * np.float32(scale))


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,  # in the graph it truncates: sizes are not negative
}


class _Arithmetic:
    """Integers that are numbers while they can be and INT64 [1] in the graph once they depend on the image's size."""

    def __init__(self, c: Compilation) -> None:
        self.c = c

    def value(self, number: int | ir.Value) -> ir.Value:
        return self.c.constant([number]) if isinstance(number, int) else number

    def apply(self, kind: str, left: int | ir.Value, right: int | ir.Value) -> int | ir.Value:
        if isinstance(left, int) and isinstance(right, int):
            return _OPERATIONS[kind](left, right)
        return self.c.op(kind, self.value(left), self.value(right))  # type: ignore[no-any-return]

    def product(self, factors: list[int | ir.Value]) -> int | ir.Value:
        result: int | ir.Value = prod(factor for factor in factors if isinstance(factor, int))
        for factor in factors:
            if not isinstance(factor, int):
                result = factor if result == 1 else self.apply("Mul", result, factor)
        return result

    def evaluate(self, entry: int | str) -> int | ir.Value:
        """A contract's expression (+ − * // of dimension names) as graph arithmetic."""
        return entry if isinstance(entry, int) else self._evaluate(ast.parse(entry, mode="eval").body)

    def _evaluate(self, node: ast.expr) -> int | ir.Value:
        if isinstance(node, ast.Constant):
            return int(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            axis = 2 + self.c.contract.spatial.index(node.id)
            return self.c.made_once(f"size {axis}", lambda: self.c.op("Shape", self.c.image, start=axis, end=axis + 1))
        if isinstance(node, ast.UnaryOp):
            return self.apply("Sub", 0, self._evaluate(node.operand))
        assert isinstance(node, ast.BinOp)
        kinds = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.FloorDiv: "Div"}
        return self.apply(kinds[type(node.op)], self._evaluate(node.left), self._evaluate(node.right))
