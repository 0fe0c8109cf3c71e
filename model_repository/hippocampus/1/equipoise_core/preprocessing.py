"""From the source's own intensities to what the network saw in training.

The aggregator does this, and the training scripts call the same functions, so that no client can get it wrong.
Resampling to the contract's spacing is the client's: it alone knows the geometry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .steps import Ends, Rgb, ScalePercentiles, ScaleRange, Step, ZScore, parse_steps, read_step, spelled, step_document

PADDING_VALUE = -1.0e6
"""Marks voxels outside the image, as DICOM's Pixel Padding Value (0028,0120) does. The sampler's graph replaces them
by `Preprocessing.fill` before the network and leaves them out of every sum over voxels: padding changes no volume."""

NORMALISED_LIMIT = 1.0e4
"""Normalised intensities are clipped to ± this, so that no voxel of an image can be taken for padding."""


@dataclass(frozen=True)
class Preprocessing:
    """What the aggregator does to an image before the sampler sees it.

    Attributes:
        steps: what happens to intensities, in order; none: they are taken as they are.
        multiple: each spatial size is padded at its end to a multiple of this (what the network's pooling asks for).
        fill: the normalised intensity that the network sees in padding.
        intensities: lowest and highest of the images that the network was exported with; None: as the steps say.
        unused: two numbers beside `zscore` or `identity` in earlier contracts. They mean nothing, but the digest covers
            them.
    """

    steps: tuple[Step, ...] = ()
    multiple: int = 1
    fill: float = 0.0
    intensities: Ends | None = None
    unused: Ends = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple is the divisor of the spatial sizes, at least 1; got {self.multiple}")
        if self.intensities is not None and not -math.inf < self.intensities[0] < self.intensities[1] < math.inf:
            raise ValueError(f"intensities are the lowest and the highest, below each other; got {self.intensities}")

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Preprocessing:
        """From a contract. Raises ValueError, KeyError or TypeError where it is none."""
        given = dict(document)
        if "steps" in given:
            given["steps"] = tuple(map(read_step, given["steps"]))
        else:
            name, low, high = given.pop("normalisation"), given.pop("low"), given.pop("high")
            given["steps"] = named(name, low, high)
            if name not in _WITH_ENDS:
                given["unused"] = (low, high)
        if given.get("intensities") is not None:
            given["intensities"] = tuple(given["intensities"])
        return cls(**given)

    def document(self) -> dict[str, Any]:
        """As a contract states it: what can be said by one of four names is."""
        name, (low, high) = "", self.unused
        match self.steps:
            case ():
                name = "identity"
            case (ZScore(nonzero=False, together=False),):
                name = "zscore"
            case (ScalePercentiles(low, high, 0.0, 1.0, clip=False, together=False),):
                name = "percentile"
            case (ScaleRange(low, high, 0.0, 1.0, clip=False),):
                name = "window"
        said = {"normalisation": name, "low": low, "high": high} if name else {}
        stated = said or {"steps": [step_document(step) for step in self.steps]}
        seen = {} if self.intensities is None else {"intensities": list(self.intensities)}
        return {**stated, "multiple": self.multiple, "fill": self.fill, **seen}

    def image_channels(self, channels: int) -> int:
        """Channels of the image that comes, where the network takes so many.

        Raises ValueError where the steps do not fit them.
        """
        given = 1 if any(isinstance(step, Rgb) for step in self.steps) else channels
        result = given
        for step in self.steps:
            result = step.check(result)
        if result != channels:
            raise ValueError(f"{spelled(self.steps)} gives {result} channels; the network takes {channels}")
        return given

    @property
    def source_range(self) -> Ends:
        """Lowest and highest intensity that an image may be made up with."""
        if self.intensities is not None:
            return self.intensities
        return next((step.made_for for step in self.steps if step.made_for is not None), (0.0, 1.0))

    def normalised_range(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What becomes of `source_range` in each of the network's channels: `[C]`, `[C]`."""
        low, high = (np.full(self.image_channels(channels), end, np.float64) for end in self.source_range)
        for step in self.steps:
            low, high = step.ends(low, high)
        return np.minimum(low, high), np.maximum(low, high)

    def normalise(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """One image `[C, *S]` in the source's intensities → `[C', *S]` in the network's; finite for finite input.

        In double precision until the end. A voxel of PADDING_VALUE in any channel is padding: it keeps that value in
        all of them, and takes no part in what the others are scaled by.
        """
        values: NDArray[np.floating[Any]] = image.reshape(len(image), -1)
        inside = None
        if values.size and float(values.min()) == PADDING_VALUE:
            inside = (values != np.float32(PADDING_VALUE)).all(axis=0)
            values = values[:, inside]
        if values.size:
            for step in self.steps:
                values = step.apply(values)
        part = values.astype(np.float32)
        if part.size and max(-float(part.min()), float(part.max())) > NORMALISED_LIMIT:
            np.clip(part, -NORMALISED_LIMIT, NORMALISED_LIMIT, out=part)
        if inside is None:
            return part.reshape(-1, *image.shape[1:])
        whole = np.full((len(part), inside.size), PADDING_VALUE, np.float32)
        whole[:, inside] = part
        return whole.reshape(-1, *image.shape[1:])

    def pad(self, image: NDArray[np.float32], to: tuple[int, ...] = ()) -> NDArray[np.float32]:
        """`[C, *S]` → `[C, *S']`, each S' as stated, or the next multiple of `multiple`; new voxels: PADDING_VALUE."""
        size = image.shape[1:]
        padded = to or tuple(each + -each % self.multiple for each in size)
        extra = [(0, 0)] + [(0, whole - given) for whole, given in zip(padded, size, strict=True)]
        if not any(after for _, after in extra):
            return image
        return np.pad(image, extra, constant_values=PADDING_VALUE)

    def filled(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised `[C, *S]` with `fill` in padding: graphs of one fixed size do not fill it in."""
        return np.where(image == np.float32(PADDING_VALUE), np.float32(self.fill), image)


_WITH_ENDS = {"percentile": ScalePercentiles, "window": ScaleRange}
NAMES = ("zscore", *_WITH_ENDS, "identity")
"""Names of what is one step or none; `window` and `percentile` have two ends, and nothing is clipped."""


def named(name: str, low: float, high: float) -> tuple[Step, ...]:
    """The steps of one of NAMES. Raises ValueError."""
    if name not in NAMES:
        raise ValueError(f"normalisation {name!r}: expected {' or '.join(NAMES)}")
    return (_WITH_ENDS[name](low, high),) if name in _WITH_ENDS else parse_steps(name)


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
