"""Cases from disk, through the client's readers; found by name as verbs are: neither package imports the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from equipoise_core.contract import Contract

from ..progress import phase
from .cases import Labelled
from .errors import CalibrationError


@phase("reading the cases")
def labelled_cases(
    data: Path,
    contract: Contract,
    spacing: tuple[float, ...] | None,
    labels: bool = True,
    values: str | Mapping[str, Sequence[str | int]] | None = None,
) -> list[Labelled]:
    """As the client prepares images for this model.

    Args:
        labels: False: images alone will do, the truth is blank.
        values: which labels make each class, as `wt=1,2,3; et=3` or by class; None: they are indices or names.
    """
    images = import_module("equipoise_client.images.labelled")
    table = None
    if values:
        table = images.LabelTable.parse(values) if isinstance(values, str) else images.LabelTable.of(values)
    return [Labelled(**vars(each)) for each in images.read_labelled(data, contract, spacing, labels, table)]


def numbers(text: str) -> tuple[float, ...]:
    """`1,1,1.2` → (1, 1, 1.2)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CalibrationError(f"{text!r}: expected numbers separated by commas, such as 1,1,1.2") from error
