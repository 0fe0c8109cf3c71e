"""What reading shows of a repository, model by model: what belongs to which, and which of them cannot be served."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from equipoise_core.contract import check_name

from ..errors import RepositoryError
from ..repository import is_public, parse_configuration, samplers_of
from .staging import available_cores, link_pinned, stage_repository


@dataclass(frozen=True)
class Survey:
    """Of a repository's entries.

    Attributes:
        parts: public model → its samplers and its first pass. What cannot be told from a public model is one.
        wrong: those of them that cannot be served, and why.
    """

    parts: Mapping[str, tuple[str, ...]]
    wrong: Mapping[str, str]

    def folders_of(self, models: Iterable[str]) -> set[str]:
        """These models and all that belongs to them."""
        return {folder for model in models for folder in (model, *self.parts[model])}


def survey(models: Mapping[str, Path], configuration: str) -> Survey:
    """Reads every model by itself, so that the damage to one is not that of the others.

    Args:
        models: as `staging.pinned` found them.
        configuration: of the engine that is to serve them.
    """
    listed: dict[str, tuple[str, ...]] = {}
    wrong: dict[str, str] = {}
    others: list[str] = []
    for name, path in sorted(models.items()):
        try:
            if path.exists() and not os.path.lexists(path / "config.pbtxt"):
                continue  # no model
            if is_public(path):
                listed[name] = tuple(samplers_of(path))
                check_name(name)
            else:
                others.append(name)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with one model, the others are served)
            wrong[name] = one_line(error)
    owned = {part for parts in listed.values() for part in parts}
    wrong = {name: why for name, why in wrong.items() if name in listed or name not in owned}
    parts = dict(listed)
    free = [name for name in others if name not in owned]
    for name in wrong:
        if name not in listed:  # nothing says what belongs to it; exported samplers begin with its name
            parts[name] = tuple(each for each in free if each.startswith(f"{name}_"))
    guessed = {part for name in wrong for part in parts[name]}
    for name in [*listed, *(each for each in free if each not in guessed)]:
        if name not in wrong and (why := _trial((name, *parts.get(name, ())), models, configuration)):
            wrong[name] = why
            parts.setdefault(name, ())
    return Survey(parts, wrong)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _trial(folders: tuple[str, ...], models: Mapping[str, Path], configuration: str) -> str:
    """Why a model cannot be staged; empty where it can."""
    with tempfile.TemporaryDirectory(prefix="equipoise-") as scratch:
        linked, staged = Path(scratch) / "linked", Path(scratch) / "staged"
        try:
            for folder in folders:
                if folder not in models:
                    raise RepositoryError(f"{folder} is missing; restore it, or export the model again")
                parse_configuration(models[folder] / "config.pbtxt")
            link_pinned({folder: models[folder] for folder in folders}, linked)
            staged.mkdir()
            stage_repository(linked, staged, configuration, available_cores(), on_trial=True)
        except Exception as error:  # noqa: BLE001 (as above)
            return one_line(error).replace(str(linked), str(models[folders[0]].parent))
    return ""
