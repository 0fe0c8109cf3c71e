"""Cases from disk, through the client's readers; found by name as verbs are: neither package imports the other."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from equipoise_core.contract import Contract

from .cases import Labelled
from .errors import CalibrationError


def labelled_cases(
    data: Path, contract: Contract, spacing: tuple[float, ...] | None, labels: bool = True
) -> list[Labelled]:
    """As the client prepares images for this model. `labels` False: images alone will do, the truth is blank."""
    read = import_module("equipoise_client.images.labelled").read_labelled
    return [Labelled(**vars(each)) for each in read(data, contract, spacing, labels)]


def numbers(text: str) -> tuple[float, ...]:
    """`1,1,1.2` → (1, 1, 1.2)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CalibrationError(f"{text!r}: expected numbers separated by commas, such as 1,1,1.2") from error
