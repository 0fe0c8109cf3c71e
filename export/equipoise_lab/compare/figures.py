"""The figures of a comparison: a list, each a function of one model's results and of how often each case counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from equipoise_export.calibration import metrics

from .results import Results
from .sums import Floats, mean

Direction = Literal["lower", "higher"]
"""Which way a figure is better, as sentences say it."""


@dataclass(frozen=True)
class Weights:
    """How often each test case `[R, n]` and each shifted case `[R, m]` occurs in R resamples."""

    test: Floats
    shifted: Floats


def ones(results: Results) -> Weights:
    """Every case once: the figures themselves."""
    return Weights(np.ones((1, len(results.loss))), np.ones((1, len(results.shifted_score))))


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: in the JSON.
        title: in tables and sentences.
        meaning: in a line.
        better: None where no model is called better by it.
        of: `[R]`, NaN where a resample has no such figure.
        percent: whether it is shown in percent.
    """

    name: str
    title: str
    meaning: str
    better: Direction | None
    of: Callable[[Results, Weights], Floats]
    percent: bool = False


def _separation(values: Floats, low: Floats, high: Floats) -> Floats:
    found: Floats = metrics.separation(values, low, high)
    return found if np.isfinite(values).all() else np.full(len(low), np.nan)


def _against_shifted(test: Floats, shifted: Floats, w: Weights) -> Floats:
    low = np.concatenate([w.test, np.zeros_like(w.shifted)], axis=1)
    high = np.concatenate([np.zeros_like(w.test), w.shifted], axis=1)
    return _separation(np.concatenate([test, shifted]), low, high)


def _volume(column: Literal["covered", "width_ml"], name: str) -> Callable[[Results, Weights], Floats]:
    """The mean of a column that a model without a volume rule does not have."""

    def of(a: Results, w: Weights) -> Floats:
        found = getattr(a, column)
        return mean(found[name], w.test) if name in found else np.full(len(w.test), np.nan)

    return of


def figures(every: Sequence[Results], segmentation: bool) -> list[Figure]:
    """All that can be said of these models and cases."""
    risk = "1 − Dice" if segmentation else "share wrong"
    found = [
        Figure("dice", "Dice", "overlap with the truth, mean over foreground classes", "higher", _quality)
        if segmentation
        else Figure("accuracy", "accuracy", "share of cases with the right label", "higher", _quality),
        Figure("ece", "ECE", "gap between the given probability and how often it comes true, 15 bins of equal width",
               "lower", lambda a, w: a.plain.error(w.test)),
        Figure("brier", "Brier", "mean squared error of the probabilities, 0 to 2",
               "lower", lambda a, w: mean(a.plain.brier, w.test, a.plain.answers)),
        Figure("nll", "NLL", "mean −ln of the probability that was given to the truth, in nats",
               "lower", lambda a, w: mean(a.plain.nll, w.test, a.plain.answers)),
        Figure("ece_recalibrated", "recalibrated ECE", "ECE of the probabilities as the policy recalibrates them",
               "lower", lambda a, w: a.recalibrated.error(w.test)),
        Figure("nll_recalibrated", "recalibrated NLL", "NLL of the probabilities as the policy recalibrates them",
               "lower", lambda a, w: mean(a.recalibrated.nll, w.test, a.recalibrated.answers)),
        Figure("aurc", "AURC", f"mean risk ({risk}) of the cases that are kept, over all shares kept in the order of "
               "the case score", "lower", lambda a, w: metrics.area_under_risk_coverage(a.score, a.risk, w.test)),
        Figure("e_aurc", "E-AURC", "AURC above that of ranking by the risk itself: what the score alone loses",
               "lower", lambda a, w: metrics.excess_area_under_risk_coverage(a.score, a.risk, w.test)),
        Figure("auroc_errors", "AUROC errors", "chance that the case score of a wrong case exceeds that of a right one",
               "higher", lambda a, w: _separation(a.score, w.test * (a.loss == 0), w.test * (a.loss > 0))),
    ]  # fmt: skip
    if len(every[0].shifted_score):
        found += [
            Figure("auroc_shifted", "AUROC shifted", "chance that the case score of a shifted image exceeds a test "
                   "case's", "higher", lambda a, w: _against_shifted(a.score, a.shifted_score, w)),
            Figure("auroc_shifted_ood_distance", "ood_distance AUROC", "the same of ood_distance, which sees the input "
                   "only", None, lambda a, w: _against_shifted(a.ood_distance, a.shifted_ood_distance, w)),
        ]  # fmt: skip
    for name in dict.fromkeys(name for each in every for name in each.covered):
        found += [
            Figure(f"coverage_{name}", f"coverage {name}", f"share of cases whose volume interval ({name}) is right",
                   None, _volume("covered", name), percent=True),
            Figure(f"width_ml_{name}", f"width {name}, mL", f"mean width of the volume interval ({name})",
                   "lower" if name == "total" else None, _volume("width_ml", name)),
        ]  # fmt: skip
    return [
        *found,
        Figure("accepted", "share accepted", "share of cases that the policy accepts", "higher",
               lambda a, w: mean(a.accepted, w.test), percent=True),
        Figure("error_among_accepted", "wrong among accepted", "share of them that should not have been", None,
               lambda a, w: mean(a.accepted * a.loss, w.test, a.accepted), percent=True),
        Figure("samples", "samples", "samples per image, mean", "lower", lambda a, w: mean(a.samples, w.test)),
    ]  # fmt: skip


def _quality(a: Results, w: Weights) -> Floats:
    return mean(a.quality, w.test)
