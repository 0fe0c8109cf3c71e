"""Noise that a network draws by hand: what of it is constant, where it switches, and which side of the switch drops.

`bernoulli(q)` is one of two values from the start. `rand` becomes so where it is compared with a constant, floored or
rounded: `u < c`, `floor(c + u)`. From there its two values are followed through the graph to where they meet the
activations; the one that takes the activation away is the one that drops. So the contract's p is the probability of
dropping, whether the network writes `rand < keep`, `rand > p` or, as DropBlock does, draws what is to go.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from .fx import VIEWS, Fx, pointwise, schema_name

_FILLED = {"ones": 1.0, "ones_like": 1.0, "new_ones": 1.0, "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0}
_FILLING = {"full": 1, "full_like": 1, "new_full": 2, "fill": 1, "fill_": 1}  # the position of the number
_SAME_VALUES = {
    "expand", "expand_as", "lift_fresh_copy", "detach", "detach_", "view", "reshape", "transpose", "permute", "flatten",
    "unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "contiguous", "clone", "alias", "slice", "select", "view_as",
    "constant_pad_nd", "pad", "max_pool1d", "max_pool2d", "max_pool3d", "conv1d", "conv2d", "conv3d", "convolution",
    "repeat", "upsample_nearest2d", "upsample_nearest3d", "movedim",
}  # fmt: skip
"""What moves two values about, or spreads the larger one: afterwards there are still two, in the same order."""
_CASTS = {"to", "_to_copy", "type_as"}


class Constants:
    """The one number that a tensor is filled with, where the graph and the network's own weights say so."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        weights = {**program.state_dict, **program.constants}
        named = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._weights = {place: weights[name] for place, name in named.items() if name in weights}

    def of(self, argument: Any) -> float | None:
        if isinstance(argument, (int, float)):
            return argument
        if not isinstance(argument, Node):
            return None
        if argument.op == "placeholder":
            return self._weight(argument.name)
        name = schema_name(argument)
        if name in _FILLING:
            return self.of(argument.args[_FILLING[name]])
        if name in _FILLED:
            return _FILLED[name]
        if argument.target in VIEWS or name in ("expand", "lift_fresh_copy", "detach_", "detach"):
            return self.of(argument.args[0])
        source = argument.args[0] if argument.args else None
        if (
            argument.target is operator.getitem
            and isinstance(source, Node)
            and schema_name(source) == "broadcast_tensors"
        ):
            return self.of(source.args[0][argument.args[1]])  # type: ignore[index]
        if pointwise(argument):
            arguments = [self.of(entry) if isinstance(entry, Node) else entry for entry in argument.args]
            if not any(entry is None for entry in arguments):
                value = _evaluate(argument, [_wide(entry) for entry in arguments])
                return None if value is None else float(value)
        return None

    def _weight(self, place: str) -> float | None:
        tensor = self._weights.get(place)
        if not isinstance(tensor, Tensor) or tensor.numel() != 1 or not tensor.is_floating_point():
            return None
        return float(str(np.float32(tensor.item())))  # 0.2, not 0.20000000298023224


def _wide(entry: Any) -> Any:
    return torch.tensor(entry, dtype=torch.float64) if isinstance(entry, float) else entry


def _evaluate(node: Fx, arguments: list[Any]) -> Tensor | None:
    """A pointwise operator on numbers; None where it wants something else."""
    try:
        return node.target(*arguments, **node.kwargs)  # type: ignore[no-any-return]
    except (RuntimeError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Switch:
    """Where uniform noise becomes one of two values.

    Attributes:
        node: what has the two values.
        threshold: of the noise's own range, as a share from 0 to 1.
        below, above: the values on either side.
    """

    node: Fx
    threshold: float
    below: float
    above: float


def switches(noise: Fx, low: float, high: float, constants: Constants) -> Iterator[Switch | None]:
    """Every place where noise from `low` to `high` becomes two-valued; None for any other use of it."""
    pending = [(noise, low, high - low)]  # (node, k, s): the node's value is k + s·u with u from 0 to 1
    seen: set[Fx] = set()
    while pending:
        node, offset, gain = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            name = schema_name(user)
            if name.startswith("sym_size") or name == "detach":
                continue
            affine = _affine(user, node, offset, gain, constants)
            if affine is not None:
                pending.append((user, *affine))
            else:
                yield _switch(user, node, offset, gain, constants)


def _affine(user: Fx, node: Fx, offset: float, gain: float, constants: Constants) -> tuple[float, float] | None:
    """k and s of `user`, where it is an affine function of the noise too."""
    if user.target in VIEWS:
        return (offset, gain) if user.meta["val"].is_floating_point() else None
    name = schema_name(user).rstrip("_")
    known = [constants.of(entry) for entry in user.args if entry is not node]
    if name not in ("add", "sub", "rsub", "mul", "div") or len(known) != 1 or known[0] is None or user.kwargs:
        return None
    number = known[0]
    first = user.args[0] is node
    if name == "add":
        return offset + number, gain
    if name == "mul":
        return (offset * number, gain * number) if number else None
    if name == "div":
        return (offset / number, gain / number) if first and number else None
    if (name == "sub") == first:
        return offset - number, gain
    return number - offset, -gain


_COMPARED: dict[str, Callable[[float, float], bool]] = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "less": operator.lt,
    "less_equal": operator.le, "greater": operator.gt, "greater_equal": operator.ge,
}  # fmt: skip
_STEPS: dict[str, tuple[Callable[[float], float], float]] = {  # function, and where between integers it steps
    "floor": (math.floor, 0.0),
    "ceil": (math.ceil, 0.0),
    "round": (round, 0.5),
    "trunc": (math.trunc, 0.0),
}


def _switch(user: Fx, node: Fx, offset: float, gain: float, constants: Constants) -> Switch | None:
    name = schema_name(user).rstrip("_")
    if name in _CASTS and user.meta["val"].dtype != torch.bool:
        name = "trunc"  # to whole numbers
    if name in _COMPARED and len(user.args) == 2:
        first = user.args[0] is node
        number = constants.of(user.args[1] if first else user.args[0])
        if number is None:
            return None
        compare = _COMPARED[name]
        steps, function = [number], (lambda v: compare(v, number) if first else compare(number, v))
    elif name in _STEPS:
        function, between = _STEPS[name]  # type: ignore[assignment]
        lowest, highest = sorted((offset, offset + gain))
        steps = [m + between for m in range(math.floor(lowest) - 1, math.ceil(highest) + 1)]
    else:
        return None
    inside = [t for t in ((step - offset) / gain for step in steps) if 1e-9 < t < 1.0 - 1e-9]
    if len(inside) != 1:
        return None
    (threshold,) = inside
    below, above = offset + gain * threshold / 2, offset + gain * (1 + threshold) / 2
    return Switch(user, threshold, float(function(below)), float(function(above)))


def drops_above(node: Fx, below: float, above: float, constants: Constants) -> bool | None:
    """Whether `above` is the value that takes activations away; None where the graph does not show it."""
    votes: set[bool] = set()
    pending = [(node, torch.tensor([below, above], dtype=torch.float64))]
    seen: set[Fx] = set()
    while pending:
        source, values = pending.pop()
        if source in seen:
            continue
        seen.add(source)
        for user in source.users:
            vote = _vote(user, source, values, constants)
            if vote is not None:
                votes.add(vote)
            following = _followed(user, source, values, constants)
            if following is not None:
                pending.append((user, following))
    return votes.pop() if len(votes) == 1 else None


def _vote(user: Fx, source: Fx, values: Tensor, constants: Constants) -> bool | None:
    """What one use of the noise shows: True where the second value drops, None where it shows nothing."""
    name, second = schema_name(user).rstrip("_"), user.args[1] if len(user.args) > 1 else None
    if name == "mul":
        other = user.args[0] if second is source else second
        small, large = values.abs().tolist()
        return None if constants.of(other) is not None or small == large else large < small
    truth = values.bool().tolist()
    if truth[0] == truth[1]:
        return None
    if name == "where" and user.args[0] is source and len(user.args) == 3:
        chosen, otherwise = (constants.of(entry) is not None for entry in user.args[1:])
        return None if chosen == otherwise else truth[1] == chosen
    if (name == "masked_fill" and second is source) or (name == "index_put" and source in (second or ())):
        return truth[1]
    return None


def _followed(user: Fx, source: Fx, values: Tensor, constants: Constants) -> Tensor | None:
    """The two values that `user` has, where it has two."""
    name = schema_name(user)
    if name in _CASTS:
        fake = user.meta.get("val")
        return values if fake is None or fake.dtype != torch.bool else values.bool().to(values.dtype)
    if name in _SAME_VALUES and user.args[0] is source:
        return values
    if not pointwise(user):
        return None
    arguments: list[Any] = []
    for entry in user.args:
        number = constants.of(entry) if isinstance(entry, Node) and entry is not source else entry
        if number is None and isinstance(entry, Node):
            return None
        arguments.append(values.clone() if entry is source else number)
    if name.rstrip("_") in ("logical_not", "bitwise_not"):
        return 1.0 - values.bool().to(values.dtype)
    result = _evaluate(user, arguments)
    return result.to(values.dtype) if result is not None and result.shape == values.shape else None
