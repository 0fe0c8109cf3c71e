"""Statistics of input and prediction, which show that an image is not of the kind the model knows.

Those of the input look at the normalised image: none depends on the scanner's intensity scale, and a change of
brightness or contrast alone moves none. What they say together is one distance, see `ood_distance`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numeric
from .contract import Contract
from .preprocessing import without_padding
from .texture import FLOOR, difference, lines, standardised, texture_of

Array = NDArray[np.floating[Any]]

SIMPLE = ("roughness", "noise", "skewness", "kurtosis")
"""Names of `simple_statistics`."""


def input_statistics(image: NDArray[np.float32]) -> dict[str, float]:
    """All statistics of a normalised image `[C, *S]`, not padded to a multiple, by name; the source's own padding takes
    no part."""
    x, deviation = standardised(without_padding(image))
    return {**_simple(x, deviation), **texture_of(x)}


def simple_statistics(image: NDArray[np.float32]) -> dict[str, float]:
    """Normalised, unpadded image `[C, *S]` → finite numbers by name.

    - `roughness`: mean absolute difference of neighbours over the standard deviation (≥ 0; noise raises it, blur
      lowers it).
    - `noise`: median absolute second difference over the standard deviation (≥ 0; texture and edges move it less).
      Both along each axis, on average; of an image of more than some 16,000 voxels on evenly spread lines.
    - `skewness`, `kurtosis`: third and fourth standardised moments of the intensities (no unit; kurtosis ≥ 1).
    """
    return _simple(*standardised(image))


def _simple(x: Array, deviation: float) -> dict[str, float]:
    """Of a standardised image and what its deviation was."""
    if deviation <= FLOOR:
        return {"roughness": 0.0, "noise": 0.0, "skewness": 0.0, "kurtosis": 1.0}
    first, second = [], []
    for axis in range(1, x.ndim):
        if x.shape[axis] > 1:
            differences = difference(lines(x, axis), axis)
            if x.shape[axis] > 2:
                second.append(numeric.median(np.abs(difference(differences, axis))))
            first.append(numeric.mean(np.abs(differences, out=differences)))
    squared = x * x  # NumPy's powers above 2 take twenty times as long as products
    return {
        "roughness": sum(first) / len(first) if first else 0.0,
        "noise": sum(second) / len(second) if second else 0.0,
        "skewness": numeric.dot(squared, x) / x.size,
        "kurtosis": numeric.dot(squared, squared) / x.size,
    }


def prediction_statistics(contract: Contract, mean: Array) -> dict[str, float]:
    """Mean probabilities `[K, *S]` → numbers by name; none where there are no voxels.

    - `foreground_share`: mean over voxels of the foreground's probability, all classes together (0..K). Samples can
      agree on nonsense: of bright H&E tissue the fluorescence model takes nearly all for nuclei, and is sure of it.

    Like scores, and unlike statistics of the input, they move as samples are added.
    """
    if not contract.per_voxel:
        return {}
    foreground = mean[len(mean) - len(contract.foreground) :]
    return {"foreground_share": numeric.total(foreground) / mean[0].size}
