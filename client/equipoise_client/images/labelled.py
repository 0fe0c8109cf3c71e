"""Labelled cases from disk, through the same readers and the same turning and resampling as `equipoise predict`.

Calibrating on images that were prepared differently from those that are served would be worthless.

Three layouts:

- a folder with `images/` and `labels/`: files of the same name in both (segmentation);
- a folder of folders named by class, each with images of it (classification);
- one `.npz` with `images` `[n, *S]` or `[n, C, *S]` and `labels` (or `masks`) `[n]` or `[n, *S]`; optionally `ids`,
  `patients`, `groups` `[n]` and `spacing` `[rank]`.

Where labels are not asked for, a folder of images or an `.npz` with `images` alone will do as well.

Beside the folders a `cases.csv` with the columns `file`, and any of `patient`, `group`, `label` may say more; a `label`
column replaces folders named by class. Without it every file is a patient of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from numpy.typing import NDArray

from ..errors import InvalidInput
from .grid import pick_nearest
from .prepare import Prepared, fit, turn, with_spacing
from .read import read_image

PSEUDO_LABEL = ".pseudo-label"
"""In the name of every label that a model wrote (`equipoise rank`). Here it is refused: judged by its own answers, a
model is never wrong."""

_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".npz", ".dcm")


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image, prepared for a model, with its truth.

    Attributes:
        name: where it came from, below the folder that was named.
        patient: cases of one patient never stand on both sides of a split.
        image: float32 `[C, *S]` in the source's intensities.
        truth: segmentation: `[*S]` class indices (softmax), or 0/1 (sigmoid, one class); classification: `[]`, the
            class, or `[K]` 0/1 where several may hold.
        spacing: mm per axis, or None.
        group: scanner or site, or "".
    """

    name: str
    patient: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    spacing: tuple[float, ...] | None
    group: str


@dataclass(frozen=True)
class Row:
    """What a folder or `cases.csv` says of one file; `label` is a class name, the label's file, or not looked for."""

    file: Path
    label: str | Path | None
    patient: str
    group: str


def read_labelled(
    data: Path, contract: Contract, spacing: tuple[float, ...] | None = None, labels: bool = True
) -> list[LabelledImage]:
    """All labelled cases. Raises InvalidInput that says what was found and which layouts there are.

    Args:
        spacing: mm per axis for files that state none.
        labels: False: they are not looked for, and every truth is blank (zeros).
    """
    if data.is_file() and data.suffix == ".npz":
        return list(_from_archive(data, contract, spacing, labels))
    if not data.is_dir():
        raise InvalidInput(f"{data} is neither a folder nor an .npz file; see `equipoise calibrate --help`")
    if not labels:
        return [_read(row, data, contract, spacing) for row in _images(data)]
    segmented = contract.task is Task.SEGMENTATION
    rows = list(_segmentations(data) if segmented else _classes(data, contract))
    if not rows:
        expected = "images/ and labels/" if segmented else f"folders {', '.join(contract.classes)}"
        raise InvalidInput(f"{data} holds no labelled cases of a {contract.task.value}: expected {expected}")
    return [_read(row, data, contract, spacing) for row in rows]


def _row(file: Path, label: str | Path | None, stated: Mapping[str, str], patient: str) -> Row:
    """Of a line of `cases.csv`, and the patient where it names none."""
    return Row(file, label, stated.get("patient") or patient, stated.get("group") or "")


def _images(data: Path) -> list[Row]:
    """All images below the folder, or below its `images/`."""
    table, folder = _table(data), data / "images"
    files = [file for file in (folder if folder.is_dir() else data).rglob("*") if file.name.lower().endswith(_ENDINGS)]
    if not files:
        raise InvalidInput(f"{data} holds no images; expected files ending in {', '.join(_ENDINGS)}")
    return [_row(file, None, table.get(file.name, {}), str(file.relative_to(data))) for file in sorted(files)]


def _blank(contract: Contract, image: NDArray[Any]) -> NDArray[np.uint8]:
    """Zeros of the shape that the truth of `image [C, *S]` has."""
    several = contract.activation is Activation.SIGMOID
    single = (len(contract.classes),) if several else ()
    return np.zeros(image.shape[1:] if contract.task is Task.SEGMENTATION else single, np.uint8)


def _table(data: Path) -> dict[str, dict[str, str]]:
    """`cases.csv` by file name; empty without one."""
    path = data / "cases.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and "file" not in rows[0]:
        raise InvalidInput(f"{path}: expected a column `file`, and any of patient, group, label; got {list(rows[0])}")
    return {row["file"]: row for row in rows}


def _segmentations(data: Path) -> Iterator[Row]:
    table = _table(data)
    for file in sorted(path for path in (data / "images").glob("*") if path.name.lower().endswith(_ENDINGS)):
        stated = table.get(file.name, {})
        label = data / "labels" / (stated.get("label") or file.name)
        if not label.is_file():
            same = list((data / "labels").glob(f"{_stem(file)}.*"))
            if len(same) != 1:
                raise InvalidInput(f"images/{file.name} has no label: expected labels/{file.name}")
            label = same[0]
        if PSEUDO_LABEL in label.name:
            raise InvalidInput(f"labels/{label.name} is a model's own answer, no truth: give an expert's label instead")
        yield _row(file, label, stated, file.name)


def _classes(data: Path, contract: Contract) -> Iterator[Row]:
    table = _table(data)
    if table and all("label" in row for row in table.values()):
        for name, row in table.items():
            yield _row(data / name, row["label"], row, name)
        return
    for label in contract.classes:
        for file in sorted(path for path in (data / label).glob("*") if path.name.lower().endswith(_ENDINGS)):
            name = f"{label}/{file.name}"
            yield _row(file, label, table.get(name, {}), name)


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rsplit(".", 1)[0]


def _read(row: Row, data: Path, contract: Contract, spacing: tuple[float, ...] | None) -> LabelledImage:
    prepared = fit(with_spacing(read_image(row.file), spacing), contract)
    if row.label is None:
        truth = _blank(contract, prepared.pixels)
    else:
        truth = _label_map(row.label, prepared, contract) if isinstance(row.label, Path) else _class(row, contract)
    name = str(row.file.relative_to(data))
    return LabelledImage(name, row.patient, prepared.pixels, truth, prepared.spacing, row.group)


def _label_map(path: Path, prepared: Prepared, contract: Contract) -> NDArray[np.uint8]:
    """`[*S]` in the prepared image's grid."""
    pixels = read_image(path).pixels
    source = prepared.source.pixels
    spatial = source.shape[-contract.rank :]
    if pixels.shape[-contract.rank :] != spatial:
        raise InvalidInput(f"{path.name}: label of size {list(pixels.shape)} for an image of size {list(spatial)}")
    first = pixels.reshape(-1, *spatial)[:1]  # a grey picture may repeat its channel
    turned = turn(first, prepared.order, prepared.flipped)
    return _indices(pick_nearest(turned, prepared.grid)[0], contract)


def _indices(values: NDArray[Any], contract: Contract) -> NDArray[np.uint8]:
    """Class indices; of a single label anything above 0 counts, since pictures store it as 255."""
    if contract.activation is Activation.SIGMOID and len(contract.classes) == 1:
        return (values > 0).astype(np.uint8)
    whole = np.rint(values)  # a scale factor in the file leaves 0.996 of a 1
    if whole.size and (np.abs(values - whole).max() > 0.05 or whole.min() < 0 or whole.max() > 255):
        raise InvalidInput("a label holds what is no index of a class; expected whole numbers from 0")
    return whole.astype(np.uint8)


def _class(row: Row, contract: Contract) -> NDArray[np.uint8]:
    stated = str(row.label)
    several = stated.split(";") if contract.activation is Activation.SIGMOID else [stated]
    unknown = [name for name in several if name and name not in contract.classes]
    if unknown:
        raise InvalidInput(
            f"{row.file.name}: label {unknown[0]!r}; {contract.name} knows {', '.join(contract.classes)}"
        )
    if contract.activation is Activation.SIGMOID:
        return np.array([name in several for name in contract.classes], dtype=np.uint8)
    return np.array(contract.classes.index(stated), dtype=np.uint8)


def _truth(stored: NDArray[Any], contract: Contract) -> NDArray[np.uint8]:
    if contract.task is Task.SEGMENTATION:
        return _indices(stored, contract)
    return (stored.reshape(()) if stored.size == 1 else stored).astype(np.uint8)


def _from_archive(
    path: Path, contract: Contract, spacing: tuple[float, ...] | None, labelled: bool
) -> Iterator[LabelledImage]:
    with np.load(path, allow_pickle=False) as archive:
        names = set(archive.files)
        labels = "labels" if "labels" in names else "masks"
        if not {"images", *([labels] if labelled else [])} <= names:
            expected = "`images` and `labels` (or `masks`)" if labelled else "`images`"
            raise InvalidInput(f"{path.name} holds {sorted(names)}; expected {expected}")
        images = archive["images"]
        truths = archive[labels] if labelled else [None] * len(images)
        ids, patients, groups = (archive[n].astype(str) if n in names else None for n in ("ids", "patients", "groups"))
        stated = tuple(float(mm) for mm in archive["spacing"].reshape(-1)) if "spacing" in names else spacing
    if len(images) != len(truths):
        raise InvalidInput(f"{path.name} holds {len(images)} images and {len(truths)} {labels}; expected one for each")
    if images.ndim == 1 + contract.rank:
        images = images[:, None]
    for index, (image, truth) in enumerate(zip(images, truths, strict=True)):
        name = str(ids[index]) if ids is not None else f"{index:05d}"
        label = _blank(contract, image) if truth is None else _truth(truth, contract)
        patient = str(patients[index]) if patients is not None else name
        group = str(groups[index]) if groups is not None else ""
        yield LabelledImage(name, patient, image.astype(np.float32), label, stated, group)
