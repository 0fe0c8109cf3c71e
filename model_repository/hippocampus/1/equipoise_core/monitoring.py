"""Watching a policy in service: which accepted cases are audited, where cases lie among the calibration cases, and how
often what is watched may happen."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

QUANTILES = 11
"""0, 10, … 100 % of the calibration cases."""

DOUBT = 0.005
"""Probability, over calibrations, that one of the rates in `Monitoring.expected` is too low."""

UNUSUAL = 0.9
"""A rank above this is in the top tenth of the calibration cases, or above all of them."""


@dataclass(frozen=True)
class Monitoring:
    """What is needed to watch a policy.

    Attributes:
        audit_share: of the accepted cases, 0..1, that are marked for an expert to look at all the same.
        quantiles: name of a score or statistic → its value at 0, 10, … 100 % of the calibration cases, rising.
        expected: name → the rate that an event has at most while cases are like the calibration cases, 0..1: `missed`
            (a true volume or number outside its interval), `referred` (a suitable case not accepted), `unusual` (a
            rank of `ood_distance` above `UNUSUAL`). Only what the calibration can say is there.
    """

    audit_share: float
    quantiles: Mapping[str, tuple[float, ...]]
    expected: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.audit_share <= 1.0:
            raise ValueError(f"the share to audit lies between 0 and 1; got {self.audit_share}")
        for name, rate in self.expected.items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"the expected rate of {name} lies between 0 and 1; got {rate}")
        for name, values in self.quantiles.items():
            if len(values) != QUANTILES or not all(a <= b for a, b in pairwise(values)):
                raise ValueError(f"expected {QUANTILES} rising quantiles of {name}; got {values}")

    def audits(self, digest: str) -> bool:
        """Whether a case is marked: drawn by the digest of its record, so that nobody chooses and a replay agrees.

        Args:
            digest: hex digits of a SHA-256.
        """
        return int(digest[:16], 16) < self.audit_share * 2**64

    def rank(self, name: str, value: float, digest: str) -> float | None:
        """In which tenth of the calibration cases a number lies: .05, .15, … .95; −.05 below all of them, 1.05 above.

        None where the name is not known here. Without drift every tenth is as frequent as any other: a number that
        fills several tenths (no foreground at all, an uncertainty of 0) is dealt out over them.

        Args:
            digest: hex digits of the case's own SHA-256, by which it is dealt.
        """
        values = self.quantiles.get(name)
        if values is None:
            return None
        if value < values[0]:
            return -0.05
        if value > values[-1]:
            return 1.05
        first, beyond = bisect_left(values, value), bisect_right(values, value)
        tied = beyond - first - 1
        tenth = first + 1 + int(digest[:8], 16) * tied // 2**32 if tied > 0 else max(1, first)
        return (tenth - 0.5) / (QUANTILES - 1)

    def document(self) -> dict[str, Any]:
        return {
            "audit_share": self.audit_share,
            "quantiles": {name: list(values) for name, values in self.quantiles.items()},
            "expected": dict(self.expected),
        }


def parse_monitoring(document: Mapping[str, Any]) -> Monitoring:
    """Raises ValueError for a share or rate outside 0..1, or quantiles that do not rise."""
    quantiles = {str(n): tuple(float(value) for value in values) for n, values in document["quantiles"].items()}
    expected = {str(name): float(rate) for name, rate in document["expected"].items()}
    return Monitoring(float(document["audit_share"]), quantiles, expected)
