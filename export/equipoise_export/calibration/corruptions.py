"""What makes an image worse, by name: to compare models on, and to see what a recalibration is worth there.

Images are `[C, *S]` in the source's intensities. Labels stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from equipoise_core.contract import Contract
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]


def rician(image: Image, level: float, random: np.random.Generator) -> Image:
    """Magnitude of signal plus complex Gaussian noise, as in MR images (Gudbjartsson & Patz 1995).

    Args:
        level: of the noise, in standard deviations of the image.
    """
    real, imaginary = random.normal(0.0, level * float(image.std()), (2, *image.shape))
    return np.hypot(image + real, imaginary).astype(np.float32)


def gaussian(image: Image, level: float, random: np.random.Generator) -> Image:
    """Additive noise; `level` as for `rician`."""
    return (image + random.normal(0.0, level * float(image.std()), image.shape)).astype(np.float32)


def blurred(image: Image, sigma: float) -> Image:
    """Gaussian smoothing along the spatial axes; `sigma` in voxels."""
    return np.asarray(ndimage.gaussian_filter(image, (0.0, *[sigma] * (image.ndim - 1)), mode="nearest"), np.float32)


def ghosted(image: Image, level: float, axis: int = 1, every: int = 2) -> Image:
    """Every `every`-th line of k-space along an axis is weaker by `level` (0..1): periodic motion in MR.

    Its ghosts, `every − 1` of them, have `level/every` of the image's intensity each.
    """
    spectrum = np.fft.fft(image, axis=axis)
    weight = np.ones(image.shape[axis])
    weight[every // 2 :: every] -= level
    shape = [1] * image.ndim
    shape[axis] = -1
    return np.abs(np.fft.ifft(spectrum * weight.reshape(shape), axis=axis)).astype(np.float32)


def bent(image: Image, gamma: float) -> Image:
    """Another contrast: intensities between the image's least and greatest to the power of `gamma`, above 1 darker."""
    low, reach = float(image.min()), float(np.ptp(image))
    if reach == 0.0:
        return image
    return np.asarray(low + reach * ((image - low) / reach) ** gamma, np.float32)


@dataclass(frozen=True)
class Corruption:
    """One that has a name, and the strengths that it is looked at with.

    Attributes:
        name: in words; {strength} is put in.
        strengths: a mild one, that another machine might have, and one that can be seen.
        apply: image, strength, randomness → image.
        of: whether it occurs in images of these DICOM modalities.
    """

    name: str
    strengths: tuple[float, ...]
    apply: Callable[[Image, float, np.random.Generator], Image]
    of: Callable[[tuple[str, ...]], bool] = lambda modalities: True


def _is_mr(modalities: tuple[str, ...]) -> bool:
    return "MR" in modalities


CORRUPTIONS = (
    Corruption("noise of {strength} sd", (0.1, 0.3), gaussian, lambda modalities: not _is_mr(modalities)),
    Corruption("Rician noise of {strength} sd", (0.1, 0.3), rician, _is_mr),
    Corruption("ghosting of {strength}", (0.1, 0.3), lambda image, level, _: ghosted(image, level), _is_mr),
    Corruption("blur of {strength} voxels", (0.7, 1.5), lambda image, sigma, _: blurred(image, sigma)),
    Corruption("contrast of gamma {strength}", (0.7, 1.5), lambda image, gamma, _: bent(image, gamma)),
)
"""All of them: a new one is a line."""


def corruptions_of(contract: Contract) -> list[tuple[str, Callable[[Image, np.random.Generator], Image]]]:
    """Each that can occur in a model's images, at each of its strengths: (name, what makes an image so)."""

    def at(each: Corruption, strength: float) -> Callable[[Image, np.random.Generator], Image]:
        return lambda image, random: each.apply(image, strength, random)

    return [
        (each.name.format(strength=f"{strength:g}"), at(each, strength))
        for each in CORRUPTIONS
        if each.of(contract.modalities)
        for strength in each.strengths
    ]
