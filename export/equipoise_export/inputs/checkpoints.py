"""Weights from disk into a module: safetensors, state dicts and checkpoints of torch.save."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError

_NESTED = ("state_dict", "model_state_dict", "network_weights", "model_state", "model", "net", "network", "ema")
"""Under which keys training frameworks keep the weights in a checkpoint."""
_WRAPPERS = frozenset({"module", "_orig_mod", "model", "network", "net", "_model"})
"""Names that wrappers (DataParallel, torch.compile, Lightning) put before every name, also one within another."""
_BESIDE = re.compile(r"(\w+_)?(criterion|loss|loss_fn|metrics?)\.|(train|val|valid|test)_\w+\.")
"""Names of what training keeps beside the network: the loss's own weights, the state of metrics."""
_COUNTER = "num_batches_tracked"  # of BatchNorm: older files have none, and evaluation uses none


def load_weights(module: nn.Module, path: Path) -> None:
    """Puts weights (safetensors, or a state dict or checkpoint of torch.save) into the module; all must fit.

    Raises:
        SpecError: naming what is missing, left over or of another shape.
    """
    weights = _read(path)
    own = module.state_dict()
    candidate, extra = _matched(weights, own, path)
    missing = sorted(name for name in set(own) - set(candidate) if not name.endswith(_COUNTER))
    wrong = [
        f"{name} {tuple(candidate[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in candidate and candidate[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        found = [
            f"{label}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
            for label, names in (("missing", missing), ("not in the network", extra), ("of another shape", wrong))
            if names
        ]
        raise SpecError(f"{path} does not fit the network ({'; '.join(found)}). Use the arguments it was trained with")
    not_finite = [name for name, value in candidate.items() if value.is_floating_point() and not value.isfinite().all()]
    if not_finite:
        raise SpecError(f"{path} holds NaN or infinity in {', '.join(not_finite[:4])}. Use another checkpoint")
    module.load_state_dict(candidate, strict=False)


def _matched(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights by the network's own names, and what is left over under the prefix that they have in the file.

    What lies beside that prefix is not the network's. Without a prefix only losses and metrics may be left over.
    """
    needed = [name for name in own if not name.endswith(_COUNTER)]
    first = needed[0] if needed else ""
    prefixes = {name.removesuffix(first) for name in weights if f".{name}".endswith(f".{first}")}
    whole = sorted(prefix for prefix in prefixes if all(prefix + name in weights for name in needed))
    usual = [prefix for prefix in whole if set(prefix.split(".")[:-1]) <= _WRAPPERS]
    several = usual or whole
    if len(several) > 1:
        one, *others = several
        same = all(weights[one + n].equal(weights[prefix + n]) for prefix in others for n in needed)
        if not same:
            raise SpecError(
                f"{path} holds the network more than once, under {', '.join(map(repr, several))}; save the state dict "
                "of the one that is meant"
            )
    prefix = several[0] if several else ""
    candidate = {name: weights[prefix + name] for name in own if prefix + name in weights}
    left = (name for name in weights if name.startswith(prefix) and name.removeprefix(prefix) not in own)
    return candidate, sorted(name for name in left if prefix or not _BESIDE.match(name))


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in _foreign(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SpecError(
            f"{path} cannot be read as safetensors or as weights of torch.save: {type(error).__name__}: {error}. "
            "Pickled modules are not loaded (they can run any code): save module.state_dict()"
        ) from error
    if isinstance(content, _Inert):
        raise SpecError(
            f"{path} holds a pickled object, not weights; its code is not run here: save module.state_dict()"
        )
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not _is_state(content):
        there = f"; there is {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else ""
        raise SpecError(f"{path} holds no state dict (expected name → tensor, also under {', '.join(_NESTED)}){there}")
    return content


class _Inert:
    """Stands for any object of foreign code in a checkpoint (hyper-parameters, scores): nothing of it is run."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _foreign(path: Path) -> list[str]:
    """Names of what a checkpoint refers to and PyTorch does not load by itself; none where it cannot be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file of before PyTorch 1.6
        return []


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())
