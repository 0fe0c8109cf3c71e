"""Which parts of a network have to be in training mode for its dropout to act, and only those.

`module.train()` switches more than dropout: BatchNorm would normalise by the batch-mates, deep supervision would give
other outputs. So the network runs with everything but normalisation in training mode, and the modules in whose own
code a random number was drawn are noted. Those, and only those, are active afterwards. This finds functional dropout,
which no type check can, since it depends on the `training` flag of the module that calls it. It runs several times with
other random numbers, and what differs from run to run is refused.
"""

from __future__ import annotations

import inspect
import pickle
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Active:
    """Modules that have to be in training mode, by name, and what the user should know."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """One run: the modules that drew random numbers, moved Python's or NumPy's, were called; and what it raised."""

    drew: frozenset[str]
    moved: frozenset[str]
    called: frozenset[str]
    error: Exception | None


_TORCH = ("torch.nn.", "builtins")
_RANDOM_CALL = re.compile(r"\b(\w*drop\w*|bernoulli_?|rand\w*)\(")
RUNS = 3
"""With other random numbers each: what one run skips by chance, another does not."""


def refuse_wrong_rank(part: nn.Module, name: str, given: tuple[Any, ...]) -> None:
    """Refuses channel dropout of features that lack its axes: PyTorch takes N for channels, and drops whole images."""
    without_batch = 2 if isinstance(part, nn.Dropout1d) else 4 if isinstance(part, nn.Dropout3d) else 0
    if without_batch and given and isinstance(given[0], Tensor) and given[0].dim() == without_batch:
        raise CaptureRefused(
            f"{type(part).__name__} gets features of shape {list(given[0].shape)}: PyTorch takes the first axis, the "
            "images, for channels, and drops whole images",
            name,
            "Use nn.Dropout for features [N, F], nn.Dropout2d for [N, C, H, W].",
        )


def active_modules(module: nn.Module, example: Tensor, chosen: bool = False) -> Active:
    """The modules whose training flag makes randomness act, found by running the network.

    Case 1: it runs in training mode: whatever draws then.
    Case 2: it does not: dropout layers by their type, and every module of foreign code in training mode by itself.
    In either case the network then runs as it will be sampled, since it may take another way than in training.

    Args:
        example: image `[N, C, *S]`.
        chosen: the caller names the modules that drop (`--sites`): then what else is random may be left out.

    Raises:
        CaptureRefused: parts are skipped at random, or whether a module drops cannot be seen.
    """
    watched = _Watched(module, example)
    runs = [watched.run(lambda _, part: not isinstance(part, _NormBase), seed) for seed in range(RUNS)]
    found = frozenset[str]().union(*(run.drew for run in runs))
    notes = _random_skips(runs, chosen)
    failed = any(run.error for run in runs)
    if failed:
        more, unseen = watched.one_by_one()
        found |= more
        if unseen and not chosen:
            name, why = next(iter(unseen.items()))
            raise CaptureRefused(
                f"it does not run in training mode ({why}), so whether its own dropout acts cannot be seen",
                name or "forward",
                "Let it run on an image alone in training mode, or put the dropout into an nn.Dropout of its own.",
            )
        notes += [f"{name or 'forward'} does not run in training mode ({why}): it is sampled without dropout of its "
                  "own" for name, why in unseen.items()]  # fmt: skip
    sampled = watched.run(lambda name, _: name in found, RUNS)
    if sampled.moved:
        raise CaptureRefused(
            "it draws from Python's or NumPy's random numbers in evaluation mode as well, which no mask stands for",
            min(sampled.moved) or "forward",
            "Draw with torch, or make it depend on self.training.",
        )
    other_way = sampled.called - frozenset[str]().union(*(run.called for run in runs))
    if other_way and not failed:
        found |= watched.run(lambda name, _: name in found | other_way, RUNS + 1).drew
    return Active(tuple(sorted(found)), tuple(notes))


def _random_skips(runs: Sequence[_Seen], chosen: bool) -> list[str]:
    """Refuses, or notes, that whole parts are skipped by chance in training: that is not sampled."""
    moved = frozenset[str]().union(*(run.moved for run in runs))
    whole = [run for run in runs if run.error is None]
    differ = frozenset[str]().union(*(run.drew ^ whole[0].drew for run in whole)) if whole else frozenset()
    if not moved and not differ:
        return []
    where = ", ".join(sorted(own_path(name) or "forward" for name in (moved or differ))[:4])
    if not chosen:
        raise CaptureRefused(
            "in training, parts are skipped at random by what is no torch operation on tensors (Python's or NumPy's "
            "random numbers, an `if`), which no mask stands for",
            where,
            "Use a stochastic depth that multiplies by a mask (torchvision.ops.StochasticDepth), or leave the skipping "
            "out: choose the modules that drop (--sites).",
        )
    return [f"{where}: parts that are skipped at random in training are never skipped"]


class _Watched:
    """A module that is run with some parts in training mode, and left as it was."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self.module, self.example = module, example
        self.names = {part: name for name, part in module.named_modules()}

    def run(self, in_training: Callable[[str, nn.Module], bool], seed: int) -> _Seen:
        """The forward pass, once; Python's, NumPy's and torch's random numbers start from `seed`."""
        flags = {part: part.training for part in self.names}
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        before = _foreign_state()
        stack: list[str] = []
        called: set[str] = set()
        moved: set[str] = set()
        state: tuple[Any, ...] = ()

        def look() -> None:
            nonlocal state
            now = _seen_state()
            if state and now != state:
                moved.add(stack[-1] if stack else "")
            state = now

        def enter(part: nn.Module, given: Any) -> None:
            look()
            refuse_wrong_rank(part, self.names.get(part, ""), given)
            stack.append(self.names.get(part, ""))
            called.add(stack[-1])

        def leave(part: nn.Module, _: Any, __: Any) -> None:
            look()
            stack.pop()

        hooks = [
            handle
            for part in self.names
            for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave))
        ]
        witness, error = _Witness(stack), None
        try:
            for part, name in self.names.items():
                part.training = in_training(name, part)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # what networks draw from
            with torch.no_grad(), slow_attention(), torch.random.fork_rng(), witness:
                torch.manual_seed(seed)
                self.module(self.example)
        except CaptureRefused:
            raise
        except Exception as raised:  # noqa: BLE001  # whatever a foreign forward raises
            error = raised
        finally:
            for handle in hooks:
                handle.remove()
            for part, flag in flags.items():
                part.training = flag
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            with torch.no_grad():
                for name, buffer in self.module.named_buffers():
                    buffer.copy_(buffers[name])
        return _Seen(frozenset(witness.found), frozenset(moved), frozenset(called), error)

    def one_by_one(self) -> tuple[frozenset[str], dict[str, str]]:
        """What drops where the whole does not run in training mode.

        Returns:
            names; and by name of those that do not run alone either and might drop: why.
        """
        found: set[str] = set()
        unseen: dict[str, str] = {}
        runs = self.run(lambda *_: False, 0).error is None  # what fails in evaluation too is not about training
        for part, name in self.names.items():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                found.add(name)
            elif not type(part).__module__.startswith(_TORCH) or _share_of(part):
                run = self.run(lambda each, _, name=name: each == name, 0)  # type: ignore[misc]
                found |= run.drew
                if runs and run.error is not None and _might_drop(part):
                    unseen[name] = f"{type(run.error).__name__}: {run.error}"
        return frozenset(found), unseen


def _foreign_state() -> tuple[Any, Any]:
    """Of the global generators of Python and of NumPy."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _seen_state() -> tuple[Any, ...]:
    """The same, to be compared."""
    python, numpy = _foreign_state()
    if not isinstance(numpy, tuple):  # another generator than NumPy's first one
        return python, pickle.dumps(numpy)
    kind, words, *rest = numpy
    return python, kind, words.tobytes(), *rest


def _share_of(part: nn.Module) -> bool:
    """Whether a layer of torch's own (attention, a recurrence) has dropout inside."""
    return _is_share(getattr(part, "dropout", None)) and bool(part.dropout)


def _might_drop(part: nn.Module) -> bool:
    """Whether the code of a module's class speaks of dropout or random numbers, as far as it can be read."""
    try:
        texts = [inspect.getsource(kind) for kind in type(part).__mro__ if not kind.__module__.startswith(_TORCH)]
    except (OSError, TypeError):
        return True
    return any(_RANDOM_CALL.search(text) for text in texts)


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


def only_noise(module: nn.Module, active: tuple[str, ...], example: Tensor) -> bool:
    """Whether the active modules do nothing but drop (Dropout, DropPath), and nothing is random in evaluation mode.

    Args:
        example: images `[N, C, *S]`.
    """
    for part in map(module.get_submodule, active):
        inside = (*part.children(), *part.parameters(), *part.buffers())
        if inside or getattr(part, "inplace", False):
            return False
    witness = _Witness()
    with sampling(module, ()), torch.no_grad(), torch.random.fork_rng(), witness:
        module(example[:1])
    return not witness.found


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
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise CaptureRefused(
                "it is a TorchScript module, in which dropout cannot be found",
                name or "the whole network",
                "Give the Python module that it was scripted from, with its weights; or export it to ONNX "
                "(--dropout-at).",
            )
    return module
