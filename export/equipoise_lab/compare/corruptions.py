"""Noisy images, to compare models on. `[C, *S]` in the source's intensities; levels in standard deviations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def rician(image: Image, level: float, random: np.random.Generator) -> Image:
    """Magnitude of signal plus complex Gaussian noise, as in MR images (Gudbjartsson & Patz 1995)."""
    real, imaginary = random.normal(0.0, level * float(image.std()), (2, *image.shape))
    return np.hypot(image + real, imaginary).astype(np.float32)


def gaussian(image: Image, level: float, random: np.random.Generator) -> Image:
    """Additive noise."""
    return (image + random.normal(0.0, level * float(image.std()), image.shape)).astype(np.float32)
