"""Statistics of input and prediction, which show that an image is not of the kind the model knows.

Those of the input look at the normalised image: none depends on the scanner's intensity scale, and a change of
brightness or contrast alone moves none. What they say together is one distance, see `ood_distance`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Task
from .texture import texture_statistics

Array = NDArray[np.floating[Any]]

SIMPLE = ("roughness", "noise", "skewness", "kurtosis")
"""Names of `simple_statistics`."""


def input_statistics(image: NDArray[np.float32]) -> dict[str, float]:
    """All statistics of a normalised, unpadded image `[C, *S]`, by name."""
    return {**simple_statistics(image), **texture_statistics(image)}


def simple_statistics(image: NDArray[np.float32]) -> dict[str, float]:
    """Normalised, unpadded image `[C, *S]` → finite numbers by name.

    - `roughness`: mean absolute difference of neighbours over the standard deviation (≥ 0; noise raises it, blur
      lowers it).
    - `noise`: median absolute second difference over the standard deviation (≥ 0; texture and edges move it less).
    - `skewness`, `kurtosis`: third and fourth standardised moments of the intensities (no unit; kurtosis ≥ 1).
    """
    wide = image.astype(np.float64)
    centred = wide - wide.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    if deviation == 0.0:
        return {"roughness": 0.0, "noise": 0.0, "skewness": 0.0, "kurtosis": 1.0}
    standard = centred / deviation
    squared = standard * standard  # NumPy's powers above 2 take twenty times as long as products
    first = [np.abs(np.diff(standard, axis=axis)).mean() for axis in _axes_of(standard, 2)]
    second = [np.median(np.abs(np.diff(standard, n=2, axis=axis))) for axis in _axes_of(standard, 3)]
    return {
        "roughness": float(np.mean(first)) if first else 0.0,
        "noise": float(np.mean(second)) if second else 0.0,
        "skewness": float((squared * standard).mean()),
        "kurtosis": float((squared * squared).mean()),
    }


def _axes_of(image: Array, smallest: int) -> list[int]:
    return [axis for axis in range(1, image.ndim) if image.shape[axis] >= smallest]


def prediction_statistics(contract: Contract, mean: Array) -> dict[str, float]:
    """Mean probabilities `[K, *S]` → numbers by name; none for classification.

    - `foreground_share`: mean over voxels of the foreground's probability, all classes together (0..K). Samples can
      agree on nonsense: of bright H&E tissue the fluorescence model takes nearly all for nuclei, and is sure of it.

    Like scores, and unlike statistics of the input, they move as samples are added.
    """
    if contract.task is Task.CLASSIFICATION:
        return {}
    return {"foreground_share": float(mean[list(contract.foreground)].sum(axis=0, dtype=np.float64).mean())}
