"""Recalibration: a map, fitted on calibration cases, from what the samples' mean says to what is observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .contract import Activation
from .moments import Array

_SMALLEST = 1e-7  # float32 probabilities of exactly 0 or 1 have no finite logarithm


@dataclass(frozen=True)
class Temperature:
    """`softmax(ln p̄ / τ)`, or `sigmoid(logit p̄ / τ)` per label (Guo et al. 2017): τ > 1 makes less certain."""

    temperature: float

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(f"a temperature is finite and above 0; got {self.temperature}")

    def apply(self, mean: Array, activation: Activation) -> Array:
        """Probabilities `[K, …]` → the same shape, 0..1."""
        p = np.clip(mean.astype(np.float64), _SMALLEST, 1.0 - _SMALLEST)
        if activation is Activation.SIGMOID:
            logit = np.log(p / (1.0 - p)) / self.temperature
            return np.asarray(1.0 / (1.0 + np.exp(-logit)))
        logit = np.log(p) / self.temperature
        weights = np.exp(logit - logit.max(axis=0))
        return np.asarray(weights / weights.sum(axis=0))

    def document(self) -> dict[str, Any]:
        return {"method": "temperature", "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """Per class a rising table p̄ → frequency, read by linear interpolation (Zadrozny & Elkan 2002).

    Softmax probabilities are divided by their sum again. Unlike a temperature it can change which class is largest.

    Attributes:
        tables: per class (p̄, frequency) pairs, p̄ strictly rising.
    """

    tables: tuple[tuple[tuple[float, float], ...], ...]

    def __post_init__(self) -> None:
        for table in self.tables:
            rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(table))
            if not table or not rises or not 0.0 <= table[0][1] <= table[-1][1] <= 1.0:
                raise ValueError("an isotonic table rises and lies between 0 and 1")

    def apply(self, mean: Array, activation: Activation) -> Array:
        """Probabilities `[K, …]` → the same shape, 0..1."""
        if len(mean) != len(self.tables):
            raise ValueError(f"there are {len(self.tables)} isotonic tables for {len(mean)} classes")
        p = np.stack([np.interp(column, *np.transpose(table)) for column, table in zip(mean, self.tables, strict=True)])
        if activation is Activation.SIGMOID:
            return p
        p = np.maximum(p, _SMALLEST)
        return np.asarray(p / p.sum(axis=0))

    def document(self) -> dict[str, Any]:
        return {"method": "isotonic", "tables": [[list(pair) for pair in table] for table in self.tables]}


Recalibration = Temperature | Isotonic


def parse_recalibration(document: Mapping[str, Any]) -> Recalibration:
    """Raises ValueError for a method that is not known here, or a table that does not rise."""
    if document["method"] == "temperature":
        return Temperature(float(document["temperature"]))
    if document["method"] == "isotonic":
        return Isotonic(tuple(tuple((float(x), float(y)) for x, y in table) for table in document["tables"]))
    raise ValueError(f"recalibration by {document['method']!r} is not known; there are temperature and isotonic")
