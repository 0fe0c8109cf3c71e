"""What a policy does on labelled cases, as numbers: the content of the report and of its JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract
from equipoise_core.policy import Policy
from equipoise_core.volume import widened
from numpy.typing import NDArray
from scipy.stats import binomtest

from ..progress import phase
from . import metrics
from .cases import SENSITIVE_GRID, Measured, Step
from .choose import (
    ChosenPolicy,
    Goals,
    choose_sensitive,
    choose_volume,
    deal_folds,
    fit_of,
    one_each,
    refit_outline,
    serve,
    stacked,
)  # fmt: skip
from .conformal import coverage_band
from .errors import TooFewCases
from .expected import most_events
from .regression import choose_interval, intervals
from .risk import accepted_cases_needed
from .scored import exclusive, probability_statistics, selection_statistics

FOLDS = 5


@dataclass(frozen=True)
class Judged:
    """One case under a policy that was not fitted on it.

    Attributes:
        step: what the service answers, at the stage that decides.
        route: what the service decides there; `reason` says why.
        full_route: what it would decide by full T alone.
        calibrated: `[m, K]`, recalibrated probabilities.
    """

    case: Measured
    policy: Policy
    step: Step
    route: str
    full_route: str
    calibrated: NDArray[np.float64]
    reason: str = ""

    @property
    def threshold(self) -> float | None:
        """Of the stage that decided, in its score's unit; None: nothing is accepted."""
        stage = self.policy.stage(self.step.samples, self.case.group)
        assert stage is not None
        return stage.accept_up_to

    @property
    def score_name(self) -> str:
        """Of the score that the stage looked at."""
        stage = self.policy.stage(self.step.samples, self.case.group)
        assert stage is not None
        return stage.score

    @property
    def score(self) -> float:
        return self.step.scores[self.score_name]

    @property
    def over_threshold(self) -> float | None:
        """The score over the threshold that it met, ≤ 1 where it was low enough; None: there was none."""
        return None if self.threshold is None else self.score / max(self.threshold, 1e-12)

    @property
    def ranking(self) -> float:
        """Where the score stands among those of all cases of the policy, whatever stage or group they are of.

        Stages' scores are on scales of their own, but their thresholds have one rank, so that over them they are on
        one. Groups' thresholds have different ranks: those of one group serve for the cases of all. Without any
        threshold the last stage's score.
        """
        certified = self.policy.groups.stages.values() if self.policy.groups else ()
        stages = next(iter(certified), self.policy.stages)
        unit = next(stage for stage in stages if stage.samples == self.step.samples).accept_up_to
        if unit is None:
            return self.case.after(self.policy.samples).scores[self.policy.stages[-1].score]
        return self.score / max(unit, 1e-12)

    def widened(self, name: str) -> tuple[float, float]:
        """The interval (low, high) of a volume as it is served, in mL."""
        return widened(*self.step.volumes[name], self.policy.volume.widening[name] if self.policy.volume else 0.0)


def judge(contract: Contract, chosen: ChosenPolicy, cases: Sequence[Measured]) -> list[Judged]:
    """The cases as the policy decides them."""
    judged = []
    at_full_samples = of_last_stage(chosen.policy)
    for case in cases:
        served, recalibration = chosen.served(case), chosen.policy.recalibration
        p = served.step.probabilities
        calibrated = recalibration.apply(p.T, contract.activation).T if recalibration else p
        full = serve(contract, at_full_samples, case).route
        why = str(served.reason)
        judged.append(Judged(case, chosen.policy, served.step, served.route.value, full.value, calibrated, why))
    return judged


def of_last_stage(policy: Policy) -> Policy:
    """What the policy would decide by its last stage alone."""
    groups = policy.groups
    if groups is not None:
        groups = replace(groups, stages={name: stages[-1:] for name, stages in groups.stages.items()})
    return replace(policy, stages=policy.stages[-1:], groups=groups)


@phase("judging each case by the others")
def judge_across(contract: Contract, chosen: ChosenPolicy, cases: Sequence[Measured], goals: Goals) -> list[Judged]:
    """The calibration cases, each under the rules for probabilities, volumes and outlines of other patients' cases.

    The accept threshold is the policy's own: its certificate already speaks of new cases.
    """
    fold_of = deal_folds([case.patient for case in cases], FOLDS)
    judged: list[Judged] = []
    for fold in range(FOLDS):
        inside = [case for case in cases if fold_of[case.patient] == fold]
        outside = one_each([case for case in cases if fold_of[case.patient] != fold])
        if not inside or not outside:
            continue
        served = [chosen.served(case).step for case in outside]
        recalibration = None
        if chosen.recalibrated is not None:
            recalibration = fit_of(contract, chosen.recalibrated)(*stacked(outside, served))
        stages = [stage.samples for stage in chosen.policy.stages]
        worst = [case.worst(stages) for case in outside]
        own = chosen.policy.outline
        outline = refit_outline(contract, (own.inner or 1.0, own.outer or 1.0), worst, goals.level) if own else None
        policy = replace(chosen.policy, recalibration=recalibration, volume=None, sensitive=None, outline=outline)
        with contextlib.suppress(TooFewCases):
            if policy.interval is not None:
                policy = replace(policy, interval=choose_interval(contract, policy.interval, outside, stages))
            policy = replace(
                policy,
                volume=choose_volume(contract, outside, worst, goals.level),
                sensitive=choose_sensitive(contract, worst, goals.missed),
            )
        judged += judge(contract, replace(chosen, policy=policy), inside)
    return judged


def figures(contract: Contract, judged: Sequence[Judged], goals: Goals) -> dict[str, Any]:
    """All figures of some cases, JSON-able."""
    routes = [each.route for each in judged]
    accepted = [each for each in judged if each.route == "accept"]
    wrong = int(sum(each.step.loss for each in accepted))
    report: dict[str, Any] = {
        "cases": len(judged),
        "patients": len({each.case.patient for each in judged}),
        "routes": {route: routes.count(route) for route in ("accept", "review", "reject")},
        "wrong": int(sum(each.step.loss for each in judged)),
        "wrong_among_accepted": wrong,
        "error_among_accepted": exact_share(wrong, len(accepted)),
        "probabilities": {} if contract.targets else probability_figures(contract, judged),
        "selection": selection_figures(judged),
        "samples": sample_figures(judged),
    }
    if not (contract.targets or contract.per_voxel):
        report["by_truth"] = errors_by_class(contract, judged, goals, [each.case.hits[0] > 0.0 for each in judged])
        if contract.activation is Activation.SOFTMAX:
            tops = [each.step.probabilities[0].argmax() for each in judged]
            predicted = [np.arange(len(contract.classes)) == top for top in tops]
            report["by_prediction"] = errors_by_class(contract, judged, goals, predicted)
    if contract.targets:
        report["numbers"] = number_figures(contract, judged)
    if contract.per_voxel:
        dice = np.array([each.step.dice for each in judged])
        report["dice"] = {"mean": float(dice.mean()), "lowest": float(dice.min())}
        if accepted:
            report["dice"]["lowest_accepted"] = float(min(each.step.dice for each in accepted))
        report["missed_foreground"] = sensitive_figures(judged)
        report["volume"] = volume_figures(judged)
        report["outline"] = outline_figures(judged)
    return report


def probability_figures(contract: Contract, judged: Sequence[Judged]) -> dict[str, Any]:
    """Calibration errors, Brier and NLL before and after recalibration, with the floor after it; per class as well.

    Of a segmentation over voxels, whose errors within a case go together: the floor is then too low, and says so.
    """
    before, after = [each.step.probabilities for each in judged], [each.calibrated for each in judged]
    hits, patients = [each.case.hits for each in judged], [each.case.patient for each in judged]
    if not exclusive(contract):
        return {
            f"label {k}": probability_statistics(
                _column(k, before), _column(k, after), _column(k, hits), patients, False
            )
            for k in range(before[0].shape[1])
        }
    report = probability_statistics(before, after, hits, patients, one_of=True)
    truth = np.concatenate(hits).argmax(axis=1)
    classes = [metrics.class_calibration_errors(np.concatenate(of), truth) for of in (before, after)]
    report["per_class"] = [{"ece": {"before": b, "after": a}} for b, a in zip(*classes, strict=True)]
    return report


def _column(k: int, every: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    return [of[:, [k]] for of in every]


def errors_by_class(
    contract: Contract, judged: Sequence[Judged], goals: Goals, of: Sequence[NDArray[np.bool_]]
) -> dict[str, Any]:
    """Of each class, among its cases: how many are accepted, and how many of those are wrong.

    `at_most` bounds the error among them with confidence 1 − δ, `error` has an interval of 95 %, each for all classes
    together (Bonferroni). `enough`: whether so many accepted cases could show an error of at most α, none being wrong.
    A rare class may fare worse than the average that the policy promises. To what a case truly is no threshold can be
    fitted, since nobody knows when it is routed; to what it is predicted to be, see `groups.BY_PREDICTION`.

    Args:
        of: of each case `[K]`, whether it is one of a class's.
    """
    classes = len(contract.classes)
    confidence, needed = 1.0 - 0.05 / classes, accepted_cases_needed(goals.alpha, goals.delta / classes)
    report = {}
    for k, name in enumerate(contract.classes):
        those = [each for each, belongs in zip(judged, of, strict=True) if belongs[k]]
        accepted = [each for each in those if each.route == "accept"]
        wrong = int(sum(each.step.loss for each in accepted))
        report[name] = {
            "cases": len(those),
            "accepted": len(accepted),
            "wrong": wrong,
            "error": exact_share(wrong, len(accepted), confidence),
            "at_most": most_events(wrong, len(accepted), goals.delta / classes),
            "enough": len(accepted) >= needed,
        }
    return report


def selection_figures(judged: Sequence[Judged]) -> dict[str, Any]:
    """Risk-coverage and separation figures of the case score at the stage that decided, over all cases on one scale."""
    scores = np.array([each.ranking for each in judged])
    losses = np.array([each.step.loss for each in judged])
    patients = [each.case.patient for each in judged]
    return {
        "scores": {stage.samples: stage.score for stage in judged[0].policy.stages},
        **selection_statistics(scores, losses, patients),
    }


def sample_figures(judged: Sequence[Judged]) -> dict[str, Any]:
    """Samples used, cases by the stage that decided, and how often one before the last would be routed so by full T."""
    used = np.array([each.step.samples for each in judged])
    early = [each for each in judged if each.step.samples < each.case.full.samples]
    same = sum(each.route == each.full_route for each in early)
    return {
        "median": float(np.median(used)),
        "mean": float(used.mean()),
        "full": judged[0].case.full.samples,
        "decided_after": {stage.samples: int((used == stage.samples).sum()) for stage in judged[0].policy.stages},
        "decided_early": len(early),
        "same_route_as_full": exact_share(same, len(early)),
    }


def sensitive_figures(judged: Sequence[Judged]) -> dict[str, float]:
    """Mean missed share of true foreground by `labels` and by `labels_sensitive`, over cases that have any."""
    judged = [each for each in judged if each.step.missed]
    if not judged:
        return {}
    report = {"labels": float(np.mean([each.step.missed[0] for each in judged]))}
    rules = [each.policy.sensitive for each in judged]
    if all(rules):
        shares = [e.step.missed[SENSITIVE_GRID.index(r.threshold)] for e, r in zip(judged, rules, strict=True) if r]
        report["labels_sensitive"] = float(np.mean(shares))
    return report


def outline_figures(judged: Sequence[Judged]) -> dict[str, Any]:
    """How often the true outline lay between the margins, and their means; empty where a policy states none."""
    held = [(each.step.margins, each.policy.outline) for each in judged if each.step.margins and each.policy.outline]
    if len(held) < len(judged) or not held:
        return {}
    inside = [inner <= rule.inner and outer <= rule.outer for (inner, outer), rule in held]
    return {
        "coverage": exact_share(sum(inside), len(inside)),
        "level": held[0][1].level,
        "inner": float(np.mean([rule.inner for _, rule in held])),
        "outer": float(np.mean([rule.outer for _, rule in held])),
    }


def volume_columns(judged: Sequence[Judged], name: str) -> NDArray[np.float64]:
    """`[6, n]` in mL: mean, low, high, the truth, and low and high as they are served."""
    return np.array([(*each.step.volumes[name], each.case.truths[name], *each.widened(name)) for each in judged]).T


def volume_figures(judged: Sequence[Judged]) -> dict[str, Any]:
    """Per class and total: coverage before and after widening, its band, and mean width in mL."""
    report: dict[str, Any] = {}
    measured = [each for each in judged if each.policy.volume]
    rule = measured[0].policy.volume if measured else None
    for name in judged[0].step.volumes if rule else ():
        mean, low, high, truth, wide_low, wide_high = volume_columns(measured, name)
        assert rule is not None
        report[name] = {
            "raw_coverage": float(((low <= truth) & (truth <= high)).mean()),
            "coverage": float(((wide_low <= truth) & (truth <= wide_high)).mean()),
            "band_99": list(coverage_band(rule.cases, len(truth), rule.level)),
            "width_ml": float((wide_high - wide_low).mean()),
            "mean_error_ml": float((mean - truth).mean()),
        }
    return report


def number_figures(contract: Contract, judged: Sequence[Judged]) -> dict[str, Any]:
    """Of a regression: how far from the truth, and whether the intervals hold it, out of fold.

    Per target in its unit: `mean_error` (signed), `mean_absolute_error`, that of accepted cases, `width` of the
    interval on average, `coverage`; `together`: the share of cases all of whose intervals hold, with the band in which
    it lies for a correct method where full T decides (above it where earlier stages may).
    """
    rules = [each.policy.interval for each in judged]
    rule = rules[0]
    assert rule is not None
    ends = np.array([intervals(contract, r, each.step) for r, each in zip(rules, judged, strict=True) if r is not None])
    truth = np.array([[each.case.truths[name] for name in contract.answers] for each in judged])
    mean = np.array([each.step.numbers[:, 0] for each in judged])
    inside = (ends[..., 0] <= truth) & (truth <= ends[..., 1])
    accepted = np.array([each.route == "accept" for each in judged])
    targets = {}
    for k, target in enumerate(contract.targets):
        error = mean[:, k] - truth[:, k]
        targets[target.name] = {
            "unit": target.unit,
            "tolerance": rule.targets[target.name].tolerance,
            "mean_error": float(error.mean()),
            "mean_absolute_error": float(np.abs(error).mean()),
            "mean_absolute_error_accepted": float(np.abs(error[accepted]).mean()) if accepted.any() else None,
            "width": float((ends[:, k, 1] - ends[:, k, 0]).mean()),
            "coverage": float(inside[:, k].mean()),
        }
    band = list(coverage_band(rule.cases, len(judged), rule.level))
    return {"targets": targets, "together": {"coverage": float(inside.all(axis=1).mean()), "band_99": band}}


def by_group(contract: Contract, judged: Sequence[Judged], goals: Goals) -> dict[str, Any]:
    """The same figures for each scanner or site that the cases name; empty where they name none."""
    groups = sorted({each.case.group for each in judged} - {""})
    return {group: figures(contract, [j for j in judged if j.case.group == group], goals) for group in groups}


def exact_share(part: int, whole: int, confidence: float = 0.95) -> dict[str, float | None]:
    """A share with its exact interval (Clopper & Pearson 1934)."""
    if not whole:
        return {"share": None, "low": None, "high": None}
    interval = binomtest(part, whole).proportion_ci(confidence)
    return {"share": part / whole, "low": float(interval.low), "high": float(interval.high)}
