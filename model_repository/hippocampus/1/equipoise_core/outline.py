"""Where the true outline lies: between a shrunken and a grown mask, by margins that calibration cases stated.

Conformal prediction over nested masks (Mossina & Friedrich 2025, arXiv 2503.05618; arXiv 2511.15406): the masks are the
erosions and dilations of the predicted foreground by balls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Activation, Contract

OUTSIDE, BETWEEN, INSIDE = 0, 1, 2
"""Of a voxel: surely not foreground; the outline may run here; surely foreground."""

_SLACK = 1e-6  # of a squared distance, relative: a margin is a distance between voxels, and is met exactly


@dataclass(frozen=True)
class OutlineRule:
    """With probability `level` all foreground lies in the outer mask, and the inner mask lies in the foreground.

    Foreground: all classes but the background together.

    Attributes:
        level: 0..1, over new cases that are like the calibration cases, on average over calibrations.
        inner, outer: margins, ≥ 0, in mm, or in voxels where the contract knows no spacing.
        cases: how many they rest on.
        rule: how they were chosen, in words.
    """

    level: float
    inner: float
    outer: float
    cases: int
    rule: str

    def __post_init__(self) -> None:
        if not (0.0 < self.level < 1.0 and 0.0 <= self.inner < np.inf and 0.0 <= self.outer < np.inf):
            raise ValueError(f"margins are finite and at least 0, a level lies between 0 and 1; got {vars(self)}")


def parse_outline(document: Mapping[str, Any]) -> OutlineRule:
    """Raises ValueError for margins that cannot be."""
    level, inner, outer = (float(document[name]) for name in ("level", "inner", "outer"))
    return OutlineRule(level, inner, outer, int(document["cases"]), str(document["rule"]))


def foreground_of(contract: Contract, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """`[E, *S]` labels → voxels `[*S]` of any class but the background."""
    if contract.activation is Activation.SOFTMAX:
        return np.isin(labels[0], contract.foreground)
    return np.asarray(labels[list(contract.foreground)].any(axis=0))


def band(
    foreground: NDArray[np.bool_], inner: float, outer: float, spacing: Sequence[float] | None
) -> NDArray[np.uint8]:
    """`[*S]` of `OUTSIDE`, `BETWEEN`, `INSIDE`.

    Args:
        foreground: the predicted mask `[*S]`.
        inner, outer: see `OutlineRule`.
        spacing: mm per axis; None: margins are in voxels.
    """
    voxel = tuple(spacing) if spacing is not None else (1.0,) * foreground.ndim
    return grown(foreground, outer, voxel).astype(np.uint8) + shrunken(foreground, inner, voxel)


def grown(mask: NDArray[np.bool_], radius: float, voxel: Sequence[float]) -> NDArray[np.bool_]:
    """Voxels within `radius` of the mask, itself included. Beyond the image nothing is known, and nothing is added."""
    if not mask.any():
        return mask
    found = np.zeros_like(mask)
    reach = [int(radius / size * (1.0 + _SLACK)) for size in voxel]
    sides = [
        np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)
    ]
    near = tuple(
        slice(max(0, int(side[0]) - far), int(side[-1]) + far + 1) for side, far in zip(sides, reach, strict=True)
    )
    squared = np.where(mask[near], np.float32(0.0), np.float32(np.inf))
    for axis, (size, far) in enumerate(zip(voxel, reach, strict=True)):  # squared distances add up axis by axis
        before, squared = squared, squared.copy()
        for step in range(1, min(far, before.shape[axis] - 1) + 1):
            for ahead in (slice(step, None), slice(None, -step)):
                behind = slice(None, -step) if ahead.start else slice(step, None)
                at, of = ((slice(None),) * axis + (part,) for part in (ahead, behind))
                squared[at] = np.minimum(squared[at], before[of] + np.float32((step * size) ** 2))
    found[near] = squared <= radius**2 * (1.0 + _SLACK)
    return found


def shrunken(mask: NDArray[np.bool_], radius: float, voxel: Sequence[float]) -> NDArray[np.bool_]:
    """Voxels of the mask that are further than `radius` from every voxel outside of it. The image's border is none."""
    return mask & ~grown(~mask, radius, voxel) if radius > 0.0 else mask
