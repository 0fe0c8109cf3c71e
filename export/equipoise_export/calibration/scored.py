"""How good probabilities and case scores are on some cases: each figure with its interval over resampled patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract

from . import metrics
from .metrics import Floats
from .resample import Estimate, estimates
from .sums import RESAMPLED, calibration_sums

MANY = 20_000
"""From so many answers on, the floor is taken from fewer repetitions."""


@dataclass(frozen=True)
class Selection:
    """One figure of how well a score tells which cases to keep; lower is better.

    Attributes:
        name: in the JSON.
        title: in tables and sentences.
        meaning: in a line; {risk} is what is ranked.
        of: scores `[n]`, risk `[n]`, weights `[R, n]` → `[R]`.
    """

    name: str
    title: str
    meaning: str
    of: Callable[[Floats, Floats, Floats | None], Floats]


def _risk_at(coverage: float) -> Selection:
    share = f"{100 * coverage:g} %"
    return Selection(
        f"risk_at_{100 * coverage:g}",
        f"risk at {share}",
        f"mean risk ({{risk}}) of the {share} of cases of lowest score",
        partial(_kept, coverage),
    )


def _kept(coverage: float, score: Floats, risk: Floats, weights: Floats | None) -> Floats:
    return np.asarray(metrics.risk_at(score, risk, coverage, weights))


SELECTION = (
    Selection("aurc", "AURC", "mean risk ({risk}) of the cases that are kept, over all shares kept in the order of the "
              "score", metrics.area_under_risk_coverage),
    Selection("e_aurc", "E-AURC", "AURC above that of ranking by the risk itself: what the score alone loses",
              metrics.excess_area_under_risk_coverage),
    Selection("augrc", "AUGRC", "risk ({risk}) that goes on unseen, as a share of all cases, mean over shares kept: "
              "a few bad cases among the first kept do not rule it as they do AURC",
              metrics.area_under_generalised_risk_coverage),
    *map(_risk_at, (0.8, 0.9, 0.95)),
)  # fmt: skip
"""What reports and comparisons say of a score."""


def selection_statistics(scores: Floats, losses: Floats, patients: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each of `SELECTION`, and of `auroc_errors` (null without right or without wrong cases): value and interval.

    Args:
        scores: `[n]`, all on one scale.
        losses: `[n]`, 0/1.
        patients: `[n]`.
    """

    def auroc(weights: Floats) -> Floats:
        return np.asarray(metrics.separation(scores, weights * (losses == 0), weights * (losses > 0)))

    figures = [partial(each.of, scores, losses) for each in SELECTION]
    found = estimates([*figures, auroc], patients)
    names = [*(each.name for each in SELECTION), "auroc_errors"]
    return {name: asdict(estimate) for name, estimate in zip(names, found, strict=True)}


def exclusive(contract: Contract) -> bool:
    """Whether one class is true of each answer; otherwise each label is a question of its own."""
    return contract.activation is Activation.SOFTMAX


def probability_statistics(
    before: Sequence[Floats], after: Sequence[Floats], hits: Sequence[Floats], patients: Sequence[str], one_of: bool
) -> dict[str, Any]:
    """Each of `metrics.METRICS` before and after recalibration, with its interval, and the floor after it.

    ACE has no interval: its bins move with the cases. Intervals of calibration errors lean upwards, as a resample holds
    fewer different cases.

    Args:
        before, after, hits: `[m, K]` of each case.
        patients: of each case.
        one_of: as `exclusive`.
    """
    intervals: dict[str, dict[str, Estimate]] = {}
    for when, given in (("before", before), ("after", after)):
        sums = calibration_sums(list(zip(given, hits, strict=True)), one_of)
        found = estimates([partial(figure, sums) for figure in RESAMPLED.values()], patients)
        intervals[when] = dict(zip(RESAMPLED, found, strict=True))
    plain = {when: _answers(given, hits, one_of) for when, given in (("before", before), ("after", after))}
    report: dict[str, Any] = {}
    repetitions = 200 if len(plain["after"][1]) <= MANY else 20
    for name, metric in metrics.METRICS.items():
        mean, high = metrics.floor(plain["after"][0], metric, repetitions=repetitions)
        report[name] = {
            **{when: metric(*of) for when, of in plain.items()},
            **{f"{when}_interval": _interval(intervals[when].get(name)) for when in plain},
            "floor": {"mean": mean, "p95": high},
        }
    return report


def _answers(given: Sequence[Floats], hits: Sequence[Floats], one_of: bool) -> tuple[Floats, Any]:
    p, hit = np.concatenate(given), np.concatenate(hits)
    return (p, hit.argmax(axis=1)) if one_of else (metrics.no_and_yes(p.ravel()), hit.ravel().astype(np.int64))


def _interval(estimate: Estimate | None) -> dict[str, float | None]:
    return {"low": estimate.low if estimate else None, "high": estimate.high if estimate else None}
