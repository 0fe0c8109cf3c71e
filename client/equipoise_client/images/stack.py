"""Planes in space → one volume: their order, spacing and affine, from positions alone.

Reference: DICOM PS3.3 C.7.6.2.1.1 (image plane). Slice Thickness and Spacing Between Slices are never looked at: the
first is no distance, the second is often stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rejections import DuplicatePositions, GantryTilt, MissingSlices, NotOneVolume, UnevenSlices

PARALLEL = 1e-3  # largest difference of direction cosines that still counts as the same orientation
EVEN = 0.05  # largest deviation from the even place, as a share of the usual gap
STRAIGHT = 0.02  # largest sine of the angle between the stack and its slices' normal: 1.1°
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel, even, straight planes.

    Attributes:
        order: for each slice, ascending along the normal, which of the given planes it is.
        spacing: mm between (slices, rows, columns).
        affine: 4×4, (slice, row, column) → mm in RAS+.
    """

    order: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]


def stack(
    positions: Sequence[Sequence[float]], directions: Sequence[Sequence[float]], plane: tuple[float, float]
) -> Stack:
    """The volume that at least two planes make.

    Args:
        positions: Image Position (Patient) `[n][3]`, mm.
        directions: Image Orientation (Patient) `[n][6]`: along a row, then along a column.
        plane: Pixel Spacing, mm between (rows, columns).

    Raises NotOneVolume, DuplicatePositions, MissingSlices, UnevenSlices or GantryTilt.
    """
    order, places, normal = _ordered(positions, directions)
    along_row, along_column = normal_axes(directions[0])
    step = (places[-1] - places[0]) / (len(places) - 1)
    usual = float(step @ normal)
    if np.linalg.norm(step - normal * usual) > STRAIGHT * np.linalg.norm(step):
        angle = np.degrees(np.arccos(np.clip(usual / np.linalg.norm(step), -1.0, 1.0)))
        raise GantryTilt(f"by {angle:.1f} degrees; resample them to a straight volume")
    off = np.linalg.norm(places - (places[0] + np.arange(len(places))[:, None] * step), axis=1)
    if off.max() > EVEN * usual:
        raise UnevenSlices(f"one lies {off.max():.3g} mm off its place; expected one volume with even gaps")
    affine = np.eye(4)
    # Axes are (slice, row, column): a step in the row index goes along the column's direction.
    affine[:3, :3] = np.stack([step, along_column * plane[0], along_row * plane[1]], axis=1) * _LPS_TO_RAS[:, None]
    affine[:3, 3] = places[0] * _LPS_TO_RAS
    return Stack(order, (float(np.linalg.norm(step)), *plane), affine)


def order_of(positions: Sequence[Sequence[float]], directions: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The order along the normal alone, for planes whose pixel spacing is not known; raises as `stack` does."""
    return _ordered(positions, directions)[0]


def normal_axes(direction: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row and along a column, in LPS."""
    along_row, along_column = np.array(direction[:3], np.float64), np.array(direction[3:], np.float64)
    lengths = float(np.linalg.norm(along_row)), float(np.linalg.norm(along_column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(along_row @ along_column))) > 1e-2:
        raise NotOneVolume("its direction cosines are not two perpendicular unit vectors")
    return along_row / lengths[0], along_column / lengths[1]


def _ordered(
    positions: Sequence[Sequence[float]], directions: Sequence[Sequence[float]]
) -> tuple[tuple[int, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Order, positions in that order, and the normal; gaps are even."""
    if np.ptp(np.array(directions, np.float64), axis=0).max() > PARALLEL:
        raise NotOneVolume("they are not parallel; expected one volume: split it")
    normal = np.cross(*normal_axes(directions[0]))
    places = np.array(positions, np.float64)
    if not np.isfinite(places).all():
        raise NotOneVolume("a position is not finite")
    depths = places @ normal
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order])
    usual = float(np.median(gaps))
    range_of_gaps = f"they are {gaps.min():.3g} to {gaps.max():.3g} mm apart; expected one volume with even gaps"
    if gaps.min() <= EVEN * gaps.max():
        raise DuplicatePositions(f"{range_of_gaps}: split time points or echoes")
    if gaps.max() >= 1.5 * usual:
        raise MissingSlices(range_of_gaps)
    if np.abs(gaps - usual).max() > EVEN * usual:
        raise UnevenSlices(range_of_gaps)
    return tuple(int(index) for index in order), places[order], normal
