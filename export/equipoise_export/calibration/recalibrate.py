"""Fits the recalibration of probabilities; the core applies it (`equipoise_core.recalibration`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from equipoise_core.contract import Activation
from equipoise_core.recalibration import Isotonic, Temperature
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

Floats = NDArray[np.floating[Any]]
Hits = NDArray[Any]


def fit_temperature(probabilities: Floats, hits: Hits, activation: Activation) -> Temperature:
    """The temperature of least negative log-likelihood (Guo et al. 2017), between e⁻³ and e³.

    Args:
        probabilities: `[n, K]`, the mean over samples.
        hits: `[n, K]` 0/1: which classes are true.
    """

    def loss(log_temperature: float) -> float:
        p = Temperature(float(np.exp(log_temperature))).apply(probabilities.T, activation).T
        return _cross_entropy(p, hits, activation)

    return Temperature(float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x)))


def fit_isotonic(probabilities: Floats, hits: Hits) -> Isotonic:
    """Per class the monotone table that fits best in the mean square (Zadrozny & Elkan 2002).

    Two imagined cases at either end (a certain one and a tenth of its opposite) keep a finite number of cases from
    being taken for certainty.

    Args:
        probabilities, hits: `[n, K]` as for `fit_temperature`.
    """
    tables = []
    for p, hit in zip(probabilities.T, hits.T, strict=True):
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        weight = np.r_[1.0, 0.1, np.ones(len(p)), 0.1, 1.0]
        fitted.fit(np.r_[0.0, 0.0, p, 1.0, 1.0], np.r_[0.0, 1.0, hit, 0.0, 1.0], weight)
        tables.append(tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)))
    return Isotonic(tuple(tables))


GRID = 64
"""Places at which Venn-Abers predictions are computed; read between them by linear interpolation."""

MOST = 4000
"""Cases (or voxels) that a Venn-Abers table is made of, evenly drawn."""


def fit_venn_abers(probabilities: Floats, hits: Hits) -> Isotonic:
    """Per class the inductive Venn-Abers predictor as one table (Vovk & Petej 2014, arXiv 1211.0025).

    At each place p isotonic regression is fitted twice, with a further case there that is no hit and that is one: (p0,
    p1), of which one is right. Their point estimate `p1/(1 − p0 + p1)` rises with p, so that the core reads it as it
    reads an isotonic table.

    Args:
        probabilities, hits: `[n, K]` as for `fit_temperature`.
    """
    chosen = np.unique(np.linspace(0, len(probabilities) - 1, MOST).round().astype(int))
    tables = []
    for p, hit in zip(probabilities[chosen].T, hits[chosen].T, strict=True):
        places = np.unique(np.r_[0.0, np.quantile(p, np.linspace(0.0, 1.0, GRID)), 1.0])
        low, high = (np.array([_with_one_more(p, hit, place, label) for place in places]) for label in (0.0, 1.0))
        merged = np.maximum.accumulate(high / (1.0 - low + high))
        tables.append(tuple(zip(places.tolist(), np.clip(merged, 0.0, 1.0).tolist(), strict=True)))
    return Isotonic(tuple(tables))


def _with_one_more(p: Floats, hit: Hits, place: float, label: float) -> float:
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(np.r_[p, place], np.r_[hit, label])
    return float(fitted.predict([place])[0])


def _cross_entropy(p: Floats, hits: Hits, activation: Activation) -> float:
    tiny = 1e-12
    terms = hits * np.log(np.maximum(p, tiny))
    if activation is Activation.SIGMOID:
        terms = terms + (1 - hits) * np.log(np.maximum(1.0 - p, tiny))
    return float(-terms.sum(axis=1).mean())
