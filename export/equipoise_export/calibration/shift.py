"""How far are a new site's images from the calibration cases, and what do those still say about it?

Under covariate shift (other images, but the same truth for the same image) calibration cases count by the density ratio
`w(x) = P_new(x)/P_calibration(x)` (Tibshirani et al. 2019, arXiv 1904.06019). The ratio is estimated, so what rests on
it is approximate; that truth depends on the image as before cannot be seen in images without labels at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from .conformal import Floats, cases_needed_for_level

PENALTIES = (0.003, 0.03, 0.3)
"""Inverse strengths of the classifier's penalty that are tried; the one of least cross-validated log-loss is taken."""

FOLDS = 5

CLIPPED = 0.05
"""Share of the site's images whose weight is clipped: rather a small bias than one case that counts for all."""

LEAST_COVERED = 0.5
"""Share of the site's images that the calibration cases must resemble at all."""


@dataclass(frozen=True)
class Shift:
    """What calibration cases count for at a new site.

    Attributes:
        weights: `[n]` of the calibration cases, > 0, clipped; 1 where both sides are alike.
        site_weights: `[m]` of the site's images, clipped.
        largest: what weights are clipped at: no image of the site counts for more.
        separation: AUROC of the classifier on cases that it was not fitted on: ½ alike, 1 nothing in common.
    """

    weights: Floats
    site_weights: Floats
    largest: float
    separation: float

    @property
    def effective_size(self) -> float:
        """`(Σw)²/Σw²`: as many cases of the site itself would say as much (Kish 1965); 1..n."""
        return effective_size(self.weights)

    @property
    def covered(self) -> float:
        """Mean weight of the calibration cases, at most 1: what is missing are images unlike any of them."""
        return min(1.0, float(self.weights.mean()))

    def refusal(self, level: float) -> str | None:
        """Why intervals at `level` cannot be moved to the site, in words; None: they can."""
        needed = effective_cases_needed(level)
        if self.covered < LEAST_COVERED:
            return (
                f"the calibration cases resemble about {self.covered:.0%} of the site's images; at least "
                f"{LEAST_COVERED:.0%} are needed"
            )
        if self.effective_size < needed:
            return (
                f"the {len(self.weights)} calibration cases are worth {self.effective_size:.1f} cases of the site; at "
                f"least {needed} are needed at level {level:g}"
            )
        return None


def effective_size(weights: Floats) -> float:
    """`(Σw)²/Σw²`, 0 where there is none."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0


def effective_cases_needed(level: float) -> int:
    """Smallest effective size at which intervals are moved: twice what split conformal prediction takes."""
    return 2 * cases_needed_for_level(level)


def compare_sites(
    calibration: Floats, site: Floats, penalties: Sequence[float] = PENALTIES, folds: int = FOLDS
) -> Shift:
    """Density ratios by a probabilistic classifier (Bickel et al. 2009): `w = p/(1 − p) · n/m`, p = P(site | image).

    Each case's p comes from classifiers that were fitted on other cases, so that none is told apart by heart.

    Args:
        calibration, site: `[n, d]` and `[m, d]`, the same finite numbers of images on both sides; `folds` rows or
            more each.
        folds: each is held out once.
        penalties: inverse strengths of the ridge penalty to choose from.
    """
    x = np.concatenate([calibration, site])
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 1e-12, deviation, 1.0)
    y = np.r_[np.zeros(len(calibration), np.int64), np.ones(len(site), np.int64)]
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y))

    def held_out(penalty: float) -> Floats:
        p = np.empty(len(y))
        for fitted, rest in splits:
            classifier = LogisticRegression(C=penalty, solver="newton-cholesky").fit(x[fitted], y[fitted])
            p[rest] = classifier.predict_proba(x[rest])[:, 1]
        return p

    tried = [held_out(penalty) for penalty in penalties]
    p = np.clip(min(tried, key=lambda each: log_loss(y, each)), 1e-6, 1.0 - 1e-6)
    ratio = p / (1.0 - p) * len(calibration) / len(site)
    largest = float(np.quantile(ratio[y == 1], 1.0 - CLIPPED))
    ratio = np.minimum(ratio, largest)
    return Shift(ratio[y == 0], ratio[y == 1], largest, float(roc_auc_score(y, p)))


def weighted_upper_limit(numbers: Floats, weights: Floats, own: float, level: float) -> float:
    """A new case of weight `own` lies above with probability ≤ 1 − level; inf where the cases cannot show that much.

    The level-quantile of the weighted distribution `Σ w_i δ(s_i) + own δ(∞)` over its total mass (Tibshirani et al.
    2019, Corollary 1). It rises with `own`: at the largest weight that a case can have it holds for all of them. With
    equal weights it is `conformal.upper_limit`.

    Args:
        numbers, weights: `[n]`, weights ≥ 0.
        own: ≥ 0, in the unit of the weights.
        level: 0..1.
    """
    order = np.argsort(numbers, kind="stable")
    mass = weights[order].cumsum()
    reached = mass >= level * (mass[-1] + own) * (1.0 - 1e-12)
    return float(numbers[order][np.argmax(reached)]) if reached.any() else math.inf


def weighted_error(accepted: NDArray[np.bool_], losses: Floats, weights: Floats) -> tuple[float, float]:
    """(estimated error among accepted cases at the site, effective number of cases that it rests on): no bound.

    Args:
        accepted, losses, weights: `[n]` of the calibration cases.
    """
    inside = weights * accepted
    total: Any = inside.sum()
    return (float((inside * losses).sum() / total) if total > 0.0 else math.nan), effective_size(inside)
