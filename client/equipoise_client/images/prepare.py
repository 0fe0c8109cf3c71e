"""`fit`: what a file holds → what a model takes; and the way back, for maps and for the decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import numpy as np
from equipoise_core.contract import Contract
from equipoise_core.preprocessing import PADDING_VALUE
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..prediction import Prediction
from .grid import Axis, interpolate, pick_nearest
from .header import judged
from .source import MAX_VALUES, Kind, SourceImage

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, ITU-R BT.601-7, as Pillow's mode "L" has them."""

COARSEST = 1.01
"""A source coarser than the model was made for (rounding apart) is interpolated, but never accepted: what the network
would need to see is not in it."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image in a model's grid.

    Attributes:
        source: the image it was made from.
        pixels: float32 `[C, *S]`, in the source's intensities (normalising is the server's).
        spacing: mm per axis of S, or None where the source does not say.
        doubts: reasons for which the answer must not be accepted, whatever the server says.
        contradictions: reasons for which it must be rejected.
        order: for each axis of S, which axis of the source it is.
        flipped: for each axis of S, whether it runs against the source's.
        grid: for each axis of S, how it was sampled.
    """

    source: SourceImage
    pixels: NDArray[np.float32]
    spacing: tuple[float, ...] | None
    doubts: tuple[str, ...]
    contradictions: tuple[str, ...]
    order: tuple[int, ...]
    flipped: tuple[bool, ...]
    grid: tuple[Axis, ...]

    def judge(self, prediction: Prediction) -> Prediction:
        """The prediction, held back where something speaks against the image; never the other way.

        Its labels and maps are 0 in padding: there is no image to say anything about.
        """
        if self.source.padding is not None:
            prediction = prediction.blanked((self.pixels == np.float32(PADDING_VALUE)).any(axis=0))
        if self.contradictions:
            return prediction.rejected("; ".join((*self.contradictions, *self.doubts)))
        return prediction.at_most_review("; ".join(self.doubts)) if self.doubts else prediction

    def to_source(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Maps `[E, *S]` → the source's grid and order of axes: integers by nearest voxel, others linearly.

        They are 0 in padding.
        """
        back = tuple(axis.inverse for axis in self.grid)
        restored = interpolate(maps, back) if maps.dtype.kind == "f" else pick_nearest(maps, back)
        turned = np.flip(restored, [axis + 1 for axis, turn in enumerate(self.flipped) if turn])
        maps = np.ascontiguousarray(np.transpose(turned, (0, *(1 + int(axis) for axis in np.argsort(self.order)))))
        return maps if self.source.padding is None else np.where(self.source.padding, maps.dtype.type(0), maps)


def fit(image: SourceImage, contract: Contract) -> Prepared:
    """Turns, resamples and converts an image to what the contract asks for.

    - Axes are turned to the contract's orientation, where the file states its own.
    - An axis of fixed size is resized to it (to the nominal size, as is an image without physical scale that is seen as
      a whole).
    - Otherwise an axis whose spacing is outside the contract's range is resampled to the geometric middle of the range.
    - Colour becomes grey by `LUMA` for a model with one channel; grey is repeated for one with three.

    Raises InvalidInput where the image cannot be what the model takes.
    """
    pixels = _channels(image, contract)
    order, flipped = _turns(image, contract)
    turned = turn(pixels, order, flipped)
    padding = None if image.padding is None else turn(image.padding[None], order, flipped)[0]
    spacing = None if image.spacing is None else tuple(image.spacing[axis] for axis in order)
    grid = tuple(_axis(contract, number, size, spacing) for number, size in enumerate(turned.shape[1:]))
    if prod(axis.size for axis in grid) * contract.image_channels > MAX_VALUES:
        raise InvalidInput(
            f"at the spacing that {contract.name} expects the image would have {[axis.size for axis in grid]} voxels, "
            "more than one request carries: crop it to the region of interest"
        )
    doubts, contradictions = judged(image.header, contract)
    return Prepared(
        image,
        _resampled(turned, padding, grid),
        None if spacing is None else tuple(mm * axis.step for mm, axis in zip(spacing, grid, strict=True)),
        (*doubts, *_doubts(image, contract, spacing, grid)),
        tuple(contradictions),
        order,
        flipped,
        grid,
    )


def _resampled(
    pixels: NDArray[np.float32], padding: NDArray[np.bool_] | None, grid: tuple[Axis, ...]
) -> NDArray[np.float32]:
    """Interpolated; padding takes no part in it, and is PADDING_VALUE after it, as the server knows it."""
    if padding is None:
        return interpolate(pixels, grid)
    inside = interpolate((~padding).astype(np.float32)[None], grid)
    values = interpolate(np.where(padding, np.float32(0), pixels), grid) / np.maximum(inside, np.float32(0.5))
    return np.where(inside > 0.5, values, np.float32(PADDING_VALUE))


def turn(values: NDArray[Any], order: tuple[int, ...], flipped: tuple[bool, ...]) -> NDArray[Any]:
    """`[C, *S]` of a source with its axes as `Prepared` says."""
    ordered = np.transpose(values, (0, *(1 + axis for axis in order)))
    return np.flip(ordered, [axis + 1 for axis, turned in enumerate(flipped) if turned])


def with_spacing(image: SourceImage, spacing: tuple[float, ...] | None) -> SourceImage:
    """The image with the caller's spacing where it has none of its own."""
    if spacing is None or image.spacing is not None:
        return image
    return dataclasses.replace(image, spacing=spacing)


def _channels(image: SourceImage, contract: Contract) -> NDArray[np.float32]:
    """`[C, *S]` with the contract's C."""
    pixels = image.pixels
    if image.kind is Kind.ARRAY and contract.image_channels == 1 and pixels.ndim == contract.rank:
        pixels = pixels[None]  # an array of one channel need not say so
    if pixels.ndim != contract.rank + 1:
        raise InvalidInput(
            f"the image has {pixels.ndim - 1} axes, {list(pixels.shape[1:])}; {contract.name} takes {contract.rank}: "
            + (_wanted(image) if contract.rank > pixels.ndim - 1 else "give one plane of it")
        )
    if image.spacing is not None and len(image.spacing) != contract.rank:
        raise InvalidInput(f"spacing is {image.spacing}; expected {contract.rank} numbers in mm, one for each axis")
    if len(pixels) == contract.image_channels:
        return pixels
    if image.kind is not Kind.ARRAY and len(pixels) == 3 and contract.image_channels == 1:
        return np.tensordot(np.array([LUMA], np.float32), pixels, axes=1)
    if image.kind is not Kind.ARRAY and len(pixels) == 1 and contract.image_channels == 3:
        return np.repeat(pixels, 3, axis=0)
    raise InvalidInput(f"the image has {len(pixels)} channels; {contract.name} expects {contract.image_channels}")


def _wanted(image: SourceImage) -> str:
    one = image.kind is Kind.DICOM
    return "name the folder that holds all slices of the series" if one else "give the whole volume in one file"


def _turns(image: SourceImage, contract: Contract) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Order of axes and flips that bring the image to the contract's orientation; none where either is not known."""
    rank = contract.rank
    if image.affine is None or contract.orientation is None or rank != 3:
        return tuple(range(rank)), (False,) * rank
    directions = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    free = [0, 1, 2]
    wanted = ["RAS".find(letter) if letter in "RAS" else "LPI".find(letter) for letter in contract.orientation]
    # The clearest axis first, so that an oblique volume never has one axis taken twice.
    chosen: dict[int, int] = {}
    for target in sorted(range(3), key=lambda t: -np.abs(directions[wanted[t]]).max()):
        chosen[target] = max(free, key=lambda axis: abs(directions[wanted[target], axis]))
        free.remove(chosen[target])
    order = (chosen[0], chosen[1], chosen[2])
    pairs = zip(directions[wanted, order], contract.orientation, strict=True)
    return order, tuple(bool((towards < 0) == (letter in "RAS")) for towards, letter in pairs)


def _axis(contract: Contract, number: int, size: int, spacing: tuple[float, ...] | None) -> Axis:
    extent = contract.spatial[number]
    if not contract.per_voxel and contract.spacing is None:
        extent = extent if isinstance(extent, int) else contract.nominal[number]
    if isinstance(extent, int):
        return Axis(size, extent, size / extent)
    if spacing is None or contract.spacing is None:
        return Axis(size, size, 1.0)
    low, high = contract.spacing[number]
    if low <= spacing[number] <= high:
        return Axis(size, size, 1.0)
    step = sqrt(low * high) / spacing[number]
    return Axis(size, max(1, round(size / step)), step)


def _doubts(
    image: SourceImage, contract: Contract, spacing: tuple[float, ...] | None, grid: tuple[Axis, ...]
) -> Iterator[str]:
    """Why an answer about this image must not be accepted."""
    yield from image.doubts
    if contract.orientation is not None and image.affine is None and image.kind in (Kind.NIFTI, Kind.DICOM):
        yield f"the file does not state its orientation, {contract.name} expects {contract.orientation}"
    if contract.image_channels == 1 and len(image.pixels) == 3 and image.kind is not Kind.ARRAY:
        red, green, blue = image.pixels
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            yield f"colour given, {contract.name} expects grey"
    for mm, (_, high) in zip(spacing or (), contract.spacing or (), strict=False):
        if mm > COARSEST * high:
            yield f"voxels of {mm:.3g} mm given, {contract.name} was made for at most {high:g} mm"
    resized = [isinstance(extent, int) or contract.spacing is None for extent in contract.spatial]
    if any(axis.step < 1 for axis, free in zip(grid, resized, strict=True) if free):
        given, seen = ([getattr(axis, name) for axis in grid] for name in ("source", "size"))
        yield f"size {given} was enlarged to {seen}, what {contract.name} sees: detail that it needs is not in it"
    if image.padding is not None and 2 * int(np.count_nonzero(image.padding)) > image.padding.size:
        yield "more than half of the image is padding"
