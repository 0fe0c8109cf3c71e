"""A picture of no patient: for readiness, and for load where no images are given."""

from __future__ import annotations

import numpy as np
from equipoise_core.contract import Contract
from numpy.typing import NDArray


def synthetic_image(contract: Contract) -> NDArray[np.float32]:
    """`[1, C, *nominal]`: waves over the whole image and a bright ball, so that no layer sees a constant.

    In the range that the contract's preprocessing is made for.
    """
    axes = np.meshgrid(*(np.linspace(-1.0, 1.0, size) for size in contract.nominal), indexing="ij")
    radius = np.sqrt(np.sum(np.square(axes), axis=0))
    waves = np.mean([np.cos(3.0 * (i + 1) * axis + i) for i, axis in enumerate(axes)], axis=0)
    unit = 0.25 + 0.15 * waves + 0.5 * (radius < 0.6)
    low, high = contract.preprocessing.source_range
    image = low + (high - low) * unit
    return np.repeat(image[None, None], contract.image_channels, axis=1).astype(np.float32)
