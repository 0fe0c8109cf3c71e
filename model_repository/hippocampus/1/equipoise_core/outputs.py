"""Public output name → its tensor for one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .assessment import Assessment
from .canonical import canonical_json
from .intervals import NumberEstimate
from .volume import VolumeEstimate

OUTPUTS: dict[str, Callable[[Assessment], NDArray[Any]]] = {
    "mean": lambda a: a.uncertainty.mean.astype(np.float32, copy=False),
    "variance": lambda a: a.spread.variance.astype(np.float32, copy=False),
    "variance_corrected": lambda a: a.spread.variance_corrected.astype(np.float32, copy=False),
    "aleatoric": lambda a: a.spread.aleatoric.astype(np.float32, copy=False),
    "epistemic": lambda a: a.spread.epistemic.astype(np.float32, copy=False),
    "uncertainty": lambda a: a.uncertainty.stated.astype(np.float32, copy=False),
    "labels": lambda a: a.uncertainty.labels,
    "calibrated": lambda a: a.calibrated.astype(np.float32, copy=False),
    "labels_sensitive": lambda a: a.labels_sensitive,
    "case_score": lambda a: np.array([a.case_score], dtype=np.float32),
    "volume": lambda a: _rows([a.volumes[name] for name in a.model.contract.classes]),
    "volume_total": lambda a: _rows([a.volumes["total"]])[0],
    "values": lambda a: _rows(list(a.values.values())),
    "samples_used": lambda a: np.array([a.samples], dtype=np.int32),
    "route": lambda a: np.array([a.decision.route.value.encode()], dtype=object),
    "reason": lambda a: np.array([str(a.decision.reason).encode()], dtype=object),
    "record": lambda a: np.array([canonical_json(a.record).encode()], dtype=object),
}
"""Public output name → its tensor for one image, without the leading N."""

OF_SAMPLES = frozenset({"variance", "variance_corrected", "aleatoric", "epistemic"})
"""Outputs that a first pass cannot give, unless it states them."""


def _rows(of: Sequence[VolumeEstimate | NumberEstimate]) -> NDArray[np.float32]:
    return np.array([[each.mean, each.sd, each.low, each.high] for each in of], dtype=np.float32)
