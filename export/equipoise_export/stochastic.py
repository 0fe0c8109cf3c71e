"""Which parts of a network have to be in training mode for its dropout to act, and only those.

`module.train()` switches more than dropout: BatchNorm would normalise by the batch-mates, deep supervision would give
other outputs. So the network runs once with everything but normalisation in training mode, and the modules in whose own
code a random number was drawn are noted. Those, and only those, are live afterwards. This finds functional dropout,
which no type check can, since it depends on the `training` flag of the module that calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import CaptureRefused


def draws(operator: Any) -> bool:
    """Whether an ATen operator draws random numbers, by PyTorch's own tag."""
    return torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())


@dataclass
class _Witness(TorchDispatchMode):
    """Notes the innermost module that is running whenever a random number is drawn."""

    stack: list[str]
    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if draws(func):
            self.found.append(self.stack[-1] if self.stack else "")
        return func(*args, **(kwargs or {}))


def refuse_batch_statistics(module: nn.Module) -> None:
    """A normalisation without running statistics uses those of the batch even in evaluation mode."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise CaptureRefused(
                "BatchNorm has no running statistics, so an image's answer would depend on its batch-mates",
                name,
                "Train it with track_running_stats=True, or use InstanceNorm or GroupNorm.",
            )


def live_modules(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the modules whose training flag makes randomness act, found by running the network once.

    Args:
        example: image `[N, C, *S]`.
    """
    names = {part: name for name, part in module.named_modules()}
    flags = {part: part.training for part in names}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    stack: list[str] = []

    def enter(part: nn.Module, _: Any) -> None:
        stack.append(names.get(part, ""))

    def leave(part: nn.Module, _: Any, __: Any) -> None:
        stack.pop()

    hooks = [
        handle
        for part in names
        for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave))
    ]
    witness = _Witness(stack)
    try:
        module.train()
        for part in names:
            if isinstance(part, _NormBase):
                part.eval()
        with torch.no_grad(), _slow_attention(), torch.random.fork_rng(), witness:
            module(example)
        found = set(witness.found)
    except Exception:  # noqa: BLE001  # some networks cannot run in training mode at all; then types have to do
        found = {name for part, name in names.items() if isinstance(part, nn.modules.dropout._DropoutNd)}
    finally:
        for handle in hooks:
            handle.remove()
        for part, flag in flags.items():
            part.training = flag
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return tuple(sorted(found))


@contextmanager
def sampling(module: nn.Module, live: tuple[str, ...]) -> Iterator[None]:
    """Evaluation mode with only the named modules in training mode, restored afterwards: Monte Carlo dropout."""
    flags = {part: part.training for part in module.modules()}
    try:
        module.eval()
        for name in live:
            module.get_submodule(name).training = True
        with _slow_attention():
            yield
    finally:
        for part, flag in flags.items():
            part.training = flag


@contextmanager
def _slow_attention() -> Iterator[None]:
    """PyTorch's fused encoder layer skips its dropout in evaluation mode, whatever its dropout modules say."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


_PROBABILITIES = ("p", "drop_prob", "dropout_p", "dropout", "drop_rate", "attn_drop", "dropout_prob")
"""What modules call their probability of dropping."""


def override_p(module: nn.Module, live: tuple[str, ...], p: float) -> None:
    """Sets the probability of dropping of the live modules, so that network and sampler drop alike.

    Raises:
        CaptureRefused: the module keeps its probability somewhere else.
    """
    if not 0.0 < p < 1.0:
        raise CaptureRefused(f"--p {p}: a probability of dropping lies between 0 and 1", "--p", "Give 0 < p < 1.")
    for name in live:
        part = module.get_submodule(name)
        held = [key for key in _PROBABILITIES if isinstance(getattr(part, key, None), float)]
        if len(held) != 1:
            raise CaptureRefused(
                "its probability of dropping cannot be found, so --p cannot change it",
                name.removeprefix("equipoise_network").removeprefix(".") or "forward",
                f"Build the network with p = {p} (--arg), or leave this module out (--sites).",
            )
        setattr(part, held[0], p)
