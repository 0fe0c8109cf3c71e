"""Reads and writes a torch.export graph, shapes included; says where in the network a node came from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_aggregate

from ..graph.marker import own_path

Fx = Any
"""A torch.fx.Node, whose arguments PyTorch types as a union of everything that can be one."""

_aten = torch.ops.aten
VIEWS = {
    _aten.view.default, _aten.reshape.default, _aten.transpose.int, _aten.permute.default, _aten.flatten.using_ints,
    _aten.unsqueeze.default, _aten.squeeze.dim, _aten.contiguous.default, _aten.clone.default, _aten.to.dtype,
    _aten._to_copy.default, _aten.alias.default, _aten.type_as.default,
}  # fmt: skip
"""What changes nothing but the shape, the strides or the type."""


def schema_name(node: Fx) -> str:
    """`add_` for `aten::add_.Tensor`; empty for what is no operator."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.split("::")[1]  # type: ignore[no-any-return]


def pointwise(node: Fx) -> bool:
    """Whether each element of its result depends on one element of each input."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


class SiteNames:
    """Site names: the module's path, `:operation` where the module itself is no dropout, `#2` for a second call."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def name(self, node: Fx, operation: str) -> str:
        path, kind = module_of(node)
        base = path if "drop" in kind.lower() and path else f"{path or 'forward'}:{operation}"
        self._seen[base] += 1
        return base if self._seen[base] == 1 else f"{base}#{self._seen[base]}"


def module_of(node: Fx) -> tuple[str, str]:
    """Path and class of the innermost module that a node came from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    steps = [step.split("@")[0] for step in path.split(".")]  # "@1" marks a second call; counted by SiteNames
    return own_path(".".join(steps)), str(kind).rsplit(".", 1)[-1]


def fake_mode(program: ExportedProgram) -> Any:
    """The mode that computes shapes without numbers."""
    fakes = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    return fakes[0].fake_mode


class Writer:
    """Writes FX nodes at one place, shapes included, with the origin of the node that they replace."""

    def __init__(self, program: ExportedProgram, at: Fx) -> None:
        self.graph = program.graph
        self.at = at
        self.mode = fake_mode(program)

    def __call__(self, operator: Any, *args: Any, **kwargs: Any) -> Fx:
        node = self.stating(None, operator, *args, **kwargs)
        infer(node, self.mode)
        return node

    def stating(self, value: Any, operator: Any, *args: Any, **kwargs: Any) -> Fx:
        """The same with a fake value that is known."""
        with self.graph.inserting_before(self.at):
            node = self.graph.call_function(operator, args, kwargs)
        node.meta["val"] = value
        for key in ("nn_module_stack", "stack_trace", "torch_fn"):
            if key in self.at.meta:
                node.meta[key] = self.at.meta[key]
        return node


def infer(node: Fx, mode: Any) -> None:
    """Computes the shape of a node's value anew."""

    def value(argument: Any) -> Any:
        return argument.meta["val"] if isinstance(argument, Node) else argument

    with mode, torch.no_grad():
        node.meta["val"] = node.target(*map_aggregate(node.args, value), **map_aggregate(node.kwargs, value))
