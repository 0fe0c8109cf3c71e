"""Writes into a torch.export graph, shapes included, and tells where in the network a node came from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_aggregate

from .noise import Fx


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
    if steps and steps[0] == "equipoise_network":  # the wrapper that chooses the output
        steps = steps[1:]
    return ".".join(steps), str(kind).rsplit(".", 1)[-1]


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
