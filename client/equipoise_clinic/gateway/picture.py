"""The worklist's picture of a case: the most uncertain slice, what was found in it, and where the network is unsure."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from ..dicom.study import Slice

_HEIGHT = 320  # pixels of each panel, at least; slices are enlarged by whole numbers so that voxels stay what they are
_OUTLINES = ((76, 201, 240), (247, 37, 133), (184, 243, 90), (255, 209, 102), (155, 93, 229), (0, 245, 212))
_DIMMED = 0.6  # the image under the heat is darker by this, so that colours stand out
_GAP = 8


def draw(picture: Slice) -> bytes:
    """PNG with two panels: the slice with the outlines of the masks, and the slice under its uncertainty.

    Heat is drawn on the fixed scale of `equipoise_client.figure`, so that two pictures compare.
    """
    factor = _factors(picture)
    left = np.repeat(_enlarged(picture.grey, factor)[..., None], 3, axis=2)
    right = left.copy()
    if picture.mask is not None:
        mask = _enlarged(picture.mask, factor)
        for number in np.unique(mask[mask > 0]):
            left[_outline(mask == number)] = _OUTLINES[(int(number) - 1) % len(_OUTLINES)]
    if picture.uncertainty is not None:
        unsure = np.nan_to_num(_enlarged(picture.uncertainty, factor), nan=picture.limit)
        unsure = np.sqrt(np.clip(unsure / picture.limit, 0.0, 1.0))[..., None]  # the root shows small values as well
        heat = 255.0 * colormaps["plasma"](unsure[..., 0])[..., :3]
        right = ((1.0 - unsure) * right * _DIMMED + unsure * heat).astype(np.uint8)
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _factors(picture: Slice) -> tuple[int, int]:
    """How often each row and column is repeated, so that the picture is large and has the patient's proportions."""
    down, across = picture.spacing or (1.0, 1.0)
    finest = min(down, across)
    rows, columns = picture.grey.shape
    factor = max(1, -(-_HEIGHT // max(rows, columns)))
    return max(1, round(factor * down / finest)), max(1, round(factor * across / finest))


def _enlarged(values: NDArray[Any], factors: tuple[int, int]) -> NDArray[Any]:
    return values.repeat(factors[0], axis=0).repeat(factors[1], axis=1)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask that touch something else, two pixels wide."""
    inner = mask.copy()
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
