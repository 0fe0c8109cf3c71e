"""Numbers with error bars: a regression's interval, and how wide it is beside what is tolerated.

Locally weighted split conformal prediction (Lei et al. 2018, "Distribution-free predictive inference for regression",
JASA 113, §5.2): the interval of a case is as wide as its own standard deviation says, times one factor from calibration
cases. The factor is one for all targets, so that all intervals of a case hold their truths at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .moments import Array
from .targets import Target

RELATIVE_WIDTH = "relative_width"
"""The case score of a policy with an interval rule: half the interval's width over the tolerance, of several targets
the largest. Above 1 nothing is accepted."""

UNCALIBRATED_FACTOR = 1.6448536269514722
"""Half-width in standard deviations where no policy says it: 90 % of a normal distribution."""


@dataclass(frozen=True)
class NumberEstimate:
    """In the target's unit: the samples' mean, its standard deviation, and an interval [low, high].

    `sd` is the whole predictive one, √(aleatoric + epistemic).
    """

    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class TargetRule:
    """Of one target, fixed on pilot cases.

    Attributes:
        weight: of the standard deviation, > 0: what brings several targets on one scale.
        floor: is added to it, ≥ 0, in the target's unit: a standard deviation near 0 makes no interval of no width.
        tolerance: an answer further from the truth is wrong; > 0, in the target's unit.
    """

    weight: float
    floor: float
    tolerance: float

    def __post_init__(self) -> None:
        if not (0.0 < self.weight < np.inf and 0.0 <= self.floor < np.inf and 0.0 < self.tolerance < np.inf):
            raise ValueError(f"weight and tolerance are above 0, the floor at least 0; got {vars(self)}")


@dataclass(frozen=True)
class IntervalRule:
    """`half-width = factor · weight · (sd + floor)` of each target.

    Attributes:
        level: all truths of a case lie inside with at least this probability, whichever stage decides.
        factor: the conformal quantile, ≥ 0.
        targets: by name.
        cases: calibration cases that it was chosen on.
        rule: how, in words.
    """

    level: float
    factor: float
    targets: Mapping[str, TargetRule]
    cases: int
    rule: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.factor < np.inf or not self.targets:
            raise ValueError(f"an interval has a finite factor and at least one target; got {self.factor}")

    def half_widths(self, targets: tuple[Target, ...], sd: Array) -> Array:
        """Of standard deviations `[K]`, in the targets' units."""
        rules = [self.targets[target.name] for target in targets]
        weights, floors = (np.array([getattr(rule, name) for rule in rules]) for name in ("weight", "floor"))
        return np.asarray(self.factor * weights * (sd + floors))

    def relative_width(self, targets: tuple[Target, ...], sd: Array) -> float:
        """See `RELATIVE_WIDTH`."""
        tolerances = np.array([self.targets[target.name].tolerance for target in targets])
        return float((self.half_widths(targets, sd) / tolerances).max())

    def document(self) -> dict[str, Any]:
        return {**vars(self), "targets": {name: dict(vars(rule)) for name, rule in self.targets.items()}}


def parse_interval(document: Mapping[str, Any]) -> IntervalRule:
    targets = {
        str(name): TargetRule(*(float(rule[key]) for key in ("weight", "floor", "tolerance")))
        for name, rule in document["targets"].items()
    }
    level, factor = float(document["level"]), float(document["factor"])
    return IntervalRule(level, factor, targets, int(document["cases"]), str(document["rule"]))


def estimates(
    targets: tuple[Target, ...], mean: Array, sd: Array, rule: IntervalRule | None
) -> dict[str, NumberEstimate]:
    """Per target's name. Means and standard deviations `[K]`; without a rule the interval is a normal one's."""
    half = UNCALIBRATED_FACTOR * sd if rule is None else rule.half_widths(targets, sd)
    rows = np.stack([mean, sd, mean - half, mean + half], axis=1).tolist()
    return {target.name: NumberEstimate(*row) for target, row in zip(targets, rows, strict=True)}
