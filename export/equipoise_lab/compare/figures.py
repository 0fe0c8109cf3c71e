"""The figures of a comparison: a list, each a function of one model's answers and of how often each case counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from . import weighted
from .answers import Answers
from .weighted import Floats


class Better(str, Enum):
    """Which way a figure is better, as sentences say it."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True)
class Weights:
    """How often each test case `[R, n]` and each shifted case `[R, m]` occurs in R resamples."""

    test: Floats
    shifted: Floats


def ones(answers: Answers) -> Weights:
    """Every case once: the figures themselves."""
    return Weights(np.ones((1, len(answers.loss))), np.ones((1, len(answers.shifted_score))))


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
    better: Better | None
    of: Callable[[Answers, Weights], Floats]
    percent: bool = False


def _separation(values: Floats, low: Floats, high: Floats) -> Floats:
    return weighted.separation(values, low, high) if np.isfinite(values).all() else np.full(len(low), np.nan)


def _errors(a: Answers, w: Weights) -> Floats:
    return _separation(a.score, w.test * (a.loss == 0), w.test * (a.loss > 0))


def _against_shifted(test: Floats, shifted: Floats, w: Weights) -> Floats:
    low = np.concatenate([w.test, np.zeros_like(w.shifted)], axis=1)
    high = np.concatenate([np.zeros_like(w.test), w.shifted], axis=1)
    return _separation(np.concatenate([test, shifted]), low, high)


def _column(columns: Callable[[Answers], dict[str, Floats]], name: str) -> Callable[[Answers, Weights], Floats]:
    """The mean of a column that a model without the rule for it does not have."""

    def of(a: Answers, w: Weights) -> Floats:
        found = columns(a)
        return weighted.mean(found[name], w.test) if name in found else np.full(len(w.test), np.nan)

    return of


LOWER, HIGHER = Better.LOWER, Better.HIGHER


def figures(every: Sequence[Answers], segmentation: bool) -> list[Figure]:
    """All that can be said of these models and cases."""
    found = [
        Figure("dice", "Dice", "overlap with the truth, mean over foreground classes", HIGHER, _quality)
        if segmentation
        else Figure("accuracy", "accuracy", "share of cases with the right label", HIGHER, _quality),
        Figure(
            "ece", "ECE", "gap between the given probability and how often it comes true, 15 bins of equal width",
            LOWER, lambda a, w: weighted.calibration_error(a.plain, w.test),
        ),
        Figure(
            "brier", "Brier", "mean squared error of the probabilities, 0 to 2",
            LOWER, lambda a, w: weighted.share_of(a.plain.brier, a.plain.answers, w.test),
        ),
        Figure(
            "nll", "NLL", "mean −ln of the probability that was given to the truth, in nats",
            LOWER, lambda a, w: weighted.share_of(a.plain.nll, a.plain.answers, w.test),
        ),
        Figure(
            "ece_recalibrated", "recalibrated ECE", "ECE of the probabilities as the policy recalibrates them",
            LOWER, lambda a, w: weighted.calibration_error(a.recalibrated, w.test),
        ),
        Figure(
            "nll_recalibrated", "recalibrated NLL", "NLL of the probabilities as the policy recalibrates them",
            LOWER, lambda a, w: weighted.share_of(a.recalibrated.nll, a.recalibrated.answers, w.test),
        ),
        Figure(
            "aurc", "AURC",
            f"mean risk ({'1 − Dice' if segmentation else 'share wrong'}) of the cases that are kept, over all shares "
            "kept in the order of the case score",
            LOWER, lambda a, w: weighted.area_under_risk_coverage(a.score, a.risk, w.test),
        ),
        Figure(
            "e_aurc", "E-AURC", "AURC above that of ranking by the risk itself: what the score alone loses",
            LOWER, lambda a, w: weighted.excess_area_under_risk_coverage(a.score, a.risk, w.test),
        ),
        Figure(
            "auroc_errors", "AUROC errors", "chance that the case score of a wrong case exceeds that of a right one",
            HIGHER, _errors,
        ),
    ]  # fmt: skip
    if len(every[0].shifted_score):
        found += [
            Figure(
                "auroc_shifted", "AUROC shifted", "chance that the case score of a shifted image exceeds a test case's",
                HIGHER, lambda a, w: _against_shifted(a.score, a.shifted_score, w),
            ),
            Figure(
                "auroc_shifted_strangeness", "strangeness AUROC", "the same of strangeness, which sees the input only",
                None, lambda a, w: _against_shifted(a.strangeness, a.shifted_strangeness, w),
            ),
        ]  # fmt: skip
    for name in dict.fromkeys(name for each in every for name in each.covered):
        better = LOWER if name == "total" else None
        found += [
            Figure(
                f"coverage_{name}", f"coverage {name}", f"share of cases whose volume interval ({name}) is right",
                None, _column(lambda a: dict(a.covered), name), percent=True,
            ),
            Figure(
                f"width_ml_{name}", f"width {name}, mL", f"mean width of the volume interval ({name})",
                better, _column(lambda a: dict(a.width_ml), name),
            ),
        ]  # fmt: skip
    found += [
        Figure(
            "accepted", "share accepted", "share of cases that the policy accepts", HIGHER,
            lambda a, w: weighted.mean(a.accepted, w.test), percent=True,
        ),
        Figure(
            "error_among_accepted", "wrong among accepted", "share of them that should not have been", None,
            lambda a, w: weighted.share_of(a.accepted * a.loss, a.accepted, w.test), percent=True,
        ),
        Figure(
            "samples", "samples", "samples per image, mean", LOWER, lambda a, w: weighted.mean(a.samples, w.test)
        ),
    ]  # fmt: skip
    return found


def _quality(a: Answers, w: Weights) -> Floats:
    return weighted.mean(a.quality, w.test)
