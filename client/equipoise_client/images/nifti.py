"""NIfTI through nibabel: in, and results out in the source's grid."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnreadableImage
from ..extras import needs
from .source import Kind, SourceImage, check_size

_MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


def read(path: Path) -> SourceImage:
    """`[1, X, Y, Z]` in the file's own order of axes, scaled by its slope and intercept.

    A file without orientation (sform and qform codes 0) has no affine: nibabel's guess is not one.
    """
    with needs("client", "reading NIfTI files"):
        import nibabel
    log = logging.getLogger("nibabel.global")  # it prints what it repairs in a damaged header
    log.propagate, log.handlers = False, [logging.NullHandler()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = nibabel.load(path)
            header = image.header
            shape = _three_axes(path, image.shape)
            check_size(path, shape)
            if image.get_data_dtype().kind not in "iuf":
                raise UnreadableImage(f"{path.name}: voxels of type {image.get_data_dtype()}; expected real numbers")
            with np.errstate(over="ignore"):
                pixels = np.asarray(image.dataobj, dtype=np.float32).reshape(1, *shape)
            scale = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
            known = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
            affine = np.array(image.affine, np.float64)
            affine[:3] *= scale
    except UnreadableImage:
        raise
    except Exception as error:  # what nibabel raises on a damaged header shares no base
        raise UnreadableImage(f"{path.name}: not a NIfTI file, damaged or cut off; export it again") from error
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    usable = bool(np.isfinite(affine).all() and (spacing > 0).all())
    return SourceImage(
        pixels, Kind.NIFTI, tuple(float(mm) for mm in spacing) if usable else None, affine if usable and known else None
    )


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
