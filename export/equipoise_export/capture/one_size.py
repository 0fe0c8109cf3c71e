"""Ends a trace that holds for the example's sizes only, as soon as that is so.

torch.export decides every `if` on a size by the example and notes the condition. A condition on one size that another
allowed size does not meet is an error to it, which it raises once the whole network is traced: where sizes are cut into
windows, after minutes of algebra. Here the conditions are looked at whenever a module is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor, nn

STEPS = (1, 2)
"""How many steps further the other sizes lie."""


class OneSizeOnly(Exception):
    """The network was traced for one size of an axis only.

    Args:
        axis: of the image `[N, C, *S]`.
        size: another one, for which the trace is wrong.
        condition: which it does not meet.
    """

    def __init__(self, axis: int, size: int, condition: str) -> None:
        super().__init__(f"{condition} holds at the example's size and not at {size}")
        self.axis = axis


@contextmanager
def several_sizes(module: nn.Module, steps: Mapping[int, int]) -> Iterator[None]:
    """While a module is traced by `torch.export` without `strict`, raises OneSizeOnly from within its calls.

    Args:
        steps: axis of the image whose size is dynamic → in which steps.
    """
    watch = _Watch(steps)
    # By where a hook hangs: torch calls stand-ins of the modules where one of them is used twice.
    hooks = [module.register_forward_pre_hook(watch.begin)]
    hooks += [part.register_forward_pre_hook(watch.check) for part in module.modules() if part is not module]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    def __init__(self, steps: Mapping[int, int]) -> None:
        self.steps = steps
        self.noted: list[Any] = []
        self.read = 0
        self.others: dict[sympy.Symbol, tuple[int, list[tuple[int, sympy.Integer]]]] = {}

    def begin(self, network: nn.Module, given: tuple[Any, ...]) -> None:
        """Before the network's own forward, of the image."""
        if not given:
            return
        image: Tensor = given[0]
        self.noted, self.read, self.others = [], 0, {}
        for axis, step in self.steps.items():
            size = image.shape[axis]
            if not isinstance(size, torch.SymInt) or len(size.node.expr.free_symbols) != 1:
                continue
            self.noted = getattr(size.node.shape_env, "guards", [])  # torch's own affair: without, no trace ends early
            (symbol,) = size.node.expr.free_symbols
            factor = size.node.expr / symbol  # `multiple · s` in place of s
            sizes = [size.node.hint + step * further for further in STEPS]
            if factor.is_Integer and not any(other % factor for other in sizes):
                self.others[symbol] = axis, [(other, other // factor) for other in sizes]

    def check(self, part: nn.Module, given: tuple[Any, ...]) -> None:
        """Before the forward of a module in it: what was noted since."""
        new = self.noted[self.read :]
        self.read += len(new)
        for condition in new:
            self._hold(condition.expr)

    def _hold(self, condition: Any) -> None:
        """Of a single size only: what torch makes of conditions on several is its own affair."""
        symbols = condition.free_symbols
        if len(symbols) != 1 or not symbols <= self.others.keys():
            return
        (symbol,) = symbols
        axis, others = self.others[symbol]
        for size, value in others:
            if condition.xreplace({symbol: value}) == sympy.false:
                raise OneSizeOnly(axis, size, str(condition))
