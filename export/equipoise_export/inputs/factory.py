"""Factories that the user names: `package.module:callable`, `file.py:callable`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import SpecError


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
    with importable(path.parent):
        loaded.loader.exec_module(module)
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in this folder (a file's neighbours, a bundle's `scripts.…`) count while the context lasts."""
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _from_package(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: modules of the current directory count
    return importlib.import_module(name)
