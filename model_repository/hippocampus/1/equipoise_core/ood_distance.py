"""How unlike the calibration cases an image looks: one distance over all its input statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FARTHEST = 8.0  # robust standard deviations: one statistic alone says "far" and no more


@dataclass(frozen=True)
class OodDistance:
    """Mahalanobis distance with a robust scale (Mahalanobis 1936; Lee et al. 2018 use it for detection).

    `z = clip((x − location)/scale, ±8)`, `d = √((z − centre)ᵀ P (z − centre) / n)`: about 1 for a typical case.

    Attributes:
        names: the input statistics it looks at, n of them, in the order of the arrays.
        location, scale: medians, and median absolute deviations times 1.4826 (above 0), of typical cases.
        centre, precision: mean and inverse covariance `[n, n]` of typical cases' z.
    """

    names: tuple[str, ...]
    location: tuple[float, ...]
    scale: tuple[float, ...]
    centre: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.location), len(self.scale), len(self.centre), len(self.precision)}
        if sizes | {len(row) for row in self.precision} != {len(self.names)}:
            raise ValueError("ood_distance: names, location, scale, centre and precision must be of one size")
        if not all(scale > 0.0 for scale in self.scale):
            raise ValueError("ood_distance: every scale must be above 0")

    def distance(self, statistics: Mapping[str, float]) -> float:
        """≥ 0; NaN where a statistic is not finite. Raises KeyError for a statistic that is not known."""
        location, scale, centre, precision = self._arrays
        x = np.array([statistics[name] for name in self.names])
        z = np.minimum(np.maximum((x - location) / scale, -FARTHEST), FARTHEST) - centre
        return float(np.sqrt(np.maximum(z @ precision @ z, 0.0) / len(z)))

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], ...]:
        return tuple(np.array(numbers) for numbers in (self.location, self.scale, self.centre, self.precision))

    def number(self, statistics: Mapping[str, float]) -> dict[str, float]:
        """`{"ood_distance": distance}`, or nothing where a statistic is not known: then nothing is accepted either."""
        return {"ood_distance": self.distance(statistics)} if set(self.names) <= set(statistics) else {}

    def document(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "location": list(self.location),
            "scale": list(self.scale),
            "centre": list(self.centre),
            "precision": [list(row) for row in self.precision],
        }


def parse_ood_distance(document: Mapping[str, Any]) -> OodDistance:
    """Raises ValueError where sizes do not match."""

    def numbers(key: str) -> tuple[float, ...]:
        return tuple(float(entry) for entry in document[key])

    return OodDistance(
        tuple(str(name) for name in document["names"]),
        numbers("location"),
        numbers("scale"),
        numbers("centre"),
        tuple(tuple(float(entry) for entry in row) for row in document["precision"]),
    )
