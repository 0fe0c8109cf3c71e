"""Resampling along one axis at a time: from a source's voxel grid to a model's, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """How one axis is sampled: `size` points, `step` source voxels apart, around the same centre as the source's.

    Sample i lies at source voxel (i − (size − 1)/2) · step + (source − 1)/2.
    """

    source: int
    size: int
    step: float

    @property
    def untouched(self) -> bool:
        return self.size == self.source and self.step == 1.0

    @property
    def inverse(self) -> Axis:
        """From this axis' samples back to the source's voxels."""
        return Axis(self.size, self.source, 1.0 / self.step)

    def positions(self) -> NDArray[np.float64]:
        """Where the samples lie, in source voxels."""
        return (np.arange(self.size) - (self.size - 1) / 2.0) * self.step + (self.source - 1) / 2.0

    def weights(self) -> NDArray[np.float32]:
        """`[size, source]`, rows sum to 1: linear interpolation, or a triangle as wide as the step where that is > 1.

        The widened triangle keeps detail too fine for the new grid from turning into false structure; it is what
        Pillow's BILINEAR does. Beyond the edge the outermost voxels count.
        """
        support = max(1.0, self.step)
        distance = np.abs(self.positions()[:, None] - np.arange(self.source)) / support
        weights = np.maximum(0.0, 1.0 - distance)
        shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return shares.astype(np.float32)

    def nearest(self) -> NDArray[np.int64]:
        """`[size]`: the source voxel nearest to each sample."""
        return np.clip(np.rint(self.positions()), 0, self.source - 1).astype(np.int64)


def interpolate(values: NDArray[Any], axes: tuple[Axis, ...]) -> NDArray[np.float32]:
    """`[C, *source]` → `[C, *size]`, linear."""
    result = values.astype(np.float32, copy=False)
    for number, axis in enumerate(axes, start=1):
        if not axis.untouched:
            result = np.moveaxis(np.tensordot(result, axis.weights(), axes=(number, 1)), -1, number)
    return np.ascontiguousarray(result)


def pick_nearest(values: NDArray[Any], axes: tuple[Axis, ...]) -> NDArray[Any]:
    """`[C, *source]` → `[C, *size]`, for labels, which have no values in between."""
    for number, axis in enumerate(axes, start=1):
        values = values if axis.untouched else np.take(values, axis.nearest(), axis=number)
    return np.ascontiguousarray(values)
