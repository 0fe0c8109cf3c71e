"""Weights from disk into a module: safetensors, state dicts and checkpoints of torch.save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError

_NESTED = ("state_dict", "model_state_dict", "network_weights", "model_state", "model", "net", "network", "ema")
"""Under which keys training frameworks keep the weights in a checkpoint."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "_model.")
"""What wrappers (DataParallel, torch.compile, Lightning) put before every name."""


def load_weights(module: nn.Module, path: Path) -> None:
    """Puts weights (safetensors, or a state dict or checkpoint of torch.save) into the module; all must fit."""
    weights = _read(path)
    own = module.state_dict()
    candidate = next((each for each in _renamed(weights) if set(each) == set(own)), weights)
    missing = sorted(set(own) - set(candidate))
    extra = sorted(set(candidate) - set(own))
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
    module.load_state_dict(dict(candidate))


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SpecError(
            f"{path} cannot be read as safetensors or as weights of torch.save: {type(error).__name__}: {error}. "
            "Pickled modules are not loaded (they can run any code): save module.state_dict()"
        ) from error
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not _is_state(content):
        raise SpecError(f"{path} holds no state dict (expected name → tensor, also under {', '.join(_NESTED)})")
    return content


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _renamed(weights: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The weights as they are, and without a wrapper's prefix."""
    yield weights
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            yield {name.removeprefix(prefix): value for name, value in weights.items()}
