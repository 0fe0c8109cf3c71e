"""Images larger than the network's window: overlapping windows, stitched sample by sample.

A sample is one network: all windows are run under the same masks, and its map is the windows' weighted mean (Gaussian
weights, as in MONAI's sliding window inference). Only then does it enter the moments, which are therefore exact. The
price is that the trunk is computed again for every sample: the moments of single windows cannot be stitched, because
neither p² nor the entropy is linear in p, and keeping all T maps would let memory grow with T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from .moments import Array

OVERLAP = 0.25
"""Share of a window that the next one covers again; MONAI's default."""

SIGMA = 0.125
"""Standard deviation of the weights, as a share of the window; MONAI's `sigma_scale`."""


@dataclass(frozen=True)
class Tiling:
    """Windows over an image.

    Attributes:
        size: spatial sizes of the (padded) image, none smaller than the window's.
        window: spatial sizes of each window.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.size) != len(self.window) or any(s < w for s, w in zip(self.size, self.window, strict=True)):
            raise ValueError(f"windows of {self.window} do not fit an image of {self.size}: pad it first")

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Of each window, evenly spread: neighbours overlap by at least `OVERLAP`, the last one ends with the image."""
        return tuple(product(*(_starts(s, w) for s, w in zip(self.size, self.window, strict=True))))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """`[*window]`, 1 in the middle, falling to the edges, > 0."""
        axes = [np.exp(-0.5 * ((np.arange(w) - (w - 1) / 2) / (SIGMA * w)) ** 2) for w in self.window]
        weights = np.ones(())
        for axis in axes:
            weights = weights[..., None] * axis
        return np.maximum(weights, 1e-3).astype(np.float32)

    @cached_property
    def coverage(self) -> NDArray[np.float32]:
        """`[*size]`: the sum of all windows' weights."""
        total = np.zeros(self.size, np.float32)
        for start in self.starts:
            total[self._slices(start)] += self.weights
        return total

    def windows(
        self, image: NDArray[np.float32], batch: int
    ) -> Iterator[tuple[tuple[tuple[int, ...], ...], NDArray[np.float32]]]:
        """Up to `batch` windows at a time: their starts, and `[n, C, *window]`."""
        for first in range(0, len(self.starts), batch):
            starts = self.starts[first : first + batch]
            yield starts, np.stack([image[(slice(None), *self._slices(start))] for start in starts])

    def stitch(self, image: NDArray[np.float32], batch: int, run: Callable[[NDArray[np.float32]], Array]) -> Array:
        """One sample's map `[K, *size]`.

        Args:
            image: `[C, *size]`, normalised and padded.
            batch: windows per call of `run`.
            run: windows `[n, C, *window]` → probabilities `[n, K, *window]` under the sample's masks.
        """
        stitched: NDArray[np.float32] | None = None
        for starts, windows in self.windows(image, batch):
            for start, p in zip(starts, run(windows), strict=True):
                if stitched is None:
                    stitched = np.zeros((len(p), *self.size), np.float32)
                stitched[(slice(None), *self._slices(start))] += p * self.weights
        assert stitched is not None
        return np.divide(stitched, self.coverage, out=stitched)

    def _slices(self, start: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(s, s + w) for s, w in zip(start, self.window, strict=True))


def _starts(size: int, window: int) -> list[int]:
    count = 1 + max(0, -(-(size - window) // max(1, int(window * (1.0 - OVERLAP)))))
    return [round(i * (size - window) / max(1, count - 1)) for i in range(count)]
