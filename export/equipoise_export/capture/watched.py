"""A network that is run with some parts in training mode, and what was seen: who drew, from what, who was called."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import CaptureRefused
from ..graph.randomness import draws, slow_attention
from .generators import Generator, kept, living, states

_TORCH = ("torch.nn.", "builtins")
_RANDOM_CALL = re.compile(r"\b(\w*drop\w*|bernoulli_?|rand\w*)\(")


@dataclass
class Witness(TorchDispatchMode):
    """Notes the innermost module that is running, and the probability, whenever a random number is drawn.

    A torch.Generator of the network's own starts from `seed`, too.
    """

    stack: list[str] = field(default_factory=list)
    seed: int = 0
    own: dict[torch.Generator, Tensor] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    probabilities: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if draws(func, args, kwargs):
            self.found.append(self.stack[-1] if self.stack else "")
            number = args[1] if len(args) > 1 else None
            self.probabilities.append(number if isinstance(number, float) else None)
            for given in (*args, *(kwargs or {}).values()):
                if isinstance(given, torch.Generator) and given not in self.own:
                    self.own[given] = given.get_state()
                    given.manual_seed(self.seed)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Seen:
    """One run.

    Attributes:
        drew: the modules that drew random numbers of torch.
        moved: those that moved a generator of Python or NumPy.
        called: those that were called.
        answered: each call's module, and how large its answer was.
        error: what it raised.
    """

    drew: frozenset[str]
    moved: frozenset[str]
    called: frozenset[str]
    answered: tuple[tuple[str, float], ...]
    error: Exception | None


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


class Watched:
    """A module that is run with some parts in training mode, and left as it was."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self.module, self.example = module, example
        self.names = {part: name for name, part in module.named_modules()}
        self.generators = living()

    def run(self, in_training: Callable[[str, nn.Module], bool], seed: int) -> Seen:
        """The forward pass, once; random numbers start from `seed`, those of other generators from where they are."""
        seen, moved = self._run(in_training, seed, ())
        return self._run(in_training, seed, moved)[0] if moved else seen

    def _run(
        self, in_training: Callable[[str, nn.Module], bool], seed: int, watch: Sequence[Generator]
    ) -> tuple[Seen, list[Generator]]:
        """The run, and which generators it moved; of those in `watch` it says where."""
        flags = {part: part.training for part in self.names}
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        stack: list[str] = []
        called: set[str] = set()
        moved: set[str] = set()
        answered: list[tuple[str, float]] = []
        state: tuple[bytes, ...] = ()

        def look() -> None:
            nonlocal state
            now = states(watch)
            if state and now != state:
                moved.add(stack[-1] if stack else "")
            state = now

        def enter(part: nn.Module, given: Any) -> None:
            look()
            refuse_wrong_rank(part, self.names.get(part, ""), given)
            stack.append(self.names.get(part, ""))
            called.add(stack[-1])

        def leave(part: nn.Module, _: Any, answer: Any) -> None:
            look()
            answered.append((stack.pop(), sum(_size(each) for each in tree_leaves(answer) if isinstance(each, Tensor))))

        hooks = [
            handle
            for part in self.names
            for handle in (part.register_forward_pre_hook(enter), part.register_forward_hook(leave))
        ]
        witness, error = Witness(stack, seed), None
        with kept(self.generators):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # what networks draw from
            before = states(self.generators)
            try:
                for part, name in self.names.items():
                    part.training = in_training(name, part)
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
                for own, seeded in witness.own.items():
                    own.set_state(seeded)
                with torch.no_grad():
                    for name, buffer in self.module.named_buffers():
                        buffer.copy_(buffers[name])
            look()  # where it raised, no module was left
            after = states(self.generators)
        pairs = zip(self.generators, before, after, strict=True)
        seen = Seen(frozenset(witness.found), frozenset(moved), frozenset(called), tuple(answered), error)
        return seen, [each for each, then, now in pairs if then != now]

    def layers(self) -> list[str]:
        """Dropout layers by their type."""
        return [name for part, name in self.names.items() if isinstance(part, nn.modules.dropout._DropoutNd)]

    def one_by_one(self) -> tuple[list[Seen], dict[str, str]]:
        """Parts that may drop, each in training mode by itself, where the whole does not run so.

        Returns:
            runs; and by name of those that do not run alone either and might drop: why.
        """
        found: list[Seen] = []
        unseen: dict[str, str] = {}
        runs = self.run(lambda *_: False, 0).error is None  # what fails in evaluation too is not about training
        for part, name in self.names.items():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                continue
            if not type(part).__module__.startswith(_TORCH) or _share_of(part):
                run = self.run(lambda each, _, name=name: each == name, 0)  # type: ignore[misc]
                found.append(run)
                if runs and run.error is not None and _might_drop(part):
                    unseen[name] = f"{type(run.error).__name__}: {run.error}"
        return found, unseen


def _size(values: Tensor) -> float:
    exact = values.is_floating_point() or values.is_complex()
    return float(torch.linalg.vector_norm(values if exact else values.float()))


def _share_of(part: nn.Module) -> bool:
    """Whether a layer of torch's own (attention, a recurrence) has dropout inside."""
    return is_share(getattr(part, "dropout", None)) and bool(part.dropout)


def _might_drop(part: nn.Module) -> bool:
    """Whether the code of a module's class speaks of dropout or random numbers, as far as it can be read."""
    try:
        texts = [inspect.getsource(kind) for kind in type(part).__mro__ if not kind.__module__.startswith(_TORCH)]
    except (OSError, TypeError):
        return True
    return any(_RANDOM_CALL.search(text) for text in texts)


def is_share(value: Any) -> bool:
    """Whether a value can be a probability of dropping."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
