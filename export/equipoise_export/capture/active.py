"""Which parts of a network have to be in training mode for its dropout to act, and only those.

`module.train()` switches more than dropout: BatchNorm would normalise by the batch-mates, deep supervision would give
other outputs. So the network runs with everything but normalisation in training mode, and the modules in whose own
code a random number was drawn are noted. Those, and only those, are active afterwards. This finds functional dropout,
which no type check can, since it depends on the `training` flag of the module that calls it. It runs several times with
other random numbers, and once more with the first ones: what is skipped by chance, or not the same again, is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import CaptureRefused
from ..graph.marker import own_path
from ..graph.randomness import sampling
from .watched import Seen, Watched, Witness, is_share


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


RUNS = 3
"""With other random numbers each: what one run skips by chance, another does not."""


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
    watched = Watched(module, example)
    *runs, again = [watched.run(lambda _, part: not isinstance(part, _NormBase), seed) for seed in (*range(RUNS), 0)]
    found = frozenset[str]().union(*(run.drew for run in runs))
    failed = any(run.error for run in runs)
    alone, unseen = watched.one_by_one() if failed else ([], {})
    if failed:
        found = found.union(*(run.drew for run in alone), watched.layers())
    sampled = watched.run(lambda name, _: name in found, RUNS)
    other_way = sampled.called - frozenset[str]().union(*(run.called for run in runs))
    if other_way and not failed:
        alone = [watched.run(lambda name, _: name in found | other_way, RUNS + 1)]
    notes = _random_skips([*runs, again], alone, chosen)
    if unseen and not chosen:
        name, why = next(iter(unseen.items()))
        raise CaptureRefused(
            f"it does not run in training mode ({why}), so whether its own dropout acts cannot be seen",
            name or "forward",
            "Let it run on an image alone in training mode, or put the dropout into an nn.Dropout of its own.",
        )
    notes += [f"{name or 'forward'} does not run in training mode ({why}): it is sampled without dropout of its own"
              for name, why in unseen.items()]  # fmt: skip
    if sampled.moved:
        raise CaptureRefused(
            "it draws from Python's or NumPy's random numbers in evaluation mode as well, which no mask stands for",
            min(sampled.moved) or "forward",
            "Draw with torch, or make it depend on self.training.",
        )
    return Active(tuple(sorted(found.union(*(run.drew for run in alone)))), tuple(notes))


def _random_skips(runs: Sequence[Seen], alone: Sequence[Seen], chosen: bool) -> list[str]:
    """Refuses, or notes, that whole parts are skipped by chance in training: that is not sampled.

    Args:
        runs: with other random numbers each, but for the last, which begins with those of the first.
        alone: of parts by themselves.
    """
    where = frozenset[str]().union(*(run.moved for run in (*runs, *alone)))
    whole = [run for run in runs if run.error is None]
    for run in whole:
        where = where or (run.drew ^ whole[0].drew) | (run.called ^ whole[0].called)
    if not where and len(whole) == len(runs):
        where = _first_difference(runs[0].answered, runs[-1].answered)
    if not where:
        return []
    names = ", ".join(sorted(own_path(name) or "forward" for name in where)[:4])
    if not chosen:
        raise CaptureRefused(
            "in training, parts are skipped or changed at random by what is no torch operation on tensors (random "
            "numbers of Python, NumPy or the system, an `if`, a count of calls), which no mask stands for",
            names,
            "Use a stochastic depth that multiplies by a mask (torchvision.ops.StochasticDepth), or leave the skipping "
            "out: choose the modules that drop (--sites).",
        )
    return [f"{names}: parts that are skipped or changed at random in training are not when it is sampled"]


def _first_difference(one: Sequence[tuple[str, float]], other: Sequence[tuple[str, float]]) -> frozenset[str]:
    """The innermost module that answered otherwise with the same random numbers of torch, Python and NumPy."""
    for (name, size), (_, again) in zip(one, other, strict=True):  # the same modules were called
        if not np.isclose(size, again, rtol=1e-5, atol=0.0, equal_nan=True):
            return frozenset({name})
    return frozenset()


def follows_size(module: nn.Module, active: tuple[str, ...], example: Tensor, other: tuple[int, ...]) -> bool:
    """Whether a probability of dropping depends on the size of the image.

    torch.export would silently take the one of the example for all sizes.

    Args:
        example: image `[N, C, *S]`.
        other: other spatial sizes.
    """
    seen = []
    for image in (example[:1], example.new_zeros((1, example.shape[1], *other))):
        witness = Witness()
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
    witness = Witness()
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
        places = [(part, key, p) for key in _PROBABILITIES if is_share(getattr(part, key, None))]
        places = places or [(part, key, 1.0 - p) for key in _KEEPING if is_share(getattr(part, key, None))]
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
