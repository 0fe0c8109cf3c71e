"""DICOM pixels and geometry through pydicom: of one file (`read`), or dataset by dataset for `equipoise_clinic.dicom`.

References: DICOM PS3.3 C.11.1 (Modality LUT), C.7.6.3.1.2 (Photometric Interpretation), C.7.6.2.1.1 (image plane).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtra, StudyRejected, UnreadableImage
from ..extras import needs
from .decoding import unpacked
from .source import Kind, SourceImage, check_size
from .stack import order_of, stack


def read(path: Path) -> SourceImage:
    """`[C, rows, columns]`, or `[C, frames, rows, columns]` ordered along the slice normal.

    Stored values go through the Modality LUT (or rescale slope and intercept); MONOCHROME1 is turned so that larger is
    brighter; display settings (window, VOI LUT) are not applied. Spacing comes from Pixel Spacing, and between frames
    from their positions; never from Slice Thickness.
    """
    with needs("clinic", "reading DICOM files"):
        import pydicom
    with quiet(path.name):
        dataset = pydicom.dcmread(path)
        frames = checked(path, dataset)
        values = values_of(path, dataset, frames)
        modality = str(dataset.get("Modality", "")).strip() or None
        plane = spacing_in_plane(dataset)
        if frames == 1:
            return SourceImage(values[:, 0], Kind.DICOM, plane, None, modality)
        placed = planes_of(dataset, frames)
        if placed is None:
            return SourceImage(values, Kind.DICOM, None, None, modality)
        try:
            if plane is None:
                return SourceImage(values[:, order_of(*placed)], Kind.DICOM, None, None, modality)
            volume = stack(*placed, plane)
        except StudyRejected as error:
            raise UnreadableImage(f"{path.name}: of its frames, {error}") from None
        ordered = np.ascontiguousarray(values[:, volume.order])
        return SourceImage(ordered, Kind.DICOM, volume.spacing, volume.affine, modality)


@contextmanager
def silence() -> Iterator[None]:
    """No warning and no log line of the libraries' own: they may quote the patient's fields."""
    for library in ("pydicom", "highdicom"):  # for good: restoring it would let another thread's lines through
        log = logging.getLogger(library)
        log.propagate, log.handlers = False, [logging.NullHandler()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """As `silence`, and errors name the file only."""
    try:
        with silence():
            yield
    except (UnreadableImage, StudyRejected, ModuleNotFoundError, MissingExtra, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
        raise UnreadableImage(
            f"{name}: damaged or cut off DICOM ({type(error).__name__}); fetch it from the archive again"
        ) from None


def checked(path: Path, dataset: Any) -> int:
    """Number of frames, after the checks that need no decoding."""
    if "PixelData" not in dataset:
        raise UnreadableImage(f"{path.name}: DICOM without pixels, or cut off before them; expected an image")
    frames = frames_of(dataset)
    check_size(path, (int(dataset.SamplesPerPixel), frames, int(dataset.Rows), int(dataset.Columns)))
    syntax = dataset.file_meta.TransferSyntaxUID
    if not decodable(syntax):
        raise UnreadableImage(
            f"{path.name}: compressed as {syntax.name}, which nothing installed here can unpack: "
            "pip install 'equipoise[dicom]', or store it uncompressed (dcmdjpeg, gdcmconv --raw)"
        )
    return frames


def frames_of(dataset: Any) -> int:
    """Number of frames as it states it, not checked."""
    return int(dataset.get("NumberOfFrames", 1) or 1)


def decodable(syntax: Any) -> bool:
    """Whether pixels of this transfer syntax can be unpacked here."""
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

    if not syntax.is_compressed or syntax.is_deflated:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def values_of(path: Path, dataset: Any, frames: int) -> NDArray[np.float32]:
    """`[C, frames, rows, columns]` after Modality LUT and inversion."""
    from pydicom.pixels import apply_color_lut, pixel_array  # type: ignore[attr-defined]

    compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    stored = unpacked(dataset) if compressed else np.asarray(pixel_array(dataset))
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    if photometric == "PALETTE COLOR" or int(dataset.SamplesPerPixel) > 1:
        return np.moveaxis(stored.reshape(frames, dataset.Rows, dataset.Columns, -1), -1, 0).astype(np.float32)
    if not photometric.startswith("MONOCHROME"):
        raise UnreadableImage(f"{path.name}: Photometric Interpretation {photometric} with one sample per pixel")
    stack = stored.reshape(frames, dataset.Rows, dataset.Columns)
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    extremes = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    values = np.empty(stack.shape, np.float32)
    for frame, plane in enumerate(stack):
        rescaled = _modality(dataset, frame, plane)
        # Turned within the range that could be stored, so that an image's own content does not shift its intensities.
        inverted = photometric == "MONOCHROME1"
        values[frame] = _modality(dataset, frame, extremes).sum() - rescaled if inverted else rescaled
    return values[None]


def _modality(dataset: Any, frame: int, stored: NDArray[Any]) -> NDArray[np.float64]:
    """Stored values → the modality's own (e.g. Hounsfield units)."""
    from pydicom.pixels import apply_modality_lut  # type: ignore[attr-defined]

    group = functional_group(dataset, frame, "PixelValueTransformationSequence")
    if group is not None:
        return stored * float(group.RescaleSlope) + float(group.RescaleIntercept)
    return np.asarray(apply_modality_lut(stored, dataset), np.float64)


def functional_group(dataset: Any, frame: int, name: str) -> Any | None:
    """The item of a multi-frame functional group: a frame's own, else the one all share, else None."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[frame]] if frame < len(own) else [], shared):
        for group in groups:
            if group.get(name):
                return group[name].value[0]
    return None


def spacing_in_plane(dataset: Any) -> tuple[float, float] | None:
    """mm between (rows, columns). Imager Pixel Spacing is no substitute: it is measured at the detector."""
    measures = functional_group(dataset, 0, "PixelMeasuresSequence")
    between = (dataset if measures is None else measures).get("PixelSpacing")
    if not between or len(between) != 2 or not all(float(mm) > 0 for mm in between):
        return None
    return float(between[0]), float(between[1])


def planes_of(dataset: Any, frames: int) -> tuple[list[list[float]], list[list[float]]] | None:
    """Position `[frames][3]` and orientation `[frames][6]` of every frame, or None where one is missing."""
    positions, directions = [], []
    for frame in range(frames):
        fallback = dataset if frames == 1 else {}
        position = functional_group(dataset, frame, "PlanePositionSequence") or fallback
        orientation = functional_group(dataset, frame, "PlaneOrientationSequence") or fallback
        place, direction = position.get("ImagePositionPatient"), orientation.get("ImageOrientationPatient")
        if not place or not direction or len(place) != 3 or len(direction) != 6:
            return None
        positions.append([float(mm) for mm in place])
        directions.append([float(cosine) for cosine in direction])
    return positions, directions
