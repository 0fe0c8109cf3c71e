"""From the source's own intensities to what the network saw in training.

The aggregator does this, and the training scripts call the same functions, so that no client can get it wrong.
Resampling to the contract's spacing is the client's: it alone knows the geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from . import numeric

PADDING_VALUE = -1.0e6
"""Marks voxels outside the image, as DICOM's Pixel Padding Value (0028,0120) does. The sampler's graph replaces them
by `Preprocessing.fill` before the network and leaves them out of every sum over voxels: padding changes no volume."""

NORMALISED_LIMIT = 1.0e4
"""Normalised intensities are clipped to ± this, so that no voxel of an image can be taken for padding."""


class Normalisation(str, Enum):
    """How intensities come to a common scale, channel by channel, with no parameter that depends on the scanner."""

    ZSCORE = "zscore"
    PERCENTILE = "percentile"
    WINDOW = "window"
    IDENTITY = "identity"


@dataclass(frozen=True)
class Preprocessing:
    """What the aggregator does to an image before the sampler sees it.

    Attributes:
        normalisation: `zscore` subtracts the image's mean and divides by its standard deviation; `percentile` maps the
            percentiles (low, high) of the image to 0 and 1; `window` maps the intensities (low, high) to 0 and 1;
            `identity` leaves them alone.
        low, high: percentiles in 0..100 or intensities, see above; unused otherwise.
        multiple: each spatial size is padded at its end to a multiple of this (what the network's pooling asks for).
        fill: the normalised intensity that the network sees in padding.
    """

    normalisation: Normalisation
    low: float = 0.0
    high: float = 0.0
    multiple: int = 1
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.normalisation in (Normalisation.PERCENTILE, Normalisation.WINDOW) and not self.low < self.high:
            raise ValueError(f"{self.normalisation.value} needs low < high; got {self.low} and {self.high}")
        if self.multiple < 1:
            raise ValueError(f"multiple is the divisor of the spatial sizes, at least 1; got {self.multiple}")

    def normalise(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """One image `[C, *S]` in the source's intensities → the same shape in the network's; finite for finite input.

        A constant channel becomes 0 everywhere: it carries nothing to scale by. A channel whose least intensity is
        PADDING_VALUE has padding there: it keeps that value, and takes no part in what the others are scaled by.
        """
        normalised = np.zeros(image.shape, np.float32)
        for channel, result in zip(image, normalised, strict=True):
            given, scaled = channel.reshape(-1), result.reshape(-1)
            least = float(given.min())
            if least != PADDING_VALUE:
                self._normalise(given, scaled, least)
                continue
            inside = given != np.float32(PADDING_VALUE)
            scaled[~inside] = PADDING_VALUE
            if inside.any():
                part = np.zeros(int(inside.sum()), np.float32)
                self._normalise(given[inside], part, float(given[inside].min()))
                scaled[inside] = part
        return normalised

    def _normalise(self, channel: NDArray[np.float32], result: NDArray[np.float32], least: float) -> None:
        """Intensities `[V]`, of which the smallest is `least`, into zeros `[V]`; in double precision until the end."""
        most = float(channel.max())
        if self.normalisation is Normalisation.ZSCORE:
            scaled = channel.astype(np.float64)
            low = numeric.mean(scaled)
            scaled -= low
            span = math.sqrt(numeric.dot(scaled, scaled) / scaled.size)
        else:
            low, high = self.low, self.high
            if self.normalisation is Normalisation.PERCENTILE:
                low, high = numeric.quantiles(channel, (low / 100.0, high / 100.0))
            elif self.normalisation is Normalisation.IDENTITY:
                low, high = 0.0, 1.0
            scaled = np.subtract(channel, low, dtype=np.float64)
            span = high - low
        # Relative to the intensities' own size, so that rounding noise on a constant image is not blown up into one.
        if span <= 1e-7 * max(-least, most, 1e-30):
            return
        scaled /= span
        if max(low - least, most - low) > NORMALISED_LIMIT * span:
            np.clip(scaled, -NORMALISED_LIMIT, NORMALISED_LIMIT, out=scaled)
        result[...] = scaled

    def padded(self, size: tuple[int, ...], at_least: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The spatial sizes that `pad` gives an image of this size."""
        whole = tuple(each + -each % self.multiple for each in size)
        return tuple(max(pair) for pair in zip(whole, at_least, strict=True)) if at_least else whole

    def pad(self, image: NDArray[np.float32], at_least: tuple[int, ...] = ()) -> NDArray[np.float32]:
        """`[C, *S]` → `[C, *S']`, each S' the next multiple of `multiple`; new voxels hold PADDING_VALUE.

        Args:
            at_least: sizes that S' reaches as well.
        """
        padded = self.padded(image.shape[1:], at_least)
        extra = [(0, 0)] + [(0, to - size) for to, size in zip(padded, image.shape[1:], strict=True)]
        if not any(after for _, after in extra):
            return image
        return np.pad(image, extra, constant_values=PADDING_VALUE)

    def filled(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised `[C, *S]` with `fill` in padding: graphs of one fixed size do not fill it in."""
        return np.where(image == np.float32(PADDING_VALUE), np.float32(self.fill), image)


def without_padding(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The smallest box of a normalised image `[C, *S]` that holds all but padding; padding left in it is the mean."""
    if image.size == 0 or float(image.min()) != PADDING_VALUE:
        return image
    outside = (image == np.float32(PADDING_VALUE)).any(axis=0)
    if outside.all():
        return np.zeros_like(image)
    box = [slice(None)]
    for axis in range(outside.ndim):
        there = np.flatnonzero(~outside.all(axis=tuple(other for other in range(outside.ndim) if other != axis)))
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    part, rest = image[tuple(box)].copy(), outside[tuple(box[1:])]
    for channel in part:
        channel[rest] = channel[~rest].mean()
    return part
