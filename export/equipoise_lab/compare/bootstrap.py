"""Percentile intervals by resampling patients (Efron 1979), the same resamples for all models, and what they show.

Figures of two models on the same cases go up and down together: intervals are of their difference, resample by
resample. Whole patients are drawn, since cases of one patient are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .figures import Figure, Weights, ones
from .results import Results
from .sums import Floats

LEVEL = 0.95
CELLS = 4_000_000
"""Resamples are drawn in blocks of so many counts, so that memory does not grow with their number."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its percentile interval.

    Attributes:
        value: None where the figure does not exist.
        low, high: None where no resample has the figure.
        left_out: resamples without it, such as those without any wrong case.
    """

    value: float | None
    low: float | None
    high: float | None
    left_out: int


@dataclass(frozen=True)
class Difference:
    """A model's figure minus that of the first model.

    Attributes:
        of: value and 95 % interval.
        joint: interval at the level that Bonferroni leaves for each of the models: together they hold with 95 %.
        shown: whether the joint interval excludes 0, on the side of the value.
        words: a sentence.
    """

    model: str
    to: str
    figure: str
    of: Estimate
    joint: Estimate
    shown: bool
    words: str


def resample(patients: Sequence[str], shifted: Sequence[str], repetitions: int, seed: int) -> Iterator[Weights]:
    """Weights of `repetitions` resamples in blocks; each draws as many patients as there are, with replacement.

    Shifted cases of the same patients (test images made worse) go with them; other patients are drawn on their own.
    """
    random = np.random.default_rng(seed)
    names, of = np.unique(patients, return_inverse=True)
    together = set(shifted) <= set(patients)
    others, others_of = (
        (names, np.searchsorted(names, shifted)) if together else np.unique(shifted, return_inverse=True)
    )
    block = max(1, CELLS // (len(patients) + len(shifted)))
    for start in range(0, repetitions, block):
        count = min(block, repetitions - start)
        drawn = _counts(len(names), count, random)
        strange = drawn if together else _counts(len(others), count, random)
        yield Weights(drawn[:, of], strange[:, others_of] if len(shifted) else np.zeros((count, 0)))


def _counts(items: int, repetitions: int, random: np.random.Generator) -> NDArray[np.float64]:
    return random.multinomial(items, np.full(items, 1.0 / items), size=repetitions).astype(np.float64)


@dataclass(frozen=True)
class Resampled:
    """One figure of all models: `values [k]`, and `draws [k, R]`."""

    figure: Figure
    values: Floats
    draws: Floats

    def estimate(self, model: int, level: float = LEVEL) -> Estimate:
        return estimate(float(self.values[model]), self.draws[model], level)

    def difference(self, model: int, level: float = LEVEL) -> Estimate:
        """Of a model to the first."""
        return estimate(float(self.values[model] - self.values[0]), self.draws[model] - self.draws[0], level)


def bootstrap(every: Sequence[Results], figures: Sequence[Figure], repetitions: int, seed: int) -> list[Resampled]:
    """All figures of all models on the same resamples."""
    first = every[0]
    blocks = [
        np.array([[figure.of(results, weights) for results in every] for figure in figures])
        for weights in resample(first.patients, first.shifted_patients, repetitions, seed)
    ]
    draws = np.concatenate(blocks, axis=2)
    return [
        Resampled(figure, np.array([figure.of(results, ones(results))[0] for results in every]), drawn)
        for figure, drawn in zip(figures, draws, strict=True)
    ]


def estimate(value: float, draws: Floats, level: float) -> Estimate:
    """Percentile interval of the resamples that have the figure."""
    known = draws[np.isfinite(draws)]
    left_out = len(draws) - len(known)
    if not np.isfinite(value) or not len(known):
        return Estimate(value if np.isfinite(value) else None, None, None, left_out)
    low, high = np.quantile(known, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(value, float(low), float(high), left_out)


def differences(every: Sequence[Results], resampled: Sequence[Resampled]) -> list[Difference]:
    """Of every model to the first, for each figure that has a better side."""
    others = len(every) - 1
    joint_level = 1.0 - (1.0 - LEVEL) / max(others, 1)
    found = []
    for each in resampled:
        for model in range(1, len(every)) if each.figure.better else ():
            of, joint = each.difference(model), each.difference(model, joint_level)
            shown = _excludes_zero(joint)
            names = every[model].name, every[0].name
            found.append(
                Difference(*names, each.figure.name, of, joint, shown, _words(each.figure, names, joint, shown))
            )
    return found


def _excludes_zero(joint: Estimate) -> bool:
    """Whether all of the interval, and the value, lie on one side of 0."""
    if joint.value is None or joint.low is None or joint.high is None:
        return False
    return min(joint.value, joint.low) > 0.0 or max(joint.value, joint.high) < 0.0


def _words(figure: Figure, names: tuple[str, str], joint: Estimate, shown: bool) -> str:
    if joint.value is None:
        return f"{figure.title}: {names[0]} and {names[1]} have no figures to compare"
    if joint.low is None or joint.high is None or not shown:
        return f"{figure.title}: no difference shown between {names[0]} and {names[1]}"
    scale, unit = (100.0, " percentage points") if figure.percent else (1.0, "")
    value, low, high = (_signed(scale * number) for number in (joint.value, joint.low, joint.high))
    few, low_high = ("fewer", "lower") if joint.value < 0.0 else ("more", "higher")
    what = f"takes {few} samples than" if figure.name == "samples" else f"has a {low_high} {figure.title} than"
    return f"{names[0]} {what} {names[1]}: {value}{unit}, 95 % {low} to {high}"


def _signed(number: float) -> str:
    """With its sign, to three digits or the fifth decimal."""
    text = f"{number:+.3g}" if abs(number) >= 1e-3 else f"{number:+.5f}"
    return text.replace("-", "−")
