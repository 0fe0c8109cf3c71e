"""A batch answers as its images do one by one.

Monte Carlo dropout is a loop over single images, so where a network reckons over its whole batch, its meaning is taken
to be that of a batch of one image and one sample:

Case 1: noise is normalised by a sum or mean over everything, batch included (DropBlock's `numel / keep.sum()`): each
        sample is normalised on its own.
Case 2: one draw for the whole batch (`torch.rand(1)`, stochastic depth's mode `batch`): each sample has its own.
Case 3: the number of images enters the arithmetic (`numel` of a batch): it is 1.

In Cases 1 and 2 a number becomes a vector `[N]`, and so does what is computed from it, up to where it meets a tensor of
rank r: there it is `[N, 1, …]`. Activations that are reduced over the batch are refused: there, a batch is meant.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from ..errors import CaptureRefused
from .fx import Fx, Writer, fake_mode, infer, module_of, pointwise, schema_name
from .sizes import batch_symbol, image_of

_aten = torch.ops.aten
_WHOLE = {"sum", "mean", "max", "min", "amax", "amin", "std", "var", "norm", "linalg_vector_norm"}
_MOVING = {
    "view", "reshape", "unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "flatten", "contiguous", "clone", "alias",
    "detach", "detach_", "select", "slice", "to", "_to_copy", "type_as", "expand", "view_as",
}  # fmt: skip
_ONLY_SIZES = {"ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros", "new_full", "new_empty"}


def answer_each_image(program: ExportedProgram, drawn_once: Iterable[Fx]) -> None:
    """Ensures that nothing is reckoned over the batch.

    Args:
        drawn_once: masks `[N]` that stand where the network drew one number for all images.

    Raises:
        CaptureRefused: activations are reduced over the batch.
    """
    work = _PerImage(program, set(drawn_once))
    for node in list(program.graph.nodes):
        if node.op == "call_function":
            work.visit(node)


class _PerImage:
    def __init__(self, program: ExportedProgram, vectors: set[Fx]) -> None:
        self.program = program
        self.mode = fake_mode(program)
        self.batch: sympy.Symbol = batch_symbol(program)
        self.image = image_of(program.graph)
        self.vectors = vectors
        self.data: set[Fx] = {self.image}

    def visit(self, node: Fx) -> None:
        name = schema_name(node)
        if name in _ONLY_SIZES or name.startswith("sym_"):
            return
        inputs = [entry for entry in node.all_input_nodes if isinstance(entry.meta.get("val"), Tensor)]
        if any(entry in self.data for entry in inputs):
            self.data.add(node)
        if name in _WHOLE and self._over_batch(node):
            self._reduction(node)
        elif any(entry in self.vectors for entry in inputs):
            self._follow(node, name)
        if pointwise(node):
            self._sizes(node)

    # --- Case 1 ---

    def _over_batch(self, node: Fx) -> bool:
        x = node.args[0].meta["val"]
        if not isinstance(x, Tensor) or not x.dim() or not self._counts_images(x.shape[0]):
            return False
        out = node.meta["val"]
        return isinstance(out, Tensor) and (out.dim() == 0 or 0 in _axes(node) or -x.dim() in _axes(node))

    def _counts_images(self, size: Any) -> bool:
        return isinstance(size, torch.SymInt) and sympy.sympify(size.node.expr) == self.batch

    def _reduction(self, node: Fx) -> None:
        x, name = node.args[0], schema_name(node)
        if x in self.data or name not in ("sum", "mean") or node.meta["val"].dim() != 0:
            raise CaptureRefused(
                f"`{name}` is taken over all images of a batch, so an image's answer would depend on its batch-mates",
                module_of(node)[0] or "forward",
                "Take it over each image alone: x.sum(dim=(1, 2, 3), keepdim=True).",
            )
        write = Writer(self.program, node)
        axes = list(range(1, x.meta["val"].dim()))
        overload = _aten.sum.dim_IntList if name == "sum" else _aten.mean.dim
        result = write(overload, x, axes, False, **node.kwargs) if axes else x
        node.replace_all_uses_with(result)
        self.program.graph.erase_node(node)
        self.vectors.add(result)

    # --- Cases 1 and 2 ---

    def _follow(self, node: Fx, name: str) -> None:
        out = node.meta["val"]
        if out is None:  # an assertion about it
            self.program.graph.erase_node(node)
            return
        if name in _MOVING and isinstance(out, Tensor):
            if out.dim() <= 1 and out.numel() == 1:
                source = node.args[0]
                if name in ("to", "_to_copy", "type_as"):
                    infer(node, self.mode)
                    self.vectors.add(node)
                else:
                    node.replace_all_uses_with(source)
                    self.program.graph.erase_node(node)
                return
            if name in ("expand", "clone", "to", "contiguous") or out.numel() == 1:
                column = self._shaped(node, node.args[0], out.dim())
                if name == "expand":
                    node.args = (column, *node.args[1:])
                else:
                    node.replace_all_uses_with(column)
                    self.program.graph.erase_node(node)
                return
        if not pointwise(node):
            raise CaptureRefused(
                f"one number for all images goes into `{name or node.target}`, where it cannot become one for each",
                module_of(node)[0] or "forward",
                "Draw and normalise for each image: torch.rand(x.shape[0], 1, 1, 1), mask.sum(dim=(1, 2, 3)).",
            )
        met = [entry.meta["val"] for entry in node.all_input_nodes if entry not in self.vectors]
        ranks = [value.dim() for value in met if isinstance(value, Tensor) and value.numel() != 1]
        if not ranks:
            infer(node, self.mode)
            self.vectors.add(node)
            return
        shaped_as = {
            entry: self._shaped(node, entry, max(ranks)) for entry in node.all_input_nodes if entry in self.vectors
        }
        node.args = map_arg(node.args, lambda entry: shaped_as.get(entry, entry))
        infer(node, self.mode)

    def _shaped(self, at: Fx, vector: Fx, rank: int) -> Fx:
        """`[N]` as `[N, 1, …]`."""
        return Writer(self.program, at)(_aten.reshape.default, vector, [-1, *[1] * (rank - 1)])

    # --- Case 3 ---

    def _sizes(self, node: Fx) -> None:
        def alone(entry: Node) -> Any:
            value = entry.meta.get("val")
            if not isinstance(value, (torch.SymInt, torch.SymFloat)):
                return entry
            expression = sympy.sympify(value.node.expr)
            if self.batch not in expression.free_symbols:
                return entry
            one = expression.subs(self.batch, 1)
            if one.is_Integer:
                return int(one)
            if one.is_number:
                return float(one)
            if self.batch in sympy.simplify(expression / self.batch).free_symbols:
                raise CaptureRefused(
                    f"the number of images enters its arithmetic ({expression})",
                    module_of(node)[0] or "forward",
                    "Reckon for each image alone, or export for one size (--sizes fixed).",
                )
            write = Writer(self.program, node)
            count = write(_aten.sym_size.int, self.image, 0)
            return write(operator.floordiv, entry, count)

        node.args = map_arg(node.args, alone)


def _axes(node: Fx) -> tuple[int, ...]:
    """The axes that a reduction names."""
    for entry in node.args[1:]:
        if isinstance(entry, (list, tuple)) and all(isinstance(axis, int) for axis in entry):
            return tuple(entry)
    named = {argument.name: position for position, argument in enumerate(node.target._schema.arguments)}
    if "dim" in named and named["dim"] < len(node.args) and isinstance(node.args[named["dim"]], int):
        return (node.args[named["dim"]],)
    return ()
