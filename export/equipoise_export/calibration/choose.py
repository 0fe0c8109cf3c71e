"""Measured cases → a policy whose every rule states what it guarantees, for whom, and on how many cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import numpy as np
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Contract, Task
from equipoise_core.decision import Evidence, Route, decide, settled
from equipoise_core.monitoring import QUANTILES, Monitoring
from equipoise_core.policy import AcceptRule, Bounds, Policy, SensitiveRule, VolumeRule
from equipoise_core.recalibration import Recalibration
from equipoise_core.statistics import SIMPLE
from equipoise_core.stopping import Look, Stopping
from numpy.typing import NDArray

from .cases import SENSITIVE_GRID, Labelled, Measured, Step
from .conformal import cases_needed_for_level, interval_widening, upper_limit
from .errors import TooFewCases
from .metrics import area_under_risk_coverage
from .ood_distance import fit_ood_distance
from .recalibrate import fit_isotonic, fit_temperature
from .risk import Certificate, accepted_cases_needed, cases_needed_for_control, conformal_risk_control, learn_then_test

EPISTEMIC = {Task.SEGMENTATION: ("sample_disagreement", "rim_epistemic"), Task.CLASSIFICATION: ("mutual_information",)}
"""The first of these that a model has says that samples disagree more than they do on typical cases. Of a segmentation
not `rim_epistemic` where samples are drawn: after 8 of 20 its logarithm is still off by 1.0 (hippocampus, nuclei) of
its standard deviation between cases, that of `sample_disagreement` by .46 and .12, so that hardly a case could stop
early."""

CANDIDATES = 100
"""Accept thresholds that are tried: equal steps of the pilot cases' rank."""

DRIFT_TAIL = 0.002
"""Share of pilot cases whose score moves further than a look's drift, on either side."""

DRIFT_MARGIN = 1.25
"""The drift is widened by this, since a few dozen pilot cases do not show the largest. Seen on the reference models'
1574 calibration and test cases: 1 gives 98.8 % lower end for the agreement with full T, 1.25 gives 99.4 %."""

SMALLEST_SHARE = 1e-6
"""A prediction's statistic counts as at least this, since its logarithm is looked at."""

POPULATION = (
    "new cases exchangeable with the calibration cases: same kind of patients, scanners and protocol, labels by "
    "the same standard; a shifted site needs a calibration of its own"
)


class Method(str, Enum):
    """How probabilities are recalibrated."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"
    NONE = "none"


@dataclass(frozen=True)
class Goals:
    """What the policy is to guarantee.

    Attributes:
        alpha, delta: error among accepted cases at most alpha with confidence 1 − delta.
        loss: what counts as an error, in words.
        false_alarms: share of typical cases that a bound may hold back for review.
        rejected: share of typical cases that may be rejected, or 1/(n + 1) where n cases cannot show that little.
        audited: share of accepted cases that are marked for an expert to look at all the same.
        level: of the volume intervals.
        missed: expected share of true foreground that `labels_sensitive` may miss.
        method: of recalibration.
        adaptive: whether cases may stop early.
        score: the case score to route by; None: the one that ranks the pilot cases best.
    """

    loss: str
    alpha: float = 0.1
    delta: float = 0.1
    false_alarms: float = 0.05
    level: float = 0.9
    missed: float = 0.05
    method: Method = Method.TEMPERATURE
    adaptive: bool = True
    score: str | None = None
    rejected: float = 0.01
    audited: float = 0.05


@dataclass(frozen=True)
class ChosenPolicy:
    """A policy and how its accept threshold came about.

    Attributes:
        score: the case score that routing looks at.
        certificate: None where nothing could be certified; `why` says so.
    """

    contract: Contract
    policy: Policy
    score: str
    certificate: Certificate | None
    why: str

    def served(self, case: Measured) -> Served:
        """What the service answers under the policy."""
        return serve(self.contract, self.policy, case)


@dataclass(frozen=True)
class Served:
    """The step at which the service stops, and its route there; `screened`: the screen's, and no sample was drawn."""

    step: Step
    route: Route
    screened: bool = False


def serve(contract: Contract, policy: Policy, case: Measured) -> Served:
    """One case by the core's own rules for stopping and routing: what is tested here is what is served."""
    return _serve(contract, policy, case, _numbers(policy, case))


def _numbers(policy: Policy, case: Measured) -> list[dict[str, float]]:
    """As `Assessment.numbers`, at each step; the screen's, where there is one, last."""
    ood_distance = policy.ood_distance.number(case.statistics) if policy.ood_distance else {}
    steps = [*case.steps, *([case.screen.step] if case.screen else [])]
    return [{**case.statistics, **step.scores, **step.prediction, **ood_distance} for step in steps]


def _serve(contract: Contract, policy: Policy, case: Measured, numbers: Sequence[Mapping[str, float]]) -> Served:
    if case.screen is not None and policy.screen is not None:
        *numbers, known = numbers
        step = case.screen.step
        evidence = Evidence(known, step.samples, policy.samples, False, False, case.spacing, screened=True)
        route = decide(contract, policy, "", evidence).route
        if route is not Route.REVIEW:
            return Served(step, route, screened=True)
    for step, known in zip(case.steps, numbers, strict=False):  # a screen that no rule looks at comes after
        last = step is case.full
        if last or settled(policy, known, {*step.scores, *step.prediction}, step.samples):
            evidence = Evidence(known, step.samples, policy.samples, False, False, case.spacing, stopped=not last)
            return Served(step, decide(contract, policy, "", evidence).route)
    raise AssertionError("the last step is served")


def choose_policy(
    contract: Contract,
    samples: int,
    pilot: Sequence[Measured],
    cases: Sequence[Measured],
    goals: Goals,
    typical_inputs: Sequence[Mapping[str, float]] | None = None,
) -> ChosenPolicy:
    """Chooses every rule.

    The pilot cases are for exploration (what is typical, how far scores drift, which thresholds to try) and are in no
    guarantee; the calibration cases then test what was fixed. No patient may be in both, and of each patient one
    calibration case counts: the others are no further evidence of what happens to the next patient.

    Args:
        typical_inputs: input statistics of further typical images, which need no label; None: the pilot cases'.

    Raises:
        TooFewCases: a guarantee needs more calibration cases than there are.
    """
    cases = one_each(cases)
    check_enough(contract, len(cases), goals)
    score = goals.score or choose_score([case.full for case in pilot])
    epistemic = [name for name in EPISTEMIC[contract.task] if name in cases[0].full.scores][:1]
    ood_distance = fit_ood_distance(typical_inputs or [case.statistics for case in pilot])
    distances = np.array([ood_distance.distance(case.statistics) for case in cases])
    typical = {
        **{
            name: (0.0, upper_limit(np.array([c.full.scores[name] for c in cases]), 1.0 - goals.false_alarms))
            for name in epistemic
        },
        "ood_distance": (0.0, upper_limit(distances, 1.0 - goals.false_alarms)),
        **{name: typical_range(name, pilot, cases, goals.false_alarms) for name in cases[0].full.prediction},
    }
    moving = tuple(dict.fromkeys((score, *epistemic, *cases[0].full.prediction)))
    rejected = max(goals.rejected, 1.0 / (len(cases) + 1))
    by = f"(split conformal, {len(cases)} cases)"
    policy = Policy(
        contract.model_digest,
        digest_of(sorted(case.image_digest for case in cases)),
        samples,
        typical=Bounds(typical, f"at most {goals.false_alarms:.1%} of new cases lie outside each {by}"),
        suitable=Bounds(
            {"ood_distance": (0.0, upper_limit(distances, 1.0 - rejected))},
            f"at most {rejected:.1%} of new cases lie outside {by}",
        ),
        population=POPULATION,
        ood_distance=ood_distance,
        stopping=choose_stopping(pilot, moving) if goals.adaptive and len(pilot[0].steps) > 1 else None,
    )
    policy, certificate, why = choose_accept(contract, policy, score, pilot, cases, goals)
    answered = [serve(contract, policy, case) for case in cases]
    served = [each.step for each in answered]
    policy = replace(
        policy,
        volume=choose_volume(contract, cases, served, goals.level),
        sensitive=choose_sensitive(contract, served, goals.missed),
        recalibration=choose_recalibration(contract, as_served(cases, answered), goals.method),
        monitoring=choose_monitoring(policy, cases, served, goals.audited),
    )
    return ChosenPolicy(contract, policy, score, certificate, why)


def check_enough(contract: Contract, cases: int, goals: Goals) -> None:
    """Raises TooFewCases for the guarantee that takes the most calibration cases, if there are fewer."""
    needs = {
        f"an error of at most {goals.alpha:g} with confidence {1 - goals.delta:g}": accepted_cases_needed(
            goals.alpha, goals.delta
        ),
        f"a false-alarm rate of at most {goals.false_alarms:g}": cases_needed_for_level(1.0 - goals.false_alarms),
    }
    if contract.task is Task.SEGMENTATION:
        needs[f"volume intervals at {goals.level:g}"] = cases_needed_for_level(goals.level)
        needs[f"at most {goals.missed:g} of the foreground missed"] = cases_needed_for_control(goals.missed)
    what = max(needs, key=lambda name: needs[name])
    if cases < needs[what]:
        raise TooFewCases(f"{contract.name}: {what}", cases, needs[what])


def typical_range(
    name: str, pilot: Sequence[Measured], cases: Sequence[Measured], false_alarms: float
) -> tuple[float, float]:
    """A range of a positive number, as far above the pilot cases' median as below in proportion (split conformal)."""

    def logarithms(of: Sequence[Measured]) -> NDArray[np.float64]:
        return np.log(np.maximum([case.full.prediction[name] for case in of], SMALLEST_SHARE))

    centre = float(np.median(logarithms(pilot)))
    reach = upper_limit(np.abs(logarithms(cases) - centre), 1.0 - false_alarms)
    return math.exp(centre - reach), math.exp(centre + reach)


def choose_score(steps: Sequence[Step]) -> str:
    """The case score of least area under the risk-coverage curve on these cases; at a tie the first.

    The risk is 1 − Dice where there is one (it ranks all cases, not only the wrong ones), else the loss.
    """
    risk = np.array([step.loss if np.isnan(step.dice) else 1.0 - step.dice for step in steps])
    names = list(steps[0].scores)
    areas = [area_under_risk_coverage(np.array([step.scores[name] for step in steps]), risk) for name in names]
    return names[int(np.argmin(np.round(areas, 6)))]


def choose_stopping(pilot: Sequence[Measured], names: Sequence[str]) -> Stopping:
    """Per look and number the central range of `√x_T − √x_t` over pilot cases, widened to include 0."""
    looks = []
    for index, step in enumerate(pilot[0].steps[:-1]):
        drift = {}
        for name in names:
            now, full = (
                np.sqrt([{**each.scores, **each.prediction}[name] for each in steps])
                for steps in ([case.steps[index] for case in pilot], [case.full for case in pilot])
            )
            low, high = np.quantile(full - now, [DRIFT_TAIL, 1.0 - DRIFT_TAIL])
            drift[name] = (min(0.0, DRIFT_MARGIN * float(low)), max(0.0, DRIFT_MARGIN * float(high)))
        looks.append(Look(step.samples, drift))
    return Stopping(
        tuple(looks),
        f"stop where no limit lies within {DRIFT_MARGIN} times the drift that all but {2 * DRIFT_TAIL:.1%} of "
        f"{len(pilot)} pilot cases showed until full T; the accept threshold was tested on cases that stop so",
    )


def choose_accept(
    contract: Contract, policy: Policy, score: str, pilot: Sequence[Measured], cases: Sequence[Measured], goals: Goals
) -> tuple[Policy, Certificate | None, str]:
    """Learn-then-Test over thresholds on the procedure as it is served. Returns policy, certificate, words.

    Where there is a screen, its threshold and the samples' are the same quantile of the pilot cases' scores: one
    sequence of candidates, tested on the two together.
    """
    scored = [(score, [case.full for case in pilot])]
    if contract.screen is not None:
        screens = [case.screen.step for case in pilot if case.screen is not None]
        scored.append((choose_score(screens), screens))

    def accepting(thresholds: NDArray[np.float64], served: Sequence[Served] = (), words: str = "a candidate") -> Policy:
        rules = []
        for screened, ((name, _), threshold) in enumerate(zip(scored, thresholds, strict=True)):
            here = [each.step.loss for each in served if each.route is Route.ACCEPT and each.screened == screened]
            guarantee = (goals.alpha, goals.delta) if served else (None, None)
            counts = (len(served), len(here), round(sum(here)))
            rules.append(AcceptRule(name, float(threshold), goals.loss, *counts, words, *guarantee))
        return replace(policy, accept=rules[0], screen=rules[1] if len(rules) > 1 else None)

    ranks = np.linspace(0.0, 1.0, CANDIDATES)
    quantiles = [np.quantile([step.scores[name] for step in steps], ranks) for name, steps in scored]
    candidates = np.unique(np.stack(quantiles, axis=1), axis=0)
    numbers = [_numbers(policy, case) for case in cases]
    columns = []
    for thresholds in candidates:
        tried = accepting(thresholds)
        columns.append([_serve(contract, tried, case, known) for case, known in zip(cases, numbers, strict=True)])
    accepted = np.array([[served.route is Route.ACCEPT for served in column] for column in columns]).T
    losses = np.array([[served.step.loss for served in column] for column in columns]).T
    certificate = learn_then_test(accepted, losses, goals.alpha, goals.delta)
    if certificate is None:
        most, needed = int(accepted.sum(axis=0).max()), accepted_cases_needed(goals.alpha, goals.delta)
        return policy, None, (
            f"no threshold could be certified on {len(cases)} cases: at most {most} pass the bounds, and an error of "
            f"at most {goals.alpha:g} with confidence {1 - goals.delta:g} needs {needed} accepted ones, all right"
        )  # fmt: skip
    why = (
        f"accepted {certificate.accepted} of {len(cases)} calibration cases, {certificate.losses:g} of them wrong "
        f"({goals.loss}): error among accepted cases at most {goals.alpha:g} with confidence {1 - goals.delta:g} "
        f"(Learn-then-Test, exact binomial p = {certificate.p_value:.3g}, thresholds fixed on {len(pilot)} other cases)"
    )
    return accepting(candidates[certificate.index], columns[certificate.index], why), certificate, why


def choose_volume(
    contract: Contract, cases: Sequence[Measured], served: Sequence[Step], level: float
) -> VolumeRule | None:
    """Split-conformal widening per class and in total; None without a physical scale."""
    if contract.spacing is None or contract.task is not Task.SEGMENTATION or not all(step.volumes for step in served):
        return None
    widening = {}
    for name in served[0].volumes:
        low, high = (np.array([step.volumes[name][end] for step in served]) for end in (1, 2))
        truth = np.array([case.truths[name] for case in cases])
        widening[name] = interval_widening(low, high, truth, level)
    return VolumeRule(
        level,
        widening,
        len(cases),
        f"split conformal on {len(cases)} cases: a new case's true volume lies inside with probability at least "
        f"{level:g}, on average over calibrations",
    )


def choose_sensitive(contract: Contract, served: Sequence[Step], missed: float) -> SensitiveRule | None:
    """Conformal risk control of the missed share of foreground; None for classification."""
    if contract.task is not Task.SEGMENTATION:
        return None
    losses = np.array([step.missed for step in served])
    index = conformal_risk_control(losses, missed)
    return SensitiveRule(
        SENSITIVE_GRID[index],
        missed,
        len(served),
        f"conformal risk control on {len(served)} cases, {losses[:, index].mean():.3f} missed there: on average at "
        f"most {missed:g} of a new case's true foreground is missed by labels_sensitive",
    )


def choose_monitoring(policy: Policy, cases: Sequence[Measured], served: Sequence[Step], audited: float) -> Monitoring:
    """Where the calibration cases lie in the scores, the prediction's statistics, the simple ones of the input, and
    their distance from what is typical."""
    numbers = [
        _numbers(policy, case)[case.steps.index(step) if step in case.steps else -1]
        for case, step in zip(cases, served, strict=True)
    ]
    # Scores of a screen and of samples are on scales of their own: no common distribution.
    scores = [] if cases[0].screen else served[0].scores
    names = [*scores, *served[0].prediction, *SIMPLE, "ood_distance"]
    tenths = np.linspace(0.0, 1.0, QUANTILES)
    return Monitoring(
        audited,
        {
            name: tuple(np.maximum.accumulate(np.quantile([each[name] for each in numbers], tenths)).tolist())
            for name in names
            if name in numbers[0]
        },
    )


def choose_recalibration(contract: Contract, cases: Sequence[Measured], method: Method) -> Recalibration | None:
    """Fitted on all calibration cases."""
    p, hits = stacked(cases)
    if method is Method.TEMPERATURE:
        return fit_temperature(p, hits, contract.activation)
    return fit_isotonic(p, hits) if method is Method.ISOTONIC else None


def as_served(cases: Sequence[Measured], served: Sequence[Served]) -> list[Measured]:
    """The cases with the probabilities that are answered: the screen's where it decided."""
    return [case.as_screened() if each.screened else case for case, each in zip(cases, served, strict=True)]


def stacked(cases: Sequence[Measured]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All cases' probabilities and hits, `[n, K]` each."""
    return np.concatenate([case.probabilities for case in cases]), np.concatenate([case.hits for case in cases])


_Case = TypeVar("_Case", Labelled, Measured)


def one_each(cases: Sequence[_Case]) -> list[_Case]:
    """One case of each patient, chosen by its name's digest: cases of one patient are not independent of each other."""
    kept: dict[str, _Case] = {}
    for case in sorted(cases, key=lambda each: digest_of(["case", each.name])):
        kept.setdefault(case.patient, case)
    return [case for case in cases if kept[case.patient] is case]


def deal_pilot(patients: Sequence[str], share: float) -> Mapping[str, bool]:
    """Patient → whether their cases are pilot cases: about `share` of them, by the digest of their names."""
    dealt = sorted(set(patients), key=lambda patient: digest_of(["pilot", patient]))
    count = max(1, math.floor(share * len(dealt)))
    return {patient: index < count for index, patient in enumerate(dealt)}


def deal_folds(patients: Sequence[str], folds: int) -> Mapping[str, int]:
    """Patient → one of `folds` folds of nearly equal size, by the digest of their names."""
    dealt = sorted(set(patients), key=lambda patient: digest_of(["fold", patient]))
    return {patient: index % folds for index, patient in enumerate(dealt)}
