"""Sizes that torch.export knows as symbols, spelled in the contract's names of dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.utils._sympy.functions import FloorDiv

from ..errors import CaptureRefused
from ..graph.marker import BATCH


def image_of(graph: Graph) -> Any:
    """The network's one input."""
    return [node for node in graph.nodes if node.op == "placeholder"][-1]


def batch_symbol(program: ExportedProgram) -> sympy.Symbol:
    """N, as torch.export calls it."""
    return sympy.sympify(image_of(program.graph).meta["val"].shape[0].node.expr)


def dimension_names(program: ExportedProgram, spatial: tuple[int | str, ...]) -> dict[sympy.Symbol, sympy.Expr]:
    """Symbol → how the contract says it: the batch as N, and x where the height is 8·x as H//8."""
    names: dict[sympy.Symbol, sympy.Expr] = {}
    for size, name in zip(image_of(program.graph).meta["val"].shape, (BATCH, None, *spatial), strict=True):
        if isinstance(size, torch.SymInt) and isinstance(name, str):
            expression = sympy.sympify(size.node.expr)
            if len(expression.free_symbols) != 1:
                raise CaptureRefused(
                    f"the network fixes {name} to {expression}",
                    "the whole network",
                    "Write it so that it works for any number of images and, unless --sizes is fixed, for any size.",
                )
            (symbol,) = expression.free_symbols
            factor = expression / symbol
            spelled = sympy.Symbol(name, integer=True, positive=True)
            names[symbol] = spelled if factor == 1 else FloorDiv(spelled, factor)
    return names


def spell(size: int | torch.SymInt, names: Mapping[sympy.Symbol, sympy.Expr]) -> int | str:
    """A size as a number or as an expression of `+ − * //` that the contract can evaluate."""
    if isinstance(size, int):
        return size
    expression = sympy.sympify(size.node.expr).xreplace(names)
    return int(expression) if expression.is_Integer else _spell(expression)


def _spell(expression: sympy.Expr) -> str:
    if isinstance(expression, FloorDiv):
        return f"({_spell(expression.args[0])}//{_spell(expression.args[1])})"
    if expression.is_Symbol or expression.is_Integer:
        return str(expression)
    if expression.is_Add:
        return "(" + " + ".join(_spell(term) for term in expression.args) + ")"
    if expression.is_Mul and all(not factor.is_Rational or factor.is_Integer for factor in expression.args):
        return "*".join(_spell(factor) for factor in expression.args)
    if expression.is_Pow and expression.exp.is_Integer and 0 < int(expression.exp) < 9:
        return "*".join([_spell(expression.base)] * int(expression.exp))
    raise CaptureRefused(
        f"the size of a mask is {expression}, which the contract cannot say with + - * //",
        "the whole network",
        "Export for one size (--sizes fixed).",
    )
