"""When the samples drawn so far suffice: no score can be expected to cross a limit until full T."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """After `samples` samples: how far each score may still drift.

    Attributes:
        drift: score name → (low ≤ 0, high ≥ 0), the range of `√(score at full T) − √(score now)` that was
            chosen for it. (The root, since small scores move less in absolute and more in relative terms.)
    """

    samples: int
    drift: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.drift.items():
            if not low <= 0.0 <= high:
                raise ValueError(f"the drift of {name} must include 0, no change; got {low} to {high}")

    def decided(self, name: str, score: float, limit: float) -> bool:
        """Whether the limit lies outside the score's drift: more samples would not change the comparison.

        Args:
            score, limit: ≥ 0. A score without a drift here, or not finite, is never decided.
        """
        if name not in self.drift or not (math.isfinite(score) and score >= 0.0):
            return False
        low, high = self.drift[name]
        now = math.sqrt(score)
        return not now + low <= math.sqrt(limit) <= now + high


@dataclass(frozen=True)
class Stopping:
    """Looks at a few values of T, in rising order, before the policy's full T. See `Look`."""

    looks: tuple[Look, ...]
    rule: str

    def __post_init__(self) -> None:
        samples = [look.samples for look in self.looks]
        if samples != sorted(set(samples)) or (samples and samples[0] < 2):
            raise ValueError(f"looks come in rising order, from 2 samples on; got {samples}")

    def document(self) -> dict[str, Any]:
        looks = [
            {"samples": look.samples, "drift": {name: list(pair) for name, pair in look.drift.items()}}
            for look in self.looks
        ]
        return {"looks": looks, "rule": self.rule}


def parse_stopping(document: Mapping[str, Any]) -> Stopping:
    """Raises ValueError for looks that do not rise or a drift that leaves out 0."""
    looks = tuple(
        Look(int(look["samples"]), {str(n): (float(low), float(high)) for n, (low, high) in look["drift"].items()})
        for look in document["looks"]
    )
    return Stopping(looks, str(document["rule"]))
