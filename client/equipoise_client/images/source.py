"""What a file holds, before any model is thought of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UnreadableImage
from ..transport import MESSAGE_LIMIT

MAX_VALUES = MESSAGE_LIMIT // 4
"""float32 values that fit one request. A file that promises more is refused before it is unpacked: it could not be
sent, and a small file that unpacks to gigabytes is how a decompression bomb works."""


class Kind(str, Enum):
    """What sort of file an image came from."""

    RASTER = "raster"
    ARRAY = "array"
    NIFTI = "nifti"
    DICOM = "dicom"


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image in its source's own intensities and grid.

    Attributes:
        pixels: float32 `[C, *S]`, finite. *S is (row, column), (slice, row, column) for DICOM volumes, or the file's
            own order of axes for NIfTI and arrays.
        kind: sort of file.
        spacing: mm between voxel centres, per axis of S; None where the file does not say.
        affine: 4×4, voxel index → mm in RAS+ (as NIfTI has it), for three axes; None where the file does not say.
        modality: DICOM Modality (0008,0060), or None.
    """

    pixels: NDArray[np.float32]
    kind: Kind
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    modality: str | None = None


def check_size(path: Path, shape: Sequence[int]) -> None:
    """Raises UnreadableImage for what is empty or too large to be sent."""
    count = prod(int(size) for size in shape)
    if count == 0:
        raise UnreadableImage(f"{path.name}: the image is empty, its shape is {list(shape)}")
    if count > MAX_VALUES:
        raise UnreadableImage(
            f"{path.name}: the file says that it unpacks to {list(shape)}, {count} values; "
            f"one request carries at most {MAX_VALUES}: crop it to the region of interest"
        )


def finished(path: Path, image: SourceImage) -> SourceImage:
    """The image, or UnreadableImage where it holds what no scanner gives."""
    check_size(path, image.pixels.shape)
    bad = image.pixels.size - int(np.count_nonzero(np.isfinite(image.pixels)))
    if bad:
        raise UnreadableImage(
            f"{path.name}: {bad} of {image.pixels.size} values are NaN, infinite or beyond float32; "
            "expected finite intensities: replace them before sending"
        )
    return image
