"""Instances in any order → series, and a series → one volume whose slices ascend along their normal."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_client.errors import StudyRejected, UnreadableImage
from equipoise_client.extras import needs
from equipoise_client.images import dicom as pixels
from equipoise_client.images import geometry, uniform
from equipoise_client.images.completeness import missing
from equipoise_client.images.header import header_of_all
from equipoise_client.images.rejections import (
    DamagedInstance,
    DuplicatePositions,
    MixedStudies,
    NoFrameOfReference,
    NoGeometry,
    NothingReadable,
    NotOneVolume,
    UnreadableSyntax,
)
from equipoise_client.images.source import Kind, SourceImage, check_size, finished
from equipoise_client.images.stack import Stack, normal_axes, stack
from numpy.typing import NDArray

from .rules import PLANES

_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
"""Of files that are DICOM by their name; so are those that end with a number, as `IM.0007` or a UID."""
_NO_IMAGES = ("dicomdir", "readme", "license", "version", "lockfile")
_NAME = Path("the series")  # stands for files in messages: their names may be made of the patient's


@dataclass(frozen=True, eq=False)
class Group:
    """The images of one series as they came, not yet known to be a volume.

    Attributes:
        lost: what is known to be missing, since it could not be read.
        counts: what is missing after counts and numbers in the headers (`images.completeness.missing`).
        fault: why it cannot be used, where reading showed it.
    """

    datasets: tuple[Any, ...]
    lost: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    fault: StudyRejected | None = None

    @property
    def uid(self) -> str:
        return str(self.datasets[0].SeriesInstanceUID)

    @property
    def modality(self) -> str:
        return str(self.datasets[0].get("Modality", "")).strip()

    @property
    def description(self) -> str:
        return str(self.datasets[0].get("SeriesDescription", "") or "")

    @property
    def view(self) -> str:
        """View Position of a projection image, as `PA` or `LL`; "" where it has none."""
        return str(self.datasets[0].get("ViewPosition", "") or "").strip().upper()

    def images(self) -> list[Group]:
        """Each projection image by itself, else the series as it is: two radiographs are never one volume."""
        if self.modality not in _PROJECTIONS or len(self.datasets) == 1:
            return [self]
        return [replace(self, datasets=(dataset,), counts=()) for dataset in self.datasets]  # each is whole by itself

    @cached_property
    def slices(self) -> int:
        """Number of images; 0 where one is malformed."""
        try:
            with _damage():
                return sum(pixels.frames_of(dataset) for dataset in self.datasets)
        except StudyRejected:
            return 0

    @cached_property
    def plane(self) -> str:
        """One of `PLANES`, or "" where the images do not state a valid one."""
        try:
            with _damage():
                first = geometry.planes_of(self.datasets[0], pixels.frames_of(self.datasets[0]))
                return "" if first is None else PLANES[int(np.argmax(np.abs(np.cross(*normal_axes(first[1][0])))))]
        except StudyRejected:
            return ""


@dataclass(frozen=True, eq=False)
class Series:
    """One image, or one straight volume.

    Attributes:
        datasets: of single-frame instances one per slice, ascending along the normal; else the one instance.
        frames: for each slice, its frame in `datasets[0]` where that is a multi-frame instance, else None.
        volume: geometry of the slices, or None for a single image.
        positions, orientation: Image Position (Patient) of every slice `[slices][3]` and what they share `[6]`; None
            where the image has none (a radiograph).
        plane_spacing: mm between (rows, columns), or None.
        doubts: what forbids to accept an answer about it.
        incomplete: reasons for which images of it are known to be missing.
    """

    datasets: tuple[Any, ...]
    frames: tuple[int, ...] | None
    volume: Stack | None
    positions: NDArray[np.float64] | None
    orientation: tuple[float, ...] | None
    plane_spacing: tuple[float, float] | None
    doubts: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()

    @property
    def first(self) -> Any:
        """A dataset that has what all share: patient, study, series, frame of reference."""
        return self.datasets[0]

    @property
    def study_uid(self) -> str:
        return str(self.first.StudyInstanceUID)

    @property
    def uid(self) -> str:
        return str(self.first.SeriesInstanceUID)

    def instance_uid(self, index: int) -> str:
        """SOP Instance UID that holds slice `index`."""
        return str(self.datasets[0 if self.frames is not None else index].SOPInstanceUID)

    def image(self) -> SourceImage:
        """Pixels and geometry: `[C, slices, rows, columns]` of a volume, `[C, rows, columns]` of an image.

        Raises DamagedInstance.
        """
        try:
            with pixels.quiet(_NAME.name):
                rows, columns = int(self.first.Rows), int(self.first.Columns)
                channels = int(self.first.get("SamplesPerPixel") or 1)
                check_size(_NAME, (channels, sum(map(pixels.frames_of, self.datasets)), rows, columns))
                parts = [pixels.values_of(_NAME, dataset, pixels.checked(_NAME, dataset)) for dataset in self.datasets]
                values = np.concatenate([part for part, _ in parts], axis=1)
                masks = [np.zeros(v.shape[1:], bool) if padding is None else padding for v, padding in parts]
                padding = np.concatenate(masks) if any(padding is not None for _, padding in parts) else None
                pixels.refuse_all_padding(_NAME, padding)
                if padding is not None:  # of all slices alike, not of each its own
                    values[:, padding] = values[:, ~padding].min()
                header = header_of_all(self.datasets)
                if self.volume is None:
                    outside = None if padding is None else padding[0]
                    image = SourceImage(
                        values[:, 0], Kind.DICOM, self.plane_spacing, None, header, self.doubts, outside
                    )
                else:
                    if self.frames is not None:
                        values, padding = values[:, self.frames], None if padding is None else padding[[*self.frames]]
                    volume, ordered = self.volume, np.ascontiguousarray(values)
                    image = SourceImage(
                        ordered, Kind.DICOM, volume.spacing, volume.affine, header, self.doubts, padding
                    )
                return finished(_NAME, image)
        except UnreadableImage as error:
            raise DamagedInstance(str(error)) from None


_SIZES = ("Rows", "Columns", "SamplesPerPixel")
_PROJECTIONS = ("CR", "DX", "MG", "IO", "PX")


def read(given: Path | Iterable[Any]) -> list[Group]:
    """The image series among datasets, or in all files of a folder and the folders in it.

    Objects without an image (results, reports, DICOMDIR) and files of other formats are left out. What is an image, or
    could be one, and cannot be read marks its series as incomplete, and all series where it does not state its own.
    Raises NothingReadable, DamagedInstance where nothing is left, MixedStudies.
    """
    with needs("clinic", "reading DICOM series"):
        import pydicom  # noqa: F401
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    studies, patients = set(), set()
    lost: Counter[str] = Counter()
    faults: dict[str, StudyRejected] = {}
    for dataset in _files(given) if isinstance(given, Path) else given:
        series = ""
        try:
            with _damage():
                series = str(dataset.get("SeriesInstanceUID", "") or "")
                sop_class = dataset.get("SOPClassUID")
                known_class = bool(sop_class) and sop_class.name != sop_class
                if known_class and "Image Storage" not in sop_class.name:
                    continue
                if not known_class and "Rows" not in dataset and series:
                    continue  # private, and no image
                if not known_class or pixels.pixels_of(dataset) is None or not all(dataset.get(name) for name in _UIDS):
                    lost[series] += 1
                    continue
                studies.add(str(dataset.StudyInstanceUID))
                patients.add(patient_of(dataset))
                known = groups[series].setdefault(dataset.SOPInstanceUID, dataset)
                if known is not dataset and known != dataset:
                    faults[series] = DuplicatePositions("one instance came twice with different content")
        except DamagedInstance:
            lost[series] += 1
    if len(studies) > 1 or len(patients) > 1:
        raise MixedStudies(f"{len(studies)} studies and {len(patients)} patients; give one study at a time")
    if not groups:
        raise DamagedInstance("no image of it can be read") if lost else NothingReadable
    return [
        Group(tuple(groups[uid].values()), tuple(_losses(lost[uid], lost[""])), _counted(groups[uid]), faults.get(uid))
        for uid in sorted(groups)
    ]


def patient_of(dataset: Any) -> str:
    """What tells patients apart: the ID, or the name where there is none; spelling apart."""
    stated = str(dataset.get("PatientID", "") or "") or str(dataset.get("PatientName", "") or "").replace("^", " ")
    return " ".join(stated.casefold().split())


_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def _losses(own: int, unknown: int) -> Iterator[str]:
    if own:
        yield f"{own} of its instances cannot be read"
    if unknown:
        yield f"{unknown} files beside it cannot be read, and may be of it"


def _counted(datasets: dict[str, Any]) -> tuple[str, ...]:
    try:
        with _damage():
            return missing(tuple(datasets.values()))
    except DamagedInstance:
        return ("its counts and numbers cannot be read",)


def volume_of(group: Group, ignore_counts: bool = False) -> Series:
    """The group as one image or one volume.

    Args:
        ignore_counts: counts and numbers in its headers are not to be believed (`Rule.ignore_counts`).

    Raises its `fault`, NotOneVolume, NoGeometry, NoFrameOfReference, UnreadableSyntax, DamagedInstance, and what
    `stack` raises.
    """
    if group.fault is not None:
        raise group.fault
    try:
        series = _volume_of(group)
    except StudyRejected as reason:
        if group.lost:  # what cannot be read is why
            raise DamagedInstance("; ".join((*group.lost, str(reason)))) from None
        raise
    return replace(series, incomplete=group.lost + (() if ignore_counts else group.counts))


def _volume_of(group: Group) -> Series:
    with _damage():
        for dataset in group.datasets:
            if pixels.pixels_of(dataset) is None:
                raise DamagedInstance("it has no pixels")
            syntax = dataset.file_meta.get("TransferSyntaxUID")
            if syntax is not None and not pixels.decodable(syntax):
                raise UnreadableSyntax(pixels.name_of(syntax))
        first, frames = group.datasets[0], pixels.frames_of(group.datasets[0])
        if len(group.datasets) > 1 and group.slices != len(group.datasets):
            parts = sum(pixels.frames_of(dataset) > 1 for dataset in group.datasets)
            raise NotOneVolume(
                f"{parts} multi-frame objects and {len(group.datasets) - parts} single images; expected one object "
                "(join the parts of a concatenation), or single images alone"
            )
        for name in (*_SIZES, "FrameOfReferenceUID"):
            if len({str(dataset.get(name, "")) for dataset in group.datasets}) > 1:
                raise NotOneVolume(f"they differ in {name}")
        spacings = np.array([geometry.spacing_in_plane(dataset) or (0.0, 0.0) for dataset in group.datasets])
        if np.ptp(spacings, axis=0).max() > 1e-3 * max(spacings.max(), 1e-6):
            raise NotOneVolume("they differ in PixelSpacing")
        spacing = geometry.spacing_in_plane(first)
        if len(group.datasets) == 1:
            placed = geometry.planes_of(first, frames)
        else:
            each = [geometry.planes_of(dataset, 1) for dataset in group.datasets]
            known = [place for place in each if place is not None]
            placed = ([p[0][0] for p in known], [p[1][0] for p in known]) if len(known) == len(each) else None
        if placed is None:
            if group.slices > 1:
                raise NoGeometry("of several images; expected one image, or one volume")
            return Series(group.datasets, None, None, None, None, spacing)
        if not str(first.get("FrameOfReferenceUID", "") or "").strip():
            raise NoFrameOfReference
        if spacing is None:
            raise NoGeometry("pixel spacing is missing")
        positions, orientation = np.array(placed[0], np.float64), tuple(placed[1][0])
        normal_axes(orientation)
        if group.slices == 1:
            return Series(group.datasets, None, None, positions, orientation, spacing)
        volume = stack(*placed, spacing)
        ordered = positions[list(volume.order)]
        if len(group.datasets) == 1:
            doubts = uniform.of_frames(first, volume.order)
            return Series(group.datasets, volume.order, volume, ordered, orientation, spacing, doubts)
        datasets = tuple(group.datasets[index] for index in volume.order)
        doubts = uniform.of_datasets(datasets)
        return Series(datasets, None, volume, ordered, orientation, spacing, doubts)


def _files(folder: Path) -> Iterator[Any]:
    """Every file under the folder that is DICOM or could be; in the order of their names."""
    if not folder.is_dir():
        raise NothingReadable("expected a folder with DICOM files")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if skipped(file):
            continue
        is_dicom = _is_dicom(file)
        suffix = file.suffix.casefold()
        if is_dicom or suffix in _SUFFIXES or suffix[1:].isdigit():
            dataset = dataset_of(file)
            # A DICOMDIR by another name is a list as well.
            if dataset.file_meta.get("MediaStorageSOPClassUID") != pixels.DICOMDIR:
                yield dataset


def _is_dicom(file: Path) -> bool:
    """Also of one that is gzipped, which counts as one that cannot be read: its series is incomplete without it."""
    with file.open("rb") as stream:
        head = stream.read(132)
        if head.startswith(b"\x1f\x8b"):
            stream.seek(0)
            try:
                head = gzip.GzipFile(fileobj=stream).read(132)
            except (OSError, EOFError, zlib.error):
                return "dcm" in file.name.casefold()
        return head[128:] == b"DICM"


def dataset_of(file: Path) -> Any:
    """A DICOM file, its pixels left on the disk until they are asked for.

    Of a damaged file as much of its header as can be read, without pixels: it may say which series it is of.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    empty = Dataset()
    empty.file_meta = FileMetaDataset()
    for whole in (True, False):
        try:
            with _damage():
                dataset = pixels.load(file, defer_size=_DEFERRED, stop_before_pixels=not whole)
                if whole:
                    _check_length(dataset, file)
                return dataset
        except DamagedInstance:
            continue
    return empty


_DEFERRED = 1 << 16
"""Bytes of an element from which it stays on the disk, so that memory holds no more than the series in use."""


def _check_length(dataset: Any, file: Path) -> None:
    """pydicom takes pixels that end with the file as they are, however many were announced."""
    element = dataset.get_item(_PIXEL_DATA, keep_deferred=True)
    announced = getattr(element, "length", _UNDEFINED)
    if announced != _UNDEFINED:
        there = file.stat().st_size - element.value_tell if element.value is None else len(element.value)
        if there < announced:
            raise DamagedInstance("it was cut off within its pixels")


_PIXEL_DATA, _UNDEFINED = 0x7FE00010, 0xFFFFFFFF


def skipped(file: Path) -> bool:
    """Whether a file is by its name no instance: a DICOMDIR lists them, an AppleDouble file (macOS) is beside one."""
    return file.name.startswith(".") or file.name.casefold() in _NO_IMAGES


@contextmanager
def _damage() -> Iterator[None]:
    """Whatever malformed data makes pydicom raise becomes DamagedInstance, whose message quotes nothing of the file."""
    try:
        with pixels.quiet("an instance"):
            yield
    except UnreadableImage as error:
        raise DamagedInstance(str(error)) from None
