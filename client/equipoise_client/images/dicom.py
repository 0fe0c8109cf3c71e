"""One DICOM file through pydicom: a single image, or a multi-frame volume. Only pixels and geometry leave this module.

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

from ..errors import UnreadableImage
from ..extras import needs
from .source import Kind, SourceImage, check_size

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_PARALLEL = 1e-3  # largest difference of direction cosines that still counts as the same orientation
_EVEN = 0.05  # largest deviation of a gap between slices, as a share of the usual gap


def read(path: Path) -> SourceImage:
    """`[C, rows, columns]`, or `[C, frames, rows, columns]` ordered along the slice normal.

    Stored values go through the Modality LUT (or rescale slope and intercept); MONOCHROME1 is turned so that larger is
    brighter; display settings (window, VOI LUT) are not applied. Spacing comes from Pixel Spacing, and between frames
    from their positions; never from Slice Thickness.
    """
    with needs("dicom", "reading DICOM files"):
        import pydicom
    with _quiet(path):
        dataset = pydicom.dcmread(path)
        frames = _checked(path, dataset)
        values = _values(path, dataset, frames)
        modality = str(dataset.get("Modality", "")).strip() or None
        plane = _spacing_in_plane(dataset)
        if frames == 1:
            return SourceImage(values[:, 0], Kind.DICOM, plane, None, modality)
        order, spacing, affine = _geometry(path, dataset, frames, plane)
        return SourceImage(np.ascontiguousarray(values[:, order]), Kind.DICOM, spacing, affine, modality)


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Errors name the file only: pydicom's own messages, warnings and log lines may quote the patient's fields."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UnreadableImage, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (malformed files make pydicom raise nearly anything)
        raise UnreadableImage(
            f"{path.name}: damaged or cut off DICOM ({type(error).__name__}); fetch it from the archive again"
        ) from None
    finally:
        log.disabled = before


def _checked(path: Path, dataset: Any) -> int:
    """Number of frames, after what can be told without decoding was looked at."""
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

    if "PixelData" not in dataset:
        raise UnreadableImage(f"{path.name}: DICOM without pixels, or cut off before them; expected an image")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    check_size(path, (int(dataset.SamplesPerPixel), frames, int(dataset.Rows), int(dataset.Columns)))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise UnreadableImage(
                f"{path.name}: compressed as {syntax.name}, which nothing installed here can unpack: "
                "pip install 'equipoise[dicom]', or store it uncompressed (dcmdjpeg, gdcmconv --raw)"
            )
    return frames


def _values(path: Path, dataset: Any, frames: int) -> NDArray[np.float32]:
    """`[C, frames, rows, columns]` after Modality LUT and inversion."""
    from pydicom.pixels import apply_color_lut, pixel_array  # type: ignore[attr-defined]

    stored = np.asarray(pixel_array(dataset))
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

    group = _functional_group(dataset, frame, "PixelValueTransformationSequence")
    if group is not None:
        return stored * float(group.RescaleSlope) + float(group.RescaleIntercept)
    return np.asarray(apply_modality_lut(stored, dataset), np.float64)


def _functional_group(dataset: Any, frame: int, name: str) -> Any | None:
    """The item of a multi-frame functional group: a frame's own, else the one all share, else None."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[frame]] if frame < len(own) else [], shared):
        for group in groups:
            if group.get(name):
                return group[name].value[0]
    return None


def _spacing_in_plane(dataset: Any) -> tuple[float, float] | None:
    """mm between (rows, columns). Imager Pixel Spacing is no substitute: it is measured at the detector."""
    measures = _functional_group(dataset, 0, "PixelMeasuresSequence")
    between = (dataset if measures is None else measures).get("PixelSpacing")
    if not between or len(between) != 2 or not all(float(mm) > 0 for mm in between):
        return None
    return float(between[0]), float(between[1])


def _geometry(
    path: Path, dataset: Any, frames: int, plane: tuple[float, float] | None
) -> tuple[list[int], tuple[float, float, float] | None, NDArray[np.float64] | None]:
    """Order of the frames along the slice normal, spacing, affine; without positions: as stored, None, None."""
    positions, directions = [], []
    for frame in range(frames):
        position = _functional_group(dataset, frame, "PlanePositionSequence")
        orientation = _functional_group(dataset, frame, "PlaneOrientationSequence")
        if position is None or orientation is None:
            return list(range(frames)), None, None
        positions.append([float(mm) for mm in position.ImagePositionPatient])
        directions.append([float(cosine) for cosine in orientation.ImageOrientationPatient])
    if np.ptp(np.array(directions), axis=0).max() > _PARALLEL:
        raise UnreadableImage(f"{path.name}: its frames are not parallel; expected one volume: split it")
    along_row, along_column = np.array(directions[0][:3]), np.array(directions[0][3:])
    normal = np.cross(along_row, along_column)
    places = np.array(positions)
    depths = places @ normal
    order = [int(index) for index in np.argsort(depths)]
    gaps = np.diff(depths[order])
    usual = float(np.median(gaps))
    if usual <= 0 or np.abs(gaps - usual).max() > _EVEN * usual:
        raise UnreadableImage(
            f"{path.name}: its frames are {gaps.min():.3g} to {gaps.max():.3g} mm apart; "
            "expected one volume with even gaps: split time points, or look for missing slices"
        )
    if plane is None:
        return order, None, None
    step = (places[order[-1]] - places[order[0]]) / (frames - 1)
    if np.linalg.norm(step - normal * (step @ normal)) > _EVEN * usual:
        raise UnreadableImage(f"{path.name}: its slices are sheared (gantry tilt); resample them to a straight volume")
    affine = np.eye(4)
    # Axes are (slice, row, column): a step in the row index goes along the column's direction.
    affine[:3, :3] = np.stack([step, along_column * plane[0], along_row * plane[1]], axis=1) * _LPS_TO_RAS[:, None]
    affine[:3, 3] = places[order[0]] * _LPS_TO_RAS
    return order, (float(np.linalg.norm(step)), *plane), affine
