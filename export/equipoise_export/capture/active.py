"""Which parts of a network have to be in training mode for its dropout to act, and only those.

`module.train()` switches more than dropout: BatchNorm would normalise by the batch-mates, deep supervision would give
other outputs. So the network runs once with everything but normalisation in training mode, and the modules in whose own
code a random number was drawn are noted. Those, and only those, are active afterwards. This finds functional dropout,
which no type check can, since it depends on the `training` flag of the module that calls it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CaptureRefused
from ..graph.marker import own_path
from ..graph.randomness import draws, sampling, slow_attention


@dataclass
class _Witness(TorchDispatchMode):
    """Notes the innermost module that is running, and the probability, whenever a random number is drawn."""

    stack: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    probabilities: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if draws(func, args, kwargs):
            self.found.append(self.stack[-1] if self.stack else "")
            number = args[1] if len(args) > 1 else None
            self.probabilities.append(number if isinstance(number, float) else None)
        return func(*args, **(kwargs or {}))


def refuse_batch_statistics(module: nn.Module) -> None:
    """Refuses a normalisation without running statistics: it uses those of the batch even in evaluation mode."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            raise CaptureRefused(
                "BatchNorm has no running statistics, so an image's answer would depend on its batch-mates",
                name,
                "Train it with track_running_stats=True, or use InstanceNorm or GroupNorm.",
            )


def active_modules(module: nn.Module, example: Tensor) -> tuple[str, ...]:
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
        with torch.no_grad(), slow_attention(), torch.random.fork_rng(), witness:
            module(example)
        found = set(witness.found)
    except Exception:  # noqa: BLE001  # some networks cannot run in training mode at all; then types have to do
        dropouts = {name for part, name in names.items() if isinstance(part, nn.modules.dropout._DropoutNd)}
        found = set(witness.found) | dropouts
    finally:
        for handle in hooks:
            handle.remove()
        for part, flag in flags.items():
            part.training = flag
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return tuple(sorted(found))


def follows_size(module: nn.Module, active: tuple[str, ...], example: Tensor, other: tuple[int, ...]) -> bool:
    """Whether a probability of dropping depends on the size of the image.

    torch.export would silently take the one of the example for all sizes.

    Args:
        example: image `[N, C, *S]`.
        other: other spatial sizes.
    """
    seen = []
    for image in (example[:1], example.new_zeros((1, example.shape[1], *other))):
        witness = _Witness()
        try:
            with sampling(module, active), torch.no_grad(), torch.random.fork_rng(), witness:
                module(image)
        except Exception:  # noqa: BLE001  # it does not work at that size: torch.export gives the better message
            return False
        seen.append(witness.probabilities)
    return seen[0] != seen[1]


def switched_off(module: nn.Module) -> tuple[str, ...]:
    """Names of the dropout layers that are there with p = 0."""
    kind = nn.modules.dropout._DropoutNd
    return tuple(name for name, part in module.named_modules() if isinstance(part, kind) and part.p == 0)


def how_to_make_random(module: nn.Module) -> str:
    """What to do about a network that draws nothing."""
    named = [name for name in inspect.signature(type(module).__init__).parameters if "drop" in name]
    advice = [f"--arg {name}=0.2 (in a bundle --arg network_def.{name}=0.2)" for name in named[:3]]
    remedy = f"Build it with {' or '.join(advice)} and train it so" if advice else "Train it with dropout"
    off = switched_off(module)
    if off:
        remedy += f"; or set p of its {len(off)} dropout layers that have 0 (such as {off[0]}) by --p 0.1"
    return remedy + "; or export it as a single-pass model (--deterministic)."


_PROBABILITIES = (
    "p", "drop_prob", "dropout_p", "dropout", "drop_rate", "attn_drop", "dropout_prob", "rate", "dropout_rate",
    "attention_dropout",
)  # fmt: skip
_KEEPING = ("keep_prob", "keep", "keep_rate", "survival_prob", "survival_rate")
"""What modules call their probability of dropping, or of keeping."""


def override_p(module: nn.Module, active: tuple[str, ...], p: float) -> None:
    """Sets the probability of dropping of the active modules, so that network and sampler drop alike.

    Case 1: the module holds it under one of the usual names.   Case 2: it holds the probability of keeping.
    Case 3: it drops by itself with the p of its one dropout layer, as attention does.

    Raises:
        CaptureRefused: the module keeps its probability somewhere else.
    """
    if not 0.0 < p < 1.0:
        raise CaptureRefused(f"--p {p}: a probability of dropping lies between 0 and 1", "--p", "Give 0 < p < 1.")
    for name in active:
        part = module.get_submodule(name)
        places = [(part, key, p) for key in _PROBABILITIES if _is_share(getattr(part, key, None))]
        places = places or [(part, key, 1.0 - p) for key in _KEEPING if _is_share(getattr(part, key, None))]
        layers = [child for child in part.children() if isinstance(child, nn.modules.dropout._DropoutNd)]
        places = places or [(layer, "p", p) for layer in layers]
        if len(places) != 1:
            raise CaptureRefused(
                "its probability of dropping cannot be found, so --p cannot change it",
                own_path(name) or "forward",
                f"Build the network with p = {p} (--arg), or leave this module out (--sites).",
            )
        ((owner, key, value),) = places
        setattr(owner, key, value)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside what torch.compile and DataParallel put around it."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module) or (
        isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        and isinstance(inner := module.module, nn.Module)
    ):
        module = inner
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureRefused(
            "it is a TorchScript module, in which dropout cannot be found",
            "the whole network",
            "Give the Python module that it was scripted from and its weights, or export it to ONNX (--dropout-at).",
        )
    return module
