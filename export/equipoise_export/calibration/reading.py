"""Cases from disk, through the client's readers; found by name as verbs are: neither package imports the other."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from equipoise_core.contract import Contract
from equipoise_core.record import input_digest

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
    group_by: str = "group",
    order_by: str = "",
) -> list[Labelled]:
    """As the client prepares images for this model.

    Args:
        labels: False: images alone will do, the truth is blank.
        values: which labels make each class, as `wt=1,2,3; et=3` or by class; None: they are indices or names.
        group_by: the column of `cases.csv` that names each case's group.
        order_by: the one that says when each case came; "": none does.
    """
    images = import_module("equipoise_client.images.labelled")
    table = None
    if values:
        table = images.LabelTable.parse(values) if isinstance(values, str) else images.LabelTable.of(values)
    return [
        Labelled(**vars(each))
        for each in images.read_labelled(data, contract, spacing, labels, table, group_by, order_by)
    ]


def without(cases: Sequence[Labelled], path: Path | None, others: bool = False) -> list[Labelled]:
    """The cases that a training did not see, by the table that `equipoise train` writes: `case, patient, part, digest`.

    A case counts as seen if its image or its patient was, in another part than `held out`.
    Args:
        others: they may be cases of which the table does not speak.

    Raises CalibrationError where the table cannot be read, speaks of none of these cases, or leaves none.
    """
    if path is None:
        return list(cases)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"patient", "part", "digest"} <= rows[0].keys():
        raise CalibrationError(f"{path}: expected the table that equipoise train writes: case, patient, part, digest")
    digests = [input_digest(case.image) for case in cases]
    if not others and not {row["digest"] for row in rows} & set(digests):
        raise CalibrationError(
            f"{path} speaks of none of these {len(cases)} cases: leave --leave-out away if they are other patients"
        )
    seen = [row for row in rows if row["part"] != "held out"]
    patients, images = ({row[column] for row in seen} for column in ("patient", "digest"))
    left = [
        case
        for case, digest in zip(cases, digests, strict=True)
        if case.patient not in patients and digest not in images
    ]
    if not left:
        raise CalibrationError(f"{path}: all {len(cases)} cases were trained on; give others")
    return left


def labels_apart(cases: Sequence[Labelled], contract: Contract) -> tuple[str, ...]:
    """A warning where no label shows two classes at once although the model's may overlap, as regions in regions do.

    Maps of one value for each voxel cannot: of them each value is read as one class, unless a table says otherwise.
    """
    if not contract.per_voxel or not contract.overlapping:
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
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise CalibrationError(f"{text!r}: expected numbers separated by commas, such as 1,1,1.2")
    return found
