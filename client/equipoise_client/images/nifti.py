"""NIfTI through nibabel: in, and results out in the source's grid."""

from __future__ import annotations

import gzip
import logging
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnreadableImage
from ..extras import needs
from .source import Kind, SourceImage, check_size, check_unpacked, unpacked_limit
from .stack import STRAIGHT

_MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_ALIKE = 0.02
"""Largest difference of two affines' axes that still counts as the same, as a share of a voxel: rounding of qform."""
_NIFTI2_HEADER = 540


def read(path: Path) -> SourceImage:
    """`[1, X, Y, Z]` in the file's own order of axes, scaled by its slope and intercept.

    A file without orientation (sform and qform codes 0) has no affine: nibabel's guess is not one. Axes have to be
    perpendicular, and sform, qform and voxel sizes to agree where all are said to be valid: as for DICOM, what
    contradicts itself is refused.
    """
    with needs("client", "reading NIfTI files"):
        import nibabel
    log = logging.getLogger("nibabel.global")  # it prints what it repairs in a damaged header
    log.propagate, log.handlers = False, [logging.NullHandler()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = _content(path)
            second = int.from_bytes(content[:4], "little") == _NIFTI2_HEADER
            second = second or int.from_bytes(content[:4], "big") == _NIFTI2_HEADER
            image: Any = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)
            header = image.header
            shape = _three_axes(path, image.shape)
            check_size(path, shape)
            _check_end(path, image, len(content))
            if image.get_data_dtype().kind not in "iuf":
                raise UnreadableImage(f"{path.name}: voxels of type {image.get_data_dtype()}; expected real numbers")
            with np.errstate(over="ignore"):
                pixels = np.asarray(image.dataobj, dtype=np.float32).reshape(1, *shape)
            unit = header.get_xyzt_units()[0]
            known, doubts = _agreeing(path, header)
            affine = np.array(image.affine, np.float64)
            affine[:3] *= _MILLIMETRES.get(unit, 1.0)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # what nibabel raises on a damaged header shares no base
        raise UnreadableImage(f"{path.name}: not a NIfTI file, damaged or cut off; export it again") from error
    spacing = _straight(path, affine)
    if unit == "unknown" and (spacing.max() > 10.0 or spacing.min() < 0.1):
        doubts = (*doubts, "the file does not state the unit of its voxel sizes, which are unlikely in mm")
    sizes = tuple(float(mm) for mm in spacing)
    return SourceImage(pixels, Kind.NIFTI, sizes, affine if known else None, None, doubts)


def _content(path: Path) -> bytes:
    """The file, unpacked to its end: only there stands gzip's checksum. Never more than the setting allows."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            check_unpacked(path.name, path.stat().st_size)
            file.seek(0)
            return file.read()
        file.seek(0)
        try:
            content = gzip.GzipFile(fileobj=file).read(unpacked_limit() + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableImage(
                f"{path.name}: the gzip data are damaged or cut off ({error}); fetch the file again"
            ) from error
    check_unpacked(path.name, len(content))
    return content


def _check_end(path: Path, image: Any, given: int) -> None:
    """Raises UnreadableImage where more voxels are there than the header says: part of the volume would be left out."""
    expected = int(image.dataobj.offset) + int(np.prod(image.shape, dtype=np.int64)) * image.get_data_dtype().itemsize
    if given - expected >= image.shape[0] * image.get_data_dtype().itemsize:  # a row
        raise UnreadableImage(
            f"{path.name}: the file holds {given - expected} bytes more than the {list(image.shape)} voxels that its "
            "header states; export it again"
        )


_TEMPLATE = (
    "the image lies in a template's space (its code says so), not in the scanner's: its volumes are not a patient's",
)


def _agreeing(path: Path, header: Any) -> tuple[bool, tuple[str, ...]]:
    """Whether the file states its orientation, and doubts about it. Raises where it states two."""
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    valid = [name for name in codes if codes[name] > 0]
    axes = {name: np.asarray(getattr(header, f"get_{name}")(), np.float64) for name in valid}
    if not all(np.isfinite(matrix).all() for matrix in axes.values()):
        raise UnreadableImage(f"{path.name}: {' and '.join(valid)} hold numbers that are not finite; export it again")
    sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if "sform" in axes and (sizes > 0).all():
        stated = np.linalg.norm(axes["sform"][:3, :3], axis=0)
        if codes["sform"] < 3 and (np.abs(stated - sizes) > _ALIKE * sizes).any():
            raise UnreadableImage(
                f"{path.name}: voxels measure {_mm(stated)} by sform and {_mm(sizes)} by pixdim; export it again"
            )
    template = _TEMPLATE if valid and codes[valid[0]] >= 3 else ()
    if len(axes) < 2:
        return bool(valid), template
    first, second = (axes[name][:3, :3] for name in valid)
    mirrored = np.linalg.det(first) * np.linalg.det(second) < 0
    shares = np.abs(first - second).max(axis=0) / np.maximum(np.linalg.norm(second, axis=0), 1e-30)
    if shares.max() <= _ALIKE and not mirrored:
        apart = np.linalg.norm(axes["sform"][:3, 3] - axes["qform"][:3, 3])
        moved = codes["sform"] == codes["qform"] and apart > 0.5 * np.linalg.norm(second, axis=0).max()
        return True, (*template, *(["sform and qform place the image differently"] if moved else []))
    if mirrored or codes["sform"] == codes["qform"] or codes["sform"] < 3:
        what = "left and right are exchanged between them" if mirrored else "their axes differ"
        raise UnreadableImage(
            f"{path.name}: sform and qform are both said to be valid, and {what}; set the wrong one to 0"
        )
    return True, _TEMPLATE


def _straight(path: Path, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """mm per axis. Raises where axes are missing, or not perpendicular."""
    spacing: NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise UnreadableImage(f"{path.name}: an axis of the affine has no length; export it with its geometry")
    directions = affine[:3, :3] / spacing
    skew = np.abs(directions.T @ directions - np.eye(3)).max()
    if skew > STRAIGHT:
        angle = np.degrees(np.arccos(np.clip(skew, 0, 1)))
        raise UnreadableImage(
            f"{path.name}: two axes meet at {angle:.1f} degrees, expected 90 (sheared affine): resample it to a "
            "straight volume"
        )
    return spacing


def _mm(sizes: NDArray[np.float64]) -> str:
    return " × ".join(f"{mm:.3g}" for mm in sizes)


def _three_axes(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise UnreadableImage(f"{path.name}: shape {list(shape)}; expected one volume with three axes: split it")
    return shape[0], shape[1], shape[2]


def write(path: Path, values: NDArray[Any], like: SourceImage) -> None:
    """Writes `[E, X, Y, Z]` as a volume (E = 1) or as E volumes, in the grid of `like`, in mm.

    The header is a new one: the source's free-text fields may name a patient.
    """
    with needs("client", "writing NIfTI files"):
        import nibabel
    volume = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    affine = np.diag([*(like.spacing or (1.0, 1.0, 1.0)), 1.0]) if like.affine is None else like.affine
    image: Any = nibabel.Nifti1Image(volume, affine)  # type: ignore[no-untyped-call]
    code = "unknown" if like.affine is None else "scanner"
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
