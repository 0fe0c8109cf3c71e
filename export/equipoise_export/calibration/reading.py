"""Cases from disk, through the client's readers; found by name as verbs are: neither package imports the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from equipoise_core.contract import Contract, Task

from .cases import Labelled
from .errors import CalibrationError


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


def labels_apart(cases: Sequence[Labelled], contract: Contract) -> tuple[str, ...]:
    """A warning where no label shows two classes at once although the model's may overlap, as regions in regions do.

    Maps of one value for each voxel cannot: of them each value is read as one class, unless a table says otherwise.
    """
    if contract.task is not Task.SEGMENTATION or not contract.overlapping:
        return ()
    shown = np.array([case.truth.reshape(len(contract.classes), -1).any(axis=1) for case in cases])
    if shown.any(axis=0).sum() < 2 or any((case.truth.sum(axis=0) > 1).any() for case in cases):
        return ()
    last = len(contract.classes)
    nested = "; ".join(f"{name}={','.join(map(str, range(i, last + 1)))}" for i, name in enumerate(contract.classes, 1))
    return (
        f"in none of the {len(cases)} cases do {', '.join(contract.classes)} overlap, although those of "
        f"{contract.name} may: of a map of labels each value was taken for one class. If one region lies within "
        f'another (BraTS), say which values make each: --label-values "{nested}"',
    )


def numbers(text: str) -> tuple[float, ...]:
    """`1,1,1.2` → (1, 1, 1.2)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CalibrationError(f"{text!r}: expected numbers separated by commas, such as 1,1,1.2") from error
