"""Where PyTorch draws random numbers, and how a module is made to draw them.

Capture and proof have to speak of the same calls in the same order, so both ask here. What decides is PyTorch's own tag
of the operator, not a list of ours: what it is wrong about would be wrong for the network itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def draws(operator: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether an ATen operator draws random numbers, by PyTorch's own tag, and under these arguments.

    Attention and recurrences carry the tag for a dropout that is off as well.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(operator, "tags", ()):
        return False
    names = [argument.name for argument in operator._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    if given.get("train") is False or given.get("training") is False:
        return False
    optional = next((name for name in ("dropout_p", "dropout") if name in names), None)
    return optional is None or bool(given.get(optional, 0.0))


@contextmanager
def sampling(module: nn.Module, active: tuple[str, ...]) -> Iterator[None]:
    """Evaluation mode with only the named modules in training mode, restored afterwards: Monte Carlo dropout.

    In single precision throughout, and without what a forward pass says of gradients: see `plainly`.
    """
    flags = {part: part.training for part in module.modules()}
    try:
        module.eval()
        for name in active:
            module.get_submodule(name).training = True
        with slow_attention(), plainly():
            yield
    finally:
        for part, flag in flags.items():
            part.training = flag


class _Shared:
    """A change of the whole process, undone when the last of overlapping uses ends, whichever thread that is in.

    Were each use to restore what it found, one that began within another's would leave the change for ever.

    Args:
        change: makes the change and returns what undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self.change, self.lock, self.uses = change, threading.RLock(), 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if not self.uses:
                self.undo = self.change()
            self.uses += 1
        try:
            yield
        finally:
            with self.lock:
                self.uses -= 1
                if not self.uses:
                    self.undo()


def _without_fastpath() -> Callable[[], None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(enabled)


slow_attention = _Shared(_without_fastpath)
"""PyTorch's fused encoder layer skips its dropout in evaluation mode, whatever its dropout modules say."""


@contextmanager
def plainly() -> Iterator[None]:
    """`autocast`, `inference_mode` and switches of gradients in a network's code do nothing.

    torch.export would wrap what is inside into a region of its own, a sampler computes in one precision (`--half` is
    its own), and in inference mode no random number can be replaced.
    """
    recording = torch.is_grad_enabled()
    try:
        with _switches_off():
            yield
    finally:
        torch._C._set_grad_enabled(recording)  # another use may still have `set_grad_enabled` replaced


def _replace_switches() -> Callable[[], None]:
    classes: list[Any] = [torch.autocast, torch.inference_mode, torch.enable_grad, torch.set_grad_enabled]
    before = [(kind, kind.__enter__, kind.__exit__) for kind in classes]
    begin = torch.set_grad_enabled.__init__
    for kind in classes:
        kind.__enter__, kind.__exit__ = _enter, _leave
    torch.set_grad_enabled.__init__ = _only_off  # type: ignore[method-assign, assignment]

    def undo() -> None:
        torch.set_grad_enabled.__init__ = begin  # type: ignore[method-assign]
        for kind, enter, leave in before:
            kind.__enter__, kind.__exit__ = enter, leave

    return undo


_switches_off = _Shared(_replace_switches)


def _enter(context: Any) -> Any:
    return context


def _leave(*_: object) -> None:
    return None


def _only_off(context: Any, mode: bool) -> None:
    """`set_grad_enabled`, which `no_grad` calls too: once off, gradients stay off."""
    context.prev, context.mode = torch.is_grad_enabled(), mode
    if not mode:
        torch._C._set_grad_enabled(False)
