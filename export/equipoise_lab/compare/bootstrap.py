"""Percentile intervals by resampling patients (Efron 1979), the same resamples for all models, and what they show.

Figures of two models on the same cases go up and down together: intervals are of their difference, resample by
resample. Whole patients are drawn, since cases of one patient are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from equipoise_export.calibration.metrics import Floats
from equipoise_export.calibration.resample import LEVEL, Estimate, blocks, drawn, estimate

from .figures import Figure, Weights, ones
from .results import Results


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
    for count in blocks(repetitions, len(patients) + len(shifted)):
        counts = drawn(len(names), count, random)
        strange = counts if together else drawn(len(others), count, random)
        yield Weights(counts[:, of], strange[:, others_of] if len(shifted) else np.zeros((count, 0)))


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
    found = [
        np.array([[figure.of(results, weights) for results in every] for figure in figures])
        for weights in resample(first.patients, first.shifted_patients, repetitions, seed)
    ]
    draws = np.concatenate(found, axis=2)
    return [
        Resampled(figure, np.array([figure.of(results, ones(results))[0] for results in every]), of)
        for figure, of in zip(figures, draws, strict=True)
    ]


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
