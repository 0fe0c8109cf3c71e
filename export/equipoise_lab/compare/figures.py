"""The figures of a comparison: a list, each a function of one model's results and of how often each case counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from equipoise_export.calibration import metrics
from equipoise_export.calibration.metrics import TITLES, Floats
from equipoise_export.calibration.scored import SELECTION, Selection
from equipoise_export.calibration.sums import RESAMPLED, mean

from .results import Results

Direction = Literal["lower", "higher"]
"""Which way a figure is better, as sentences say it."""

Section = Literal["answers", "scores", "decisions", "volumes"]
"""The table of the page that a figure stands in."""


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
        section: where it stands on the page.
        percent: whether it is shown in percent.
    """

    name: str
    title: str
    meaning: str
    better: Direction | None
    of: Callable[[Results, Weights], Floats]
    section: Section = "answers"
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


PROBABILITIES = {
    "ece": "gap between the given probability and how often it comes true, 15 bins of equal width",
    "smooth_ece": "the same without bins, smoothed as widely as the gap is large",
    "classwise_ece": "the same gap of each class's probability, mean over classes: it sees rare ones too",
    "brier": "mean squared error of the probabilities, 0 to 2",
    "nll": "mean −ln of the probability that was given to the truth, in nats",
}
"""What is said of probabilities, by the names of `RESAMPLED`."""


def _of_probabilities(name: str) -> Figure:
    return Figure(name, TITLES[name], PROBABILITIES[name], "lower", lambda a, w: RESAMPLED[name](a.plain, w.test))


def _of_recalibrated(name: str) -> Figure:
    return Figure(f"{name}_recalibrated", f"recalibrated {TITLES[name]}",
                  f"{TITLES[name]} of the probabilities as the policy recalibrates them", "lower",
                  lambda a, w: RESAMPLED[name](a.recalibrated, w.test))  # fmt: skip


def _of_score(each: Selection, risk: str) -> Figure:
    meaning = each.meaning.format(risk=risk)
    return Figure(each.name, each.title, meaning, "lower", lambda a, w: each.of(a.score, a.risk, w.test), "scores")


def _pairwise(measure: Callable[..., Floats], a: Results, w: Weights) -> Floats:
    """Of the baseline; NaN where a model's samples cannot be paired."""
    return measure(a.pairwise, a.risk, w.test) if np.isfinite(a.pairwise).all() else np.full(len(w.test), np.nan)


def _beside_pairwise() -> list[Figure]:
    def less(a: Results, w: Weights) -> Floats:
        aurc = metrics.area_under_risk_coverage
        return np.asarray(aurc(a.score, a.risk, w.test) - _pairwise(aurc, a, w))

    what = "of ranking by the mean Dice between pairs of samples' label maps, the baseline of failure detection"
    return [
        Figure("aurc_pairwise_dice", "pairwise Dice: AURC", f"AURC {what}", None,
               lambda a, w: _pairwise(metrics.area_under_risk_coverage, a, w), "scores"),
        Figure("augrc_pairwise_dice", "pairwise Dice: AUGRC", f"AUGRC {what}", None,
               lambda a, w: _pairwise(metrics.area_under_generalised_risk_coverage, a, w), "scores"),
        Figure("aurc_less_pairwise_dice", "AURC less pairwise Dice's", "AURC of the case score less that of pairwise "
               "Dice: below 0 the score ranks better, as far as the interval says so",
               None, less, "scores"),
    ]  # fmt: skip


def figures(every: Sequence[Results], segmentation: bool) -> list[Figure]:
    """All that can be said of these models and cases."""
    risk = "1 − Dice" if segmentation else "share wrong"
    found = [
        Figure("dice", "Dice", "overlap with the truth, mean over foreground classes", "higher", _quality)
        if segmentation
        else Figure("accuracy", "accuracy", "share of cases with the right label", "higher", _quality),
        *map(_of_probabilities, PROBABILITIES),
        *map(_of_recalibrated, ("ece", "smooth_ece", "nll")),
        *(_of_score(each, risk) for each in SELECTION),
        *(_beside_pairwise() if any(np.isfinite(each.pairwise).all() for each in every) else ()),
        Figure("auroc_errors", "AUROC errors", "chance that the case score of a wrong case exceeds that of a right one",
               "higher", lambda a, w: _separation(a.score, w.test * (a.loss == 0), w.test * (a.loss > 0)), "scores"),
    ]  # fmt: skip
    if len(every[0].shifted_score):
        found += [
            Figure("auroc_shifted", "AUROC shifted", "chance that the case score of a shifted image exceeds a test "
                   "case's", "higher", lambda a, w: _against_shifted(a.score, a.shifted_score, w), "scores"),
            Figure("auroc_shifted_ood_distance", "ood_distance AUROC", "the same of ood_distance, which sees the input "
                   "only", None, lambda a, w: _against_shifted(a.ood_distance, a.shifted_ood_distance, w), "scores"),
        ]  # fmt: skip
    found += [
        Figure("accepted", "share accepted", "share of cases that the policy accepts", "higher",
               lambda a, w: mean(a.accepted, w.test), "decisions", percent=True),
        Figure("error_among_accepted", "wrong among accepted", "share of them that should not have been", None,
               lambda a, w: mean(a.accepted * a.loss, w.test, a.accepted), "decisions", percent=True),
        *(_risk_of_accepted() if segmentation else ()),
        Figure("samples", "samples", "samples per image, mean", "lower", lambda a, w: mean(a.samples, w.test),
               "decisions"),
    ]  # fmt: skip
    for name in dict.fromkeys(name for each in every for name in each.covered):
        section: Section = "decisions" if name == "total" else "volumes"
        found += [
            Figure(f"coverage_{name}", f"coverage {name}", f"share of cases whose volume interval ({name}) is right",
                   None, _volume("covered", name), section, percent=True),
            Figure(f"width_ml_{name}", f"width {name}, mL", f"mean width of the volume interval ({name})",
                   "lower" if name == "total" else None, _volume("width_ml", name), section),
        ]  # fmt: skip
    return found


def _risk_of_accepted() -> list[Figure]:
    """Of a classification it is the share of wrong ones."""
    return [
        Figure("risk_accepted", "risk of accepted", "mean risk (1 − Dice) of accepted cases: selective risk at the "
               "policy's own coverage", None, lambda a, w: mean(a.accepted * a.risk, w.test, a.accepted), "decisions")
    ]  # fmt: skip


def _quality(a: Results, w: Weights) -> Floats:
    return mean(a.quality, w.test)
