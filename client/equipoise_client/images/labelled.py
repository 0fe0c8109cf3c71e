"""Labelled cases from disk, through the same readers and the same turning and resampling as `equipoise predict`.

Calibrating on images that were prepared differently from those that are served would be worthless.

Four layouts:

- a folder with `images/` and `labels/` (or `masks/`; or `imagesTr/` and `labelsTr/`): files of the same name in both,
  or `labels/CLASS/` with one mask per class (segmentation);
- a folder of folders named by class, each with images of it (classification);
- a folder of images with a `cases.csv` that has a column for each target (regression);
- one `.npz` with `images` `[n, *S]` or `[n, C, *S]` and `labels` (or `masks`) `[n]`, `[n, K]`, `[n, *S]` or
  `[n, K, *S]`, of a regression an entry of each target's name `[n]` or `labels` `[n, K]`; optionally `ids`, `patients`,
  `groups` `[n]` and `spacing` `[rank]`.

Where labels are not asked for, a folder of images or an `.npz` with `images` alone will do as well.

Beside the folders a `cases.csv` with the column `file` (a path from there, or a name), and any of `patient`, `group`,
`label` may say more; a `label` column, or a column of 0 and 1 for each class, replaces folders named by class. Without
it every file is a patient of its own. A `dataset.json` (nnU-Net, Medical Decathlon) may say which label values make
each class. What labels may hold: `label_values`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.targets import Target
from numpy.typing import NDArray

from ..errors import InvalidInput
from .grid import pick_nearest
from .label_values import LabelTable, plain, truth_of_label, truth_of_labels, truth_of_map, truth_of_masks
from .prepare import Prepared, fit, turn, with_spacing
from .raster import TRANSPARENT
from .read import read_image

PSEUDO_LABEL = ".pseudo-label"
"""In the name of every label that a model wrote (`equipoise rank`). Here it is refused: judged by its own answers, a
model is never wrong."""

_GROUP = "group"
"""The column that groups cases where none is named; in an archive the entry `groups`."""

_TOLD = ("ids", "patients", "groups", "spacing")  # entries of an archive beside images and labels
_LABEL_ENDS = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".npz", ".dcm")


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image, prepared for a model, with its truth.

    Attributes:
        name: where it came from, below the folder that was named.
        patient: cases of one patient never stand on both sides of a split.
        image: float32 `[C, *S]` in the source's intensities.
        truth: softmax: class indices, `[*S]` of a segmentation, `[]` of a classification; sigmoid: 0/1 per class,
            `[K, *S]` or `[K]`; regression: float64 `[K]`.
        spacing: mm per axis, or None.
        group: scanner or site, or "".
        orientation: anatomical letters of the axes, where the file says how it lies.
        order: when it came, as the column that was named says; or "".
    """

    name: str
    patient: str
    image: NDArray[np.float32]
    truth: NDArray[Any]
    spacing: tuple[float, ...] | None
    group: str
    orientation: str | None = None
    order: str = ""


@dataclass(frozen=True)
class Row:
    """What a folder or `cases.csv` says of one file.

    Attributes:
        label: a class's name or index, 0/1 per class, the label's file, one file per class, a number per target, or not
            looked for.
    """

    file: Path
    label: str | Path | tuple[Path, ...] | tuple[float, ...] | None
    patient: str
    group: str
    order: str = ""


def read_labelled(
    data: Path,
    contract: Contract,
    spacing: tuple[float, ...] | None = None,
    labels: bool = True,
    table: LabelTable | None = None,
    group_by: str = _GROUP,
    order_by: str = "",
) -> list[LabelledImage]:
    """All labelled cases. Raises InvalidInput that says what was found and which layouts there are.

    Args:
        spacing: mm per axis for files that state none.
        labels: False: they are not looked for, and every truth is blank (zeros).
        table: which labels make each class; by default `dataset.json` beside the folders says it, or labels are indices
            or names.
        group_by: the column of `cases.csv` (the entry of an archive) that names each case's group.
        order_by: the one that says when each case came.
    """
    beside = (data if data.is_dir() else data.parent) / "dataset.json"
    if table is not None and contract.targets:
        raise InvalidInput(
            f"--label-values makes classes; {contract.name} answers numbers ({_names(contract.answers)})"
        )
    if table is None and labels and contract.per_voxel and beside.is_file():
        table = LabelTable.of_dataset(beside)
    table = table.checked(contract) if table is not None else None
    if data.is_file() and data.suffix == ".npz":
        return list(_from_archive(data, contract, spacing, labels, table, group_by, order_by))
    if not data.is_dir():
        raise InvalidInput(f"{data} is neither a folder nor an .npz file; see `equipoise calibrate --help`")
    folder = _Folder.of(data, group_by, order_by)
    if not labels:
        rows = folder.images()
    elif contract.targets:
        rows = list(_numbered(folder, contract))
    elif contract.per_voxel:
        rows = list(_segmentations(folder, contract))
    else:
        rows = list(_classes(folder, contract))
    if not rows:
        expected = {
            Task.SEGMENTATION: "images/ and labels/",
            Task.CLASSIFICATION: f"folders {_names(contract.classes)}",
            Task.REGRESSION: f"images and a cases.csv with the columns file and {_names(contract.answers)}",
        }[contract.task]
        what = f"labelled cases of a {contract.task.value}" if labels else "images"
        endings = "" if labels else f"; expected files ending in {_names(_ENDINGS)}"
        raise InvalidInput(f"{data} holds no {what}{endings or f': expected {expected}'}")
    folder.check_all_used()
    return [_read(row, data, contract, spacing, table) for row in rows]


def _names(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


class _Folder:
    """A folder of images and its `cases.csv`, of which every row must be about an image that is there."""

    def __init__(self, root: Path, table: Mapping[Path, Mapping[str, str]], group_by: str, order_by: str) -> None:
        self.root, self.table, self.group_by, self.order_by = root, table, group_by, order_by
        self._used: set[Path] = set()

    @classmethod
    def of(cls, root: Path, group_by: str, order_by: str) -> _Folder:
        path = root / "cases.csv"
        wanted = [column for column in (group_by, order_by) if column not in ("", _GROUP)]
        if not path.is_file():
            if wanted:
                raise InvalidInput(f"{root} has no cases.csv; expected one with the columns file, {_names(wanted)}")
            return cls(root, {}, group_by, order_by)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        if rows and "file" not in rows[0]:
            raise InvalidInput(
                f"{path}: expected a column `file`, and any of patient, group, label; got {list(rows[0])}"
            )
        for column in wanted:
            if rows and column not in rows[0]:
                raise InvalidInput(f"{path} has no column {column!r}; it has {_names(rows[0])}")
        table: dict[Path, Mapping[str, str]] = {}
        for row in rows:
            found = _found(root, row["file"])
            if found in table:
                raise InvalidInput(f"{path}: {row['file']} has two rows; expected one for each image")
            table[found] = row
        return cls(root, table, group_by, order_by)

    def part(self, *names: str) -> Path:
        """The first of these folders that is there, or the first one's name."""
        return next((self.root / name for name in names if (self.root / name).is_dir()), self.root / names[0])

    def row(self, file: Path, label: str | Path | tuple[Path, ...] | tuple[float, ...] | None) -> Row:
        stated = self.stated(file)
        patient = stated.get("patient") or str(file.relative_to(self.root))
        return Row(
            file, label, patient, (stated.get(self.group_by) or "").strip(), (stated.get(self.order_by) or "").strip()
        )

    def stated(self, file: Path) -> Mapping[str, str]:
        self._used.add(file)
        return self.table.get(file, {})

    def images(self) -> list[Row]:
        """All of them below the folder, or below its `images/`."""
        folder = self.part("images", "imagesTr")
        return [self.row(file, None) for file in _images(folder if folder.is_dir() else self.root, deep=True)]

    def check_all_used(self) -> None:
        unused = sorted(str(file.relative_to(self.root)) for file in self.table.keys() - self._used)
        if unused:
            raise InvalidInput(
                f"{self.root / 'cases.csv'} names {unused[0]} ({len(unused)} such rows), which is no image of these "
                "cases"
            )


def _found(root: Path, stated: str) -> Path:
    """The image that a row names: by its path from the folder or from its images/, or by a name that only one has."""
    for place in (root, root / "images", root / "imagesTr"):
        if (place / stated).is_file():
            return place / stated
    wanted = {stated, Path(stated).name}
    same = [file for file in _images(root, deep=True) if file.name in wanted or _stem(file) == stated]
    same = [file for file in same if not {"labels", "masks", "labelsTr"} & set(file.relative_to(root).parts)]
    if len(same) != 1:
        found = f"{len(same)} files of that name" if same else "no such file"
        raise InvalidInput(f"{root / 'cases.csv'}: {stated!r}: {found} in {root}; expected a path from there")
    return same[0]


def _images(folder: Path, deep: bool = False) -> list[Path]:
    files = folder.rglob("*") if deep else folder.glob("*")
    return sorted(file for file in files if file.name.lower().endswith(_ENDINGS) and not file.name.startswith("."))


def _blank(contract: Contract, image: NDArray[Any]) -> NDArray[Any]:
    """Zeros of the shape that the truth of `image [C, *S]` has; numbers that are not known are NaN."""
    if contract.targets:
        return np.full(len(contract.targets), np.nan)
    several = (len(contract.classes),) if contract.activation is Activation.SIGMOID else ()
    spatial = image.shape[1:] if contract.per_voxel else ()
    return np.zeros((*several, *spatial), np.uint8)


def _segmentations(folder: _Folder, contract: Contract) -> Iterator[Row]:
    images, labels = folder.part("images", "imagesTr"), folder.part("labels", "masks", "labelsTr")
    regions = [labels / name for name in contract.classes if (labels / name).is_dir()]
    if regions and len(regions) < len(contract.classes):
        raise InvalidInput(
            f"{labels} has folders {_names(each.name for each in regions)}; expected one for each of "
            f"{_names(contract.classes)}"
        )
    for file in _images(images):
        stated = folder.stated(file).get("label")
        if stated:
            found: Path | tuple[Path, ...] = _stated_label(folder.root, labels, stated)
        elif regions:
            found = tuple(_label_of(file, region, folder.root) for region in regions)
        else:
            found = _label_of(file, labels, folder.root)
        for each in found if isinstance(found, tuple) else (found,):
            if PSEUDO_LABEL in each.name:
                raise InvalidInput(
                    f"{each.relative_to(folder.root)} is a model's own answer, no truth: give an expert's label instead"
                )
        yield folder.row(file, found)


def _stated_label(root: Path, labels: Path, stated: str) -> Path:
    for place in (labels, root):
        if (place / stated).is_file():
            return place / stated
    raise InvalidInput(f"cases.csv: label {stated!r}: no such file in {labels} or {root}")


def _label_of(image: Path, labels: Path, root: Path) -> Path:
    """The label of the same name; of another kind of file, with `_mask` and the like, or without nnU-Net's `_0000`."""
    if (labels / image.name).is_file():
        return labels / image.name
    stem = _stem(image)
    stems = {stem, stem.removesuffix("_0000"), *(f"{stem}{end}" for end in (*_LABEL_ENDS, PSEUDO_LABEL))}
    same = [file for file in _images(labels) if _stem(file) in stems]
    if len(same) != 1:
        found = f"{len(same)} files fit" if same else "has no label"
        expected = (labels / image.name).relative_to(root)
        raise InvalidInput(f"{image.relative_to(root)} {found}: expected {expected}")
    return same[0]


def _classes(folder: _Folder, contract: Contract) -> Iterator[Row]:
    columns = next(iter(folder.table.values()), {}).keys()
    named = {plain(column): column for column in columns}
    several = [named.get(plain(name)) for name in contract.classes]
    if "label" in columns or all(several):
        for file, row in folder.table.items():
            cells = [row["label"]] if "label" in columns else [row[column] for column in several if column]
            if not all((cell or "").strip() for cell in cells):
                name = file.relative_to(folder.root)
                raise InvalidInput(
                    f"cases.csv: {name} has no label; state one for each image (normal: none of the classes)"
                )
            yield folder.row(file, ";".join(cells))
        return
    beside = _images(folder.root)
    if beside:
        raise InvalidInput(
            f"{folder.root} holds {len(beside)} images that are in no class's folder, such as {beside[0].name}: "
            f"expected folders {_names(contract.classes)}, or a cases.csv with the columns file and label"
        )
    for place in sorted(each for each in folder.root.iterdir() if each.is_dir()):
        for file in _images(place, deep=True):
            yield folder.row(file, place.name)


def _numbered(folder: _Folder, contract: Contract) -> Iterator[Row]:
    """One image a row of `cases.csv`, each with a number for each target; images without a row are an error."""
    columns = {plain(column): column for column in next(iter(folder.table.values()), {}) if column}
    if len(contract.targets) == 1 and "label" in columns:
        columns.setdefault(plain(contract.answers[0]), columns["label"])
    missing = [name for name in contract.answers if plain(name) not in columns]
    if missing:
        found = f"it has {_names(columns.values())}" if columns else "there is none"
        raise InvalidInput(
            f"{folder.root / 'cases.csv'}: expected the columns file and {_names(contract.answers)}, one number for "
            f"each image; {found}"
        )
    unstated = [file for file in _images(folder.root, deep=True) if file not in folder.table]
    if unstated:
        raise InvalidInput(
            f"{unstated[0].relative_to(folder.root)} has no row in cases.csv ({len(unstated)} such images): state "
            f"{_names(contract.answers)} of each, or take it out of the folder"
        )
    for file, row in folder.table.items():
        cells = [row[columns[plain(name)]] for name in contract.answers]
        name = str(file.relative_to(folder.root))
        yield folder.row(
            file,
            tuple(
                _number(cell, f"cases.csv: {name}", target)
                for cell, target in zip(cells, contract.targets, strict=True)
            ),
        )


def _number(cell: str | None, where: str, target: Target) -> float:
    try:
        value = float((cell or "").strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(
            f"{where}: {target.name} is {(cell or '').strip() or 'empty'}; expected a number in {target.unit}"
        )
    return value


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rsplit(".", 1)[0]


def _read(
    row: Row, data: Path, contract: Contract, spacing: tuple[float, ...] | None, table: LabelTable | None
) -> LabelledImage:
    name = str(row.file.relative_to(data))
    prepared = fit(with_spacing(read_image(row.file), spacing), contract)
    try:
        truth = _truth_of(row, prepared, contract, table)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error
    known = contract.orientation if prepared.source.affine is not None else None
    return LabelledImage(name, row.patient, prepared.pixels, truth, prepared.spacing, row.group, known, row.order)


def _truth_of(row: Row, prepared: Prepared, contract: Contract, table: LabelTable | None) -> NDArray[Any]:
    if row.label is None:
        return _blank(contract, prepared.pixels)
    if contract.targets:
        return np.array(row.label, np.float64)
    if isinstance(row.label, str):
        return truth_of_label(row.label, contract, table)
    if isinstance(row.label, tuple):
        files = [Path(each) for each in row.label if isinstance(each, Path)]
        return truth_of_masks(
            np.concatenate([_grey(_planes(each, prepared, contract), each) for each in files]), contract
        )
    planes = _planes(row.label, prepared, contract)
    if len(planes) == len(contract.classes) > 1 and row.label.suffix.lower() not in _PICTURES:
        return truth_of_masks(planes, contract)
    return truth_of_map(_grey(planes, row.label)[0], contract, table)


def _planes(path: Path, prepared: Prepared, contract: Contract) -> NDArray[Any]:
    """A label's channels `[C, *S]` in the prepared image's grid."""
    label = read_image(path)
    pixels, image = label.pixels, prepared.source
    if TRANSPARENT in label.doubts:
        raise InvalidInput(
            f"{path.name}: a label with transparency: its classes may stand in the alpha channel, or in the colours; "
            "save it in grey, without transparency"
        )
    if label.affine is not None and image.affine is not None and not np.allclose(label.affine, image.affine, atol=0.01):
        raise InvalidInput(
            f"{path.name}: the label lies elsewhere than its image (another affine); resample it to the image"
        )
    spatial = prepared.source.pixels.shape[-contract.rank :]
    if pixels.shape[-contract.rank :] != spatial:
        raise InvalidInput(f"{path.name}: label of size {list(pixels.shape)} for an image of size {list(spatial)}")
    turned = turn(pixels.reshape(-1, *spatial), prepared.order, prepared.flipped)
    return pick_nearest(turned, prepared.grid)


def _grey(planes: NDArray[Any], path: Path) -> NDArray[Any]:
    """`[1, *S]`: a grey picture may repeat its channel."""
    if any((plane != planes[0]).any() for plane in planes[1:]):
        raise InvalidInput(f"{path.name}: the label is a picture in colour; expected one value per voxel: its class")
    return planes[:1]


def _from_archive(
    path: Path,
    contract: Contract,
    spacing: tuple[float, ...] | None,
    labelled: bool,
    table: LabelTable | None,
    group_by: str,
    order_by: str,
) -> Iterator[LabelledImage]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            known = {"images", "labels", "masks", *contract.answers, *_TOLD, group_by, order_by}
            entries = {name: archive[name] for name in known & set(archive.files)}
            names = sorted(archive.files)
    except (ValueError, OSError, BadZipFile) as error:
        raise InvalidInput(f"{path.name} cannot be read: {error}; expected an .npz of plain arrays") from error
    labels = "labels" if "labels" in names else "masks"
    if contract.targets and labelled:
        _join_targets(entries, path, contract)
        labels, names = "labels", [*names, "labels"]
    if not {"images", *([labels] if labelled else [])} <= entries.keys():
        expected = "`images` and `labels` (or `masks`)" if labelled else "`images`"
        raise InvalidInput(f"{path.name} holds {names}; expected {expected}")
    images = entries["images"]
    truths = entries[labels] if labelled else [None] * len(images)
    for wanted in (group_by, order_by):
        if wanted not in ("", _GROUP, *names):
            raise InvalidInput(f"{path.name} has no entry {wanted!r}; it holds {names}")
    columns = ("ids", "patients", "groups" if group_by == _GROUP else group_by, order_by)
    ids, patients, groups, orders = (entries[n].astype(str) if n in entries else None for n in columns)
    stated = tuple(float(mm) for mm in entries["spacing"].reshape(-1)) if "spacing" in entries else spacing
    if len(images) != len(truths):
        raise InvalidInput(f"{path.name} holds {len(images)} images and {len(truths)} {labels}; expected one for each")
    if images.ndim == 1 + contract.rank:
        images = images[:, None]
    for index, (image, truth) in enumerate(zip(images, truths, strict=True)):
        name = str(ids[index]) if ids is not None else f"{index:05d}"
        try:
            label = _blank(contract, image) if truth is None else _truth_of_entry(truth, image, contract, table)
        except InvalidInput as error:
            raise InvalidInput(f"{path.name}, {name}: {error}") from error
        patient = str(patients[index]) if patients is not None else name
        group = str(groups[index]).strip() if groups is not None else ""
        order = str(orders[index]).strip() if orders is not None else ""
        yield LabelledImage(name, patient, image.astype(np.float32), label, stated, group, order=order)


def _join_targets(entries: dict[str, NDArray[Any]], path: Path, contract: Contract) -> None:
    """`labels` `[n, K]`, of the entries that are named by targets."""
    found = [entries[name] for name in contract.answers if name in entries]
    if len(found) == len(contract.answers):
        if any(each.size != found[0].size for each in found):
            shapes = _names(list(each.shape) for each in found)
            raise InvalidInput(f"{path.name}: {_names(contract.answers)} have the shapes {shapes}; expected [n] each")
        entries["labels"] = np.stack([each.reshape(-1) for each in found], axis=1)
    elif "labels" not in entries:
        raise InvalidInput(
            f"{path.name} holds {sorted(entries)}; expected `images` and {_names(contract.answers)}, each [n], or "
            f"`labels` [n, {len(contract.targets)}]"
        )


def _truth_of_entry(
    truth: NDArray[Any], image: NDArray[Any], contract: Contract, table: LabelTable | None
) -> NDArray[Any]:
    """Of one entry of `labels`: segmentations have `[*S]`, `[1, *S]`, `[*S, 1]`, or `[K, *S]`, one mask per class;
    regressions `[K]`."""
    if contract.targets:
        cells = truth.reshape(-1)
        if len(cells) != len(contract.targets):
            raise InvalidInput(f"{len(cells)} numbers; expected one for each of {_names(contract.answers)}")
        pairs = zip(cells, contract.targets, strict=True)
        return np.array([_number(str(cell), "the label", target) for cell, target in pairs], np.float64)
    if not contract.per_voxel:
        return truth_of_labels(truth, contract, table)
    spatial = image.shape[1:]
    if truth.dtype.kind not in "biuf" or truth.shape not in (
        spatial, (1, *spatial), (*spatial, 1), (len(contract.classes), *spatial)
    ):  # fmt: skip
        raise InvalidInput(
            f"the label has shape {list(truth.shape)} of {truth.dtype}; expected {list(spatial)}, one class per voxel "
            f"of the image, or {[len(contract.classes), *spatial]}, 0 and 1 per class"
        )
    if truth.size == int(np.prod(spatial)):
        return truth_of_map(truth.reshape(spatial).astype(np.float64), contract, table)
    return truth_of_masks(truth, contract)
