"""Between which masks the true outline lies, as the policy promises."""

from __future__ import annotations

import numpy as np
from equipoise_core.contract import Contract, Task
from equipoise_core.outline import band, foreground_of
from numpy.typing import NDArray

from ..prediction import Prediction
from .prepare import Prepared


def outline_of(contract: Contract, prepared: Prepared, prediction: Prediction) -> NDArray[np.uint8] | None:
    """`[1, *S]` on the network's voxels: 0 surely outside, 1 the outline may run here, 2 surely inside; of all
    foreground classes together. None where the policy promises nothing, or `labels` were not asked for.

    `prepared.to_source` brings it to the source's voxels.
    """
    stated = prediction.record.get("outline")
    if contract.task is not Task.SEGMENTATION or not stated or "labels" not in prediction.arrays:
        return None
    spacing = None if contract.spacing is None else prepared.spacing
    inner, outer = float(stated["inner"]), float(stated["outer"])
    return band(foreground_of(contract, prediction.labels), inner, outer, spacing)[None]


def outline_level(prediction: Prediction) -> float:
    """In what share of cases that holds, 0..1. Only where `outline_of` gives one."""
    return float(prediction.record["outline"]["level"])
