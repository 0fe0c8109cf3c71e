"""Raw images through both sides: the training's own preprocessing, and the contract's steps by the server's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from equipoise_core.contract import Contract
from equipoise_core.steps import spelled
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import ProofRefused
from .parity import Check

Transform = Callable[[Tensor], ArrayLike | Tensor]
"""One raw image `[C, *S]` → the normalised one `[C', *S]`."""

_LIMIT = 1e-4
"""Of the largest normalised intensity, or of 1: single precision on one side, double on the other."""
_LARGEST = 48  # per axis: intensities do not depend on the size


def compare_preprocessing(contract: Contract, transform: Transform) -> Check:
    """The largest difference over raw images, relative to the largest normalised intensity where that is above 1.

    Raises:
        ProofRefused: the transform fails on a raw image, or gives another shape.
    """
    preprocessing, worst = contract.preprocessing, 0.0
    for raw in raw_images(contract):
        try:
            theirs = np.asarray(transform(torch.from_numpy(raw.copy())), np.float64)
        except Exception as error:
            raise ProofRefused(
                f"it fails on a raw image {list(raw.shape)}: {type(error).__name__}: {error}",
                "the training's preprocessing",
                "It has to take a tensor [C, *S] of raw intensities.",
            ) from error
        ours = preprocessing.normalise(raw).astype(np.float64)
        if theirs.shape != ours.shape:
            raise ProofRefused(
                f"of an image {list(raw.shape)} it makes {list(theirs.shape)}, the contract's steps "
                f"({spelled(preprocessing.steps)}) {list(ours.shape)}",
                "the training's preprocessing",
                "State the steps with --preprocess.",
            )
        difference = float(np.abs(theirs - ours).max() / max(1.0, np.abs(theirs).max()))
        worst = max(worst, difference) if np.isfinite(difference) else np.inf
    return Check(
        "preprocessing of raw images: the training's own, and the steps", worst, f"≤ {_LIMIT:g}", worst <= _LIMIT
    )


def refuse_difference(check: Check, contract: Contract) -> None:
    """Raises ProofRefused where the two differ by more than rounding."""
    if not check.passed:
        raise ProofRefused(
            f"on raw images it differs from the contract's steps ({spelled(contract.preprocessing.steps)}) by "
            f"{check.value:.2g} (allowed {check.limit})",
            "the training's preprocessing",
            "State the steps that training took with --preprocess.",
        )


def raw_images(contract: Contract) -> Iterator[NDArray[np.float32]]:
    """Images `[C, *S]`: beyond the range that the steps are made for, mostly zeros, few grey levels, far voxels."""
    low, high = contract.preprocessing.source_range
    shape = (contract.image_channels, *(min(size, _LARGEST) for size in contract.nominal))
    random = np.random.default_rng(0)
    images: list[NDArray[Any]] = [random.uniform(low - (high - low), high + (high - low), shape)]
    images.append(np.where(random.random(shape) < 0.6, 0.0, random.uniform(max(low, 0.0), high, shape)))
    images.append(np.round(random.uniform(low, high, shape)) if high - low > 2 else random.uniform(low, high, shape))
    images.append(low + (high - low) * 0.1 * random.exponential(1.0, shape))
    scale = np.arange(1, shape[0] + 1, dtype=float).reshape(-1, *[1] * contract.rank)  # channels that differ
    for image in images:
        yield (image * scale).astype(np.float32)
