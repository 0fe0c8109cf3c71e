"""Labelled cases from disk, through the same readers and the same turning and resampling as `equipoise predict`.

Calibrating on images that were prepared differently from those that are served would be worthless.

Four layouts:

- a folder with `images/` and `labels/` (or `masks/`; or `imagesTr/` and `labelsTr/`): files of the same name in both,
  or `labels/CLASS/` with one mask per class (segmentation; a background need not have one);
- a folder of folders named by class, each with images of it (classification);
- a folder of images with a `cases.csv` that has a column for each target (regression);
- one `.npz` with `images` `[n, *S]` or `[n, C, *S]` and `labels` (or `masks`) `[n]`, `[n, K]`, `[n, *S]` or
  `[n, K, *S]`, of a regression an entry of each target's name `[n]` or `labels` `[n, K]`; optionally `ids`, `patients`,
  `groups` `[n]` and `spacing` `[rank]`.

Where labels are not asked for, a folder of images or an `.npz` with `images` alone will do as well.

Beside the folders a `cases.csv` with the column `file` (a path from there, or a name), and any of `patient`, `group`,
`label` may say more; a `label` column, or a column of 0 and 1 for each class, replaces folders named by class. Without
it every file is a patient of its own. A `dataset.json` (nnU-Net, Medical Decathlon) may say which label values make
each class. What labels may hold: `label_values`; of a picture with a palette its entries are meant, not their colours.

Nothing is passed over: an image without a row or label and a label without an image are errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.targets import Target
from numpy.typing import NDArray

from ..errors import InvalidInput
from .archives import entries_of, spacing_of
from .cases_csv import NAME, CasesTable, ImageFinder, stem
from .grid import pick_nearest
from .label_values import LabelTable, plain, truth_of_label, truth_of_labels, truth_of_map, truth_of_masks
from .prepare import Prepared, fit, turn, with_spacing
from .raster import TRANSPARENT, indices
from .read import ENDINGS, read_image

PSEUDO_LABEL = ".pseudo-label"
"""In the name of every label that a model wrote (`equipoise rank`). Here it is refused: judged by its own answers, a
model is never wrong."""

_GROUP = "group"
"""The column that groups cases where none is named; in an archive the entry `groups`."""

_LABELS = ("labels", "masks", "labelsTr")
_LABEL_ENDS = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_UNREAD = (".bmp", ".gif", ".webp", ".jp2", ".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".h5", ".hdf5")
"""Images too, but not read here: passing over them would leave out cases."""


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
    folder = _Folder(data, group_by, order_by)
    if not labels:
        rows = [folder.row(file, None) for file in folder.files()]
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
        endings = "" if labels else f"; expected files ending in {_names(ENDINGS)}"
        raise InvalidInput(f"{data} holds no {what}{endings or f': expected {expected}'}")
    folder.check_all_used()
    return [_read(row, data, contract, spacing, table) for row in rows]


def _names(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


class _Folder:
    """A folder of images and its `cases.csv`, of which every row must be about an image that is there."""

    def __init__(self, root: Path, group_by: str, order_by: str) -> None:
        """Raises InvalidInput for a table without a column, or with two rows of an image, or of one that is missing."""
        self.root, self.group_by, self.order_by = root, plain(group_by), plain(order_by)
        table = CasesTable.read(root / NAME)
        self.columns = table.columns
        self._used: set[Path] = set()
        for column in (group_by, order_by):
            if column not in ("", _GROUP) and plain(column) not in self.columns:
                there = f"it has {_names(self.columns.values())}" if self.columns else "there is no such file"
                raise InvalidInput(f"{table.path} has no column {column!r}; {there}")
        self.table: dict[Path, Mapping[str, str]] = {}
        if table.rows:
            images = [file for file in _images(root) if not {*_LABELS} & {*file.relative_to(root).parts}]
            finder = ImageFinder(root, images)
            for row in table.rows:
                found = finder.find(row["file"])
                if found in self.table:
                    raise InvalidInput(f"{table.path}: {row['file']} has two rows; expected one for each image")
                self.table[found] = row

    def part(self, *names: str) -> Path:
        """The first of these folders that is there, or the first one's name."""
        return next((self.root / name for name in names if (self.root / name).is_dir()), self.root / names[0])

    def row(self, file: Path, label: str | Path | tuple[Path, ...] | tuple[float, ...] | None) -> Row:
        stated = self.stated(file)
        patient = stated.get("patient") or str(file.relative_to(self.root))
        return Row(file, label, patient, stated.get(self.group_by, ""), stated.get(self.order_by, ""))

    def stated(self, file: Path) -> Mapping[str, str]:
        self._used.add(file)
        return self.table.get(file, {})

    def files(self) -> list[Path]:
        """All images below the folder, or below its `images/`."""
        folder = self.part("images", "imagesTr")
        return _images(folder if folder.is_dir() else self.root)

    def check_all_used(self) -> None:
        unused = sorted(str(file.relative_to(self.root)) for file in self.table.keys() - self._used)
        if unused:
            raise InvalidInput(
                f"{self.root / NAME} names {unused[0]} ({len(unused)} such rows), which is no image of these cases"
            )
        left = [file for file in self.files() if file not in self._used]
        if left:
            raise InvalidInput(
                f"{left[0].relative_to(self.root)} has no row in {NAME} ({len(left)} such images): state it there, or "
                "take it out of the folder"
            )


def _images(folder: Path) -> list[Path]:
    """At any depth, without what is hidden. Raises InvalidInput for images that cannot be read here."""
    files = sorted(
        file for file in folder.rglob("*") if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    unread = [file for file in files if file.name.lower().endswith(_UNREAD) and file.is_file()]
    if unread:
        raise InvalidInput(
            f"{unread[0]} is an image of a kind that is not read here ({len(unread)} such files); convert it to one of "
            f"{_names(ENDINGS)}, or take it out of the folder"
        )
    return [file for file in files if file.name.lower().endswith(ENDINGS) and file.is_file()]


def _blank(contract: Contract, image: NDArray[Any]) -> NDArray[Any]:
    """Zeros of the shape that the truth of `image [C, *S]` has; numbers that are not known are NaN."""
    if contract.targets:
        return np.full(len(contract.targets), np.nan)
    several = (len(contract.classes),) if contract.activation is Activation.SIGMOID else ()
    spatial = image.shape[1:] if contract.per_voxel else ()
    return np.zeros((*several, *spatial), np.uint8)


def _segmentations(folder: _Folder, contract: Contract) -> Iterator[Row]:
    images, labels = folder.part("images", "imagesTr"), folder.part(*_LABELS)
    regions = _regions(labels, contract)
    unused = set(_images(labels))
    for file in _images(images) if images.is_dir() else ():
        within = file.parent.relative_to(images)
        stated = folder.stated(file).get("label")
        if stated:
            found: Path | tuple[Path, ...] = _stated_label(folder.root, labels, stated)
            unused = set()  # what is chosen by a column may be chosen from many
        elif regions:
            found = tuple(_label_of(file, region / within, folder.root) for region in regions)
        else:
            found = _label_of(file, labels / within, folder.root)
        for each in found if isinstance(found, tuple) else (found,):
            unused.discard(each)
            if PSEUDO_LABEL in each.name:
                raise InvalidInput(
                    f"{each.relative_to(folder.root)} is a model's own answer, no truth: give an expert's label instead"
                )
        yield folder.row(file, found)
    if unused:
        raise InvalidInput(
            f"{min(unused).relative_to(folder.root)} is a label without an image ({len(unused)} such files): put the "
            f"image into {images.name}/, or take the label out of the folder"
        )


def _regions(labels: Path, contract: Contract) -> list[Path]:
    """The folders with one mask per class; a background that excludes the others need not have one."""
    there = {plain(each.name): each for each in labels.iterdir() if each.is_dir()} if labels.is_dir() else {}
    names = [name for name in contract.classes if plain(name) in there]
    missing = [name for name in contract.classes if name not in names]
    optional = [contract.classes[0]] if contract.activation is Activation.SOFTMAX else []
    if names and missing not in ([], optional):
        raise InvalidInput(
            f"{labels} has folders {_names(there[plain(name)].name for name in names)}; expected one for each of "
            f"{_names(contract.classes)}"
        )
    return [there[plain(name)] for name in names]


def _stated_label(root: Path, labels: Path, stated: str) -> Path:
    for place in (labels, root):
        if (place / stated).is_file():
            return place / stated
    raise InvalidInput(f"cases.csv: label {stated!r}: no such file in {labels} or {root}")


def _label_of(image: Path, labels: Path, root: Path) -> Path:
    """The label of the same name; of another kind of file, with `_mask` and the like, or without nnU-Net's `_0000`."""
    if (labels / image.name).is_file():
        return labels / image.name
    own = stem(image)
    stems = {own, own.removesuffix("_0000"), *(f"{own}{end}" for end in (*_LABEL_ENDS, PSEUDO_LABEL))}
    same = [file for file in _images(labels) if file.parent == labels and stem(file) in stems]
    if len(same) != 1:
        found = f"{len(same)} files fit" if same else "has no label"
        expected = (labels / image.name).relative_to(root)
        raise InvalidInput(f"{image.relative_to(root)} {found}: expected {expected}")
    return same[0]


def _classes(folder: _Folder, contract: Contract) -> Iterator[Row]:
    several = [plain(name) for name in contract.classes]
    if "label" in folder.columns or all(name in folder.columns for name in several):
        for file, row in folder.table.items():
            cells = [row[name] for name in (["label"] if "label" in folder.columns else several)]
            if not all(cells):
                name = file.relative_to(folder.root)
                raise InvalidInput(
                    f"cases.csv: {name} has no label; state one for each image (normal: none of the classes)"
                )
            yield folder.row(file, ";".join(cells))
        return
    beside = [file for file in _images(folder.root) if file.parent == folder.root]
    if beside:
        raise InvalidInput(
            f"{folder.root} holds {len(beside)} images that are in no class's folder, such as {beside[0].name}: "
            f"expected folders {_names(contract.classes)}, or a cases.csv with the columns file and label, or file and "
            f"{_names(contract.classes)}, which hold 0 or 1"
        )
    for place in sorted(each for each in folder.root.iterdir() if each.is_dir()):
        for file in _images(place):
            yield folder.row(file, place.name)


def _numbered(folder: _Folder, contract: Contract) -> Iterator[Row]:
    """One image a row of `cases.csv`, each with a number for each target; images without a row are an error."""
    columns = {name: plain(name) for name in contract.answers}
    if len(columns) == 1 and columns[contract.answers[0]] not in folder.columns:
        columns[contract.answers[0]] = "label"
    if not set(columns.values()) <= set(folder.columns):
        found = f"it has {_names(folder.columns.values())}" if folder.columns else "there is none"
        raise InvalidInput(
            f"{folder.root / NAME}: expected the columns file and {_names(contract.answers)}, one number for each "
            f"image; {found}"
        )
    for file, row in folder.table.items():
        where = f"{NAME}: {file.relative_to(folder.root)}"
        yield folder.row(file, tuple(_number(row[columns[target.name]], where, target) for target in contract.targets))


def _number(cell: str, where: str, target: Target) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput(
            f"{where}: {target.name} is {cell or 'empty'}; expected a number in {target.unit}, such as 12.5"
        )
    return value


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
        files = [each for each in row.label if isinstance(each, Path)]
        return _of_colours_or_indices(files, prepared, contract, lambda masks: truth_of_masks(masks, contract))
    if row.label.suffix.lower() in _PICTURES:
        return _of_colours_or_indices(
            [row.label], prepared, contract, lambda planes: truth_of_map(planes[0], contract, table)
        )
    planes = _planes(row.label, prepared, contract)
    if len(planes) == len(contract.classes) > 1:
        return truth_of_masks(planes, contract)
    return truth_of_map(_grey(planes, row.label)[0], contract, table)


def _of_colours_or_indices(
    files: Sequence[Path], prepared: Prepared, contract: Contract, truth: Callable[[NDArray[Any]], NDArray[Any]]
) -> NDArray[Any]:
    """The truth of grey labels; of pictures with a palette, of its entries: a colour is for the eye.

    Greys of a palette may be meant either way. Raises InvalidInput where both ways say something, and not the same.
    """
    pictures = [each for each in files if each.suffix.lower() in _PICTURES]
    entries = {each: own for each in pictures if (own := _entries(each)) is not None}
    if not entries:
        return truth(np.concatenate([_grey(_planes(each, prepared, contract), each) for each in files]))
    found: list[NDArray[Any]] = []
    refused: list[InvalidInput] = []
    for of_palette in (entries, {}):
        try:
            planes = [_grey(_planes(each, prepared, contract, of_palette.get(each)), each) for each in files]
            found.append(truth(np.concatenate(planes)))
        except InvalidInput as error:
            refused.append(error)
    if not found:
        raise refused[0]
    if any((each != found[0]).any() for each in found[1:]):
        raise InvalidInput(
            f"{next(iter(entries)).name}: a picture with a palette whose entries make other classes than their greys; "
            "save it in grey, without a palette"
        )
    return found[0]


def _entries(picture: Path) -> NDArray[Any] | None:
    read_image(picture)  # says what is wrong with the file
    return indices(picture)


def _planes(path: Path, prepared: Prepared, contract: Contract, entries: NDArray[Any] | None = None) -> NDArray[Any]:
    """A label's channels `[C, *S]` in the prepared image's grid; `entries`: those of its palette."""
    label = read_image(path)
    pixels, image = label.pixels if entries is None else entries, prepared.source
    if entries is None and TRANSPARENT in label.doubts:
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
    columns = ("ids", "patients", "groups" if group_by == _GROUP else group_by, order_by)
    entries, names = entries_of(path, each=columns, others={"labels", "masks", *contract.answers})
    labels = "labels" if "labels" in names else "masks"
    if contract.targets and labelled:
        _join_targets(entries, path, contract)
        labels, names = "labels", [*names, "labels"]
    if not {"images", *([labels] if labelled else [])} <= entries.keys():
        expected = "`images` and `labels` (or `masks`)" if labelled else "`images`"
        raise InvalidInput(f"{path.name} holds {names}; expected {expected}")
    images = entries["images"]
    if labelled and entries[labels].shape[:1] != images.shape[:1]:
        found = len(np.atleast_1d(entries[labels]))
        raise InvalidInput(f"{path.name} holds {len(images)} images and {found} {labels}; expected one for each")
    truths = entries[labels] if labelled else [None] * len(images)
    for wanted in (group_by, order_by):
        if wanted not in ("", _GROUP, *names):
            raise InvalidInput(f"{path.name} has no entry {wanted!r}; it holds {names}")
    ids, patients, groups, orders = (entries[n].astype(str) if n in entries else None for n in columns)
    stated = spacing_of(entries) or spacing
    if images.ndim == 1 + contract.rank:
        images = images[:, None]
    if images.ndim != 2 + contract.rank or images.shape[1] != contract.image_channels:
        raise InvalidInput(
            f"{path.name}: `images` has the shape {list(entries['images'].shape)}; {contract.name} takes [n, "
            f"{contract.image_channels}, {_names(contract.spatial)}]"
        )
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
