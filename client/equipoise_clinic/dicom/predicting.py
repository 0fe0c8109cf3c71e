"""A folder with a DICOM series, for `equipoise predict`: registered as the entry point `dicom` of `equipoise.series`.

The client's command must not import the clinic; through the entry point it still reads DICOM folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equipoise_client import InvalidInput, UncertaintyClient
from equipoise_client.figure import write_figure

from .rules import Rules
from .study import Analysis, analyse, outputs, select


def rules_for(path: Path, model: str) -> Rules:
    """The file's rules for this model. Raises InvalidInput."""
    found = tuple(rule for rule in Rules.load(path).series if rule.model == model)
    if not found:
        raise InvalidInput(f"{path.name} has no rule for {model}")
    return Rules(found)


def analysed(folder: Path, model: str, client: UncertaintyClient, rules: Rules | None, **options: Any) -> Analysis:
    """The model's answer for the folder's series. Raises EquipoiseError."""
    (chosen,) = select(folder, rules or Rules.for_model(model))
    return analyse(chosen, client, **options)


def write(found: Analysis, folder: Path, place: Path, model: str) -> tuple[Path, ...]:
    """Writes the picture and the objects that a PACS stores beside `place`, and gives their paths. Raises OSError."""
    picture, *files = (
        place.with_name(f"{place.name}.{model}.{end}")
        for end in ("png", *(f"{kind}.dcm" for kind in outputs(found.objects)))
    )
    write_figure(picture, folder.name, found.contract, found.prepared, found.prediction)
    for file, dataset in zip(files, found.objects, strict=True):
        dataset.save_as(file, enforce_file_format=True)
    return (picture, *files)
