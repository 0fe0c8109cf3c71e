"""Loads what the user names: a factory (`package.module:callable`, `file.py:callable`) and weights."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError

_NESTED = ("state_dict", "model_state_dict", "network_weights", "model_state", "model", "net", "network", "ema")
"""Under which keys training frameworks keep the weights in a checkpoint."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "_model.")
"""What wrappers (DataParallel, torch.compile, Lightning) put before every name."""


def load_module(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The module that a factory returns.

    Args:
        spec: `package.module:callable` or `path/to/file.py:callable`.
        arguments: keyword arguments for the callable.
    """
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise SpecError(f"got {spec!r}; expected package.module:callable or file.py:callable")
    try:
        source = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    factory: Any = source
    for part in name.split("."):
        if not hasattr(factory, part):
            raise SpecError(
                f"{place} has no {name}; it has {', '.join(sorted(n for n in vars(source) if n[0] != '_'))}"
            )
        factory = getattr(factory, part)
    try:
        module = factory(**(arguments or {})) if not isinstance(factory, nn.Module) else factory
    except Exception as error:
        raise SpecError(
            f"{spec} failed: {type(error).__name__}: {error}. Arguments are given as --arg key=value"
        ) from error
    if not isinstance(module, nn.Module):
        raise SpecError(f"{spec} returned a {type(module).__name__}; expected a torch.nn.Module")
    return module


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    loaded = importlib.util.spec_from_file_location(path.stem, path)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    sys.modules[path.stem] = module  # dataclasses and pickles of the file look here
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        loaded.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _from_package(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules of the current directory count
    return importlib.import_module(name)


def load_weights(module: nn.Module, path: Path) -> None:
    """Puts weights (safetensors, or a state dict or checkpoint of torch.save) into the module; all must fit."""
    weights = _read(path)
    own = module.state_dict()
    for candidate in _renamed(weights, own):
        if set(candidate) == set(own):
            break
    else:
        candidate = weights
    missing = sorted(set(own) - set(candidate))
    extra = sorted(set(candidate) - set(own))
    wrong = [
        f"{name} {tuple(candidate[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in candidate and candidate[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        told = [
            f"{label}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
            for label, names in (("missing", missing), ("not in the network", extra), ("of another shape", wrong))
            if names
        ]
        raise SpecError(f"{path} does not fit the network ({'; '.join(told)}). Use the arguments it was trained with")
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


def _renamed(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """The weights as they are, and without a wrapper's prefix."""
    candidates = [weights]
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            candidates.append({name.removeprefix(prefix): value for name, value in weights.items()})
    return candidates
