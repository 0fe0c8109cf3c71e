"""What a file holds, before any model is thought of."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput, UnreadableImage
from ..transport import MESSAGE_LIMIT
from .header import Header

MAX_VALUES = MESSAGE_LIMIT // 4
"""float32 values that fit one request. A file that promises more is refused before it is unpacked: it could not be
sent, and a small file that unpacks to gigabytes is how a decompression bomb works."""

UNPACKED = "EQUIPOISE_UNPACKED_MEGABYTES"
"""Environment variable: the most that one file may unpack to, in MiB."""

UNPACKED_DEFAULT = 512
"""A CT of 512 × 512 × 1000 in one file fits."""

_STEP = 1 << 20


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
        header: what a DICOM header says that the image shows; None for other files.
        doubts: what was found in the file that forbids to accept an answer.
        padding: bool `[*S]`, True where the file says that there is no image (Pixel Padding Value); `pixels` hold the
            smallest value of the image there. None: nowhere.
    """

    pixels: NDArray[np.float32]
    kind: Kind
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    header: Header | None = None
    doubts: tuple[str, ...] = ()
    padding: NDArray[np.bool_] | None = None


def unpacked_limit() -> int:
    """Bytes that one file may unpack to, from the environment. Raises InvalidInput."""
    stated = os.environ.get(UNPACKED, "").strip() or str(UNPACKED_DEFAULT)
    if not stated.isdigit() or int(stated) < 1:
        raise InvalidInput(f"{UNPACKED} is {stated!r}; expected a whole number of MiB, at least 1")
    return int(stated) << 20


def check_unpacked(name: str, size: int) -> None:
    """Raises UnreadableImage where a file unpacks to more bytes than the setting allows."""
    if size > unpacked_limit():
        raise UnreadableImage(
            f"{name}: unpacks to more than {unpacked_limit() >> 20} MiB; where it is meant to, and there is memory for "
            f"it, set {UNPACKED} higher"
        )


def check_deflated(name: str, stream: IO[bytes]) -> None:
    """Counts what the rest of a raw Deflate stream unpacks to and keeps none of it. Raises UnreadableImage."""
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while not inflate.eof:
            given = inflate.unconsumed_tail or stream.read(_STEP)
            part = inflate.decompress(given, _STEP)
            if not given and not part:
                raise UnreadableImage(f"{name}: the deflated data are cut off; fetch it again")
            size += len(part)
            check_unpacked(name, size)
    except zlib.error as error:
        raise UnreadableImage(f"{name}: the deflated data are damaged ({error}); fetch it again") from error


def check_size(path: Path, shape: Sequence[int]) -> None:
    """Raises UnreadableImage for what is empty or too large to be sent."""
    count = prod(int(size) for size in shape)
    if min(shape, default=0) < 1:
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
