"""Measured cases → a policy whose every rule states what it guarantees, for whom, and on how many cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import takewhile
from typing import TypeVar

import numpy as np
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Contract, Task
from equipoise_core.decision import Evidence, Route, decide
from equipoise_core.intervals import RELATIVE_WIDTH, IntervalRule
from equipoise_core.monitoring import QUANTILES, Monitoring
from equipoise_core.outline import OutlineRule
from equipoise_core.policy import NO_BOUNDS, Bounds, Groups, Guarantee, Policy, SensitiveRule, VolumeRule
from equipoise_core.reasons import Reason
from equipoise_core.recalibration import Recalibration
from equipoise_core.stages import FIRST_PASS, Stage, chunk_of
from equipoise_core.statistics import SIMPLE
from equipoise_core.volume import widened
from numpy.typing import NDArray

from ..progress import phase
from .cases import SENSITIVE_GRID, Labelled, Measured, Step
from .conformal import cases_needed_for_level, interval_widening, upper_limit
from .errors import TooFewCases
from .expected import expected_rates
from .gain import LEVEL as GAIN_LEVEL
from .gain import Fit, Gain, cross_validated_gain
from .groups import certify_groups
from .metrics import area_under_risk_coverage
from .ood_distance import fit_ood_distance
from .outline import Margins, choose_outline, scales_of
from .recalibrate import fit_isotonic, fit_temperature, fit_venn_abers
from .regression import choose_interval, errors, pilot_rule, with_width
from .risk import Certificate, accepted_cases_needed, cases_needed_for_control, conformal_risk_control, learn_then_test

EPISTEMIC = {
    Task.SEGMENTATION: ("sample_disagreement", "rim_epistemic"),
    Task.CLASSIFICATION: ("mutual_information",),
    Task.REGRESSION: ("epistemic_deviation",),
}
"""The first of these that a model has says that samples disagree more than they do on typical cases. Of a segmentation
not `rim_epistemic` where samples are drawn: after 8 of 20 its logarithm is still off by 1.0 (hippocampus, nuclei) of
its standard deviation between cases, that of `sample_disagreement` by .46 and .12, so that an early stage could decide
hardly a case."""

CANDIDATES = 100
"""Ranks of the accept thresholds that are tried, the closer together the more cases they accept."""

REVIEW_RANK = 0.5
"""Before the last stage a case goes to review where its score's rank lies in this share of those above the accept
threshold's: hardly any of them would be accepted with more samples."""

GAIN_FOLDS = 5

SMALLEST_SHARE = 1e-6
"""A prediction's statistic counts as at least this, since its logarithm is looked at."""

POPULATION = (
    "new cases exchangeable with the calibration cases: same kind of patients, scanners and protocol, labels by "
    "the same standard; a shifted site needs a calibration of its own"
)


class Method(str, Enum):
    """How probabilities are recalibrated, where that is a clear gain; `best`: by the one that gains most."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"
    VENN_ABERS = "venn-abers"
    BEST = "best"
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
        score: the case score to route by; None: the one that ranks the pilot cases best.
        tolerances: regression: per target, an answer further from the truth is an error.
        by: what the cases' groups are, in words, where each is to have a certificate of its own; "": none is.
    """

    loss: str
    alpha: float = 0.1
    delta: float = 0.1
    false_alarms: float = 0.05
    level: float = 0.9
    missed: float = 0.05
    method: Method = Method.TEMPERATURE
    score: str | None = None
    rejected: float = 0.01
    audited: float = 0.05
    by: str = ""
    tolerances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ChosenPolicy:
    """A policy and how its accept threshold came about.

    Attributes:
        score: the case score that routing looks at.
        certificate: None where nothing could be certified; `why` says so.
        gains: of the recalibrations that were tried.
    """

    contract: Contract
    policy: Policy
    score: str
    certificate: Certificate | None
    why: str
    gains: tuple[Gain, ...] = ()

    @property
    def recalibrated(self) -> Method | None:
        """By what method, if any."""
        if self.policy.recalibration is None:
            return None
        return Method(max((gain for gain in self.gains if gain.clear), key=lambda gain: gain.low).method)

    def scored(self, cases: Sequence[Measured]) -> list[Measured]:
        """The cases with the scores that the policy adds to the model's own."""
        rule = self.policy.interval
        return list(cases) if rule is None else with_width(self.contract, rule, cases)

    def served(self, case: Measured) -> Served:
        """What the service answers under the policy."""
        return serve(self.contract, self.policy, case)


@dataclass(frozen=True)
class Served:
    """The answer of the stage that decides, its route, and why."""

    step: Step
    route: Route
    reason: Reason


def serve(contract: Contract, policy: Policy, case: Measured) -> Served:
    """One case through the policy's stages by the core's own rule: what is tested here is what is served."""
    return _serve(contract, policy, case, _input_numbers(policy, case))


def _serve(contract: Contract, policy: Policy, case: Measured, known: Mapping[str, float]) -> Served:
    for stage in policy.stages:
        step = case.after(stage.samples)
        evidence = Evidence(
            known,
            {**step.scores, **step.prediction},
            stage.samples,
            policy.samples,
            last=stage is policy.stages[-1],
            spacing=case.spacing,
            windows=case.windows,
            group=case.group or None,
        )
        decision = decide(contract, policy, "", evidence)
        if decision is not None:
            return Served(step, decision.route, decision.reason)
    raise AssertionError("the last stage decides")


def _input_numbers(policy: Policy, case: Measured) -> dict[str, float]:
    """As `Assessment.input_numbers`."""
    distance = policy.ood_distance.number(case.statistics) if policy.ood_distance else {}
    return {**case.statistics, **distance}


@phase("choosing the policy")
def choose_policy(
    contract: Contract,
    pilot: Sequence[Measured],
    cases: Sequence[Measured],
    goals: Goals,
    typical_inputs: Sequence[Mapping[str, float]] | None = None,
    stages: Sequence[int] = (),
    costs: Costs | None = None,
) -> ChosenPolicy:
    """Chooses every rule.

    The pilot cases are for exploration (what is typical, which stages save most, which thresholds to try) and are in no
    guarantee; the calibration cases then test what was fixed. No patient may be in both, and of each patient one
    calibration case counts: the others are no further evidence of what happens to the next patient.

    Args:
        typical_inputs: input statistics of further typical images, which need no label; None: the pilot cases'.
        stages: numbers of samples; empty: of what was measured, the stages that cost the pilot cases least, or full T
            alone where no costs are known.
        costs: what sampler runs take on the machine that will serve.

    Raises:
        TooFewCases: a guarantee needs more calibration cases than there are.
    """
    cases = one_each(cases)
    check_enough(contract, len(cases), goals)
    interval = pilot_rule(contract, pilot, goals.level, goals.tolerances) if contract.targets else None
    if interval is not None:
        goals = replace(goals, score=RELATIVE_WIDTH)
        pilot, cases = (with_width(contract, interval, some) for some in (pilot, cases))
    score = _score(goals, [case.full for case in pilot])
    whole = (Stage(cases[0].full.samples, score),)
    policy = choose_bounds(contract, pilot, cases, goals, whole, typical_inputs, interval)
    if not stages:
        unbounded = replace(policy, typical=NO_BOUNDS, suitable=NO_BOUNDS)  # the bounds know the calibration cases
        stages = choose_stages(contract, unbounded, pilot, goals, costs) if costs else (policy.samples,)
    if interval is not None:
        interval = choose_interval(contract, interval, cases, stages)
        policy = replace(policy, interval=interval)
        pilot, cases = (with_width(contract, interval, some) for some in (pilot, cases))
    policy, certificate, why = choose_thresholds(contract, policy, stages, pilot, cases, goals)
    answers = [serve(contract, policy, case) for case in cases]
    served = [answer.step for answer in answers]
    accepted = [(case, each.step) for case, each in zip(cases, answers, strict=True) if each.route is Route.ACCEPT]
    worst = [case.worst(stages) for case in cases]
    volume = choose_volume(contract, cases, worst, goals.level)
    groups = len({case.group for case in cases}) if goals.by else 1
    expected = expected_rates(
        [answer.route for answer in answers],
        (CANDIDATES + 1.0) ** groups,
        missed_truths(contract, accepted, volume, interval),
        policy.ood_distance is not None,
    )
    recalibration, gains = choose_recalibration(contract, cases, served, goals.method)
    policy = replace(
        policy,
        volume=volume,
        sensitive=choose_sensitive(contract, worst, goals.missed),
        outline=_outline(contract, pilot, worst, stages, goals.level),
        recalibration=recalibration,
        monitoring=choose_monitoring(policy, cases, served, goals.audited, expected),
    )
    return ChosenPolicy(contract, policy, score, certificate, why, gains)


def choose_bounds(
    contract: Contract,
    pilot: Sequence[Measured],
    cases: Sequence[Measured],
    goals: Goals,
    stages: tuple[Stage, ...],
    typical_inputs: Sequence[Mapping[str, float]] | None = None,
    interval: IntervalRule | None = None,
) -> Policy:
    """What is typical and what is suitable, by split conformal prediction: a policy that accepts nothing yet.

    It takes no labels.

    Args:
        pilot, cases: of different patients; the first say what is typical, the second how far from it new cases lie.
        stages: without thresholds.
        interval: of a regression, as far as the pilot cases say it.
    """
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
    rejected = max(goals.rejected, 1.0 / (len(cases) + 1))
    by = f"(split conformal, {len(cases)} cases)"
    return Policy(
        contract.model_digest,
        digest_of(sorted(case.image_digest for case in cases)),
        stages,
        typical=Bounds(typical, f"at most {goals.false_alarms:.1%} of new cases lie outside each {by}"),
        suitable=Bounds(
            {"ood_distance": (0.0, upper_limit(distances, 1.0 - rejected))},
            f"at most {rejected:.1%} of new cases lie outside {by}",
        ),
        population=POPULATION,
        ood_distance=ood_distance,
        interval=interval,
    )


def check_enough(contract: Contract, cases: int, goals: Goals) -> None:
    """Raises TooFewCases for the guarantee that takes the most calibration cases, if there are fewer."""
    needs = {
        f"an error of at most {goals.alpha:g} with confidence {1 - goals.delta:g}": accepted_cases_needed(
            goals.alpha, goals.delta
        ),
        f"a false-alarm rate of at most {goals.false_alarms:g}": cases_needed_for_level(1.0 - goals.false_alarms),
    }
    if contract.targets:
        needs[f"intervals at {goals.level:g}"] = cases_needed_for_level(goals.level)
    if contract.per_voxel:
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


@dataclass(frozen=True)
class Costs:
    """Seconds of sampler runs on one image of the usual size.

    Attributes:
        first_pass: None: the model has none.
        samples: T of a run → its seconds.
    """

    first_pass: float | None
    samples: Mapping[int, float]

    def of(self, stages: Sequence[int], reached: int) -> float:
        """Of a case that goes through these stages as far as the one with `reached` samples."""
        chunk = chunk_of([samples for samples in stages if samples != FIRST_PASS])
        first = self.first_pass if stages[0] == FIRST_PASS else 0.0
        return (first or 0.0) + reached // chunk * self.samples[chunk]


def stage_lists(steps: Sequence[int]) -> list[tuple[int, ...]]:
    """What stages may be made of the numbers of samples that were measured: full T, with or without what is before."""
    *early, full = steps
    first = [samples for samples in early if samples == FIRST_PASS]
    fewer = [samples for samples in early if samples != FIRST_PASS]
    return list(dict.fromkeys([(full,), (*first, full), (*fewer, full), (*first, *fewer, full)]))


def choose_stages(
    contract: Contract, policy: Policy, pilot: Sequence[Measured], goals: Goals, costs: Costs
) -> tuple[int, ...]:
    """The stages that cost the pilot cases least, at the most permissive thresholds with few wrong."""

    def cost(stages: tuple[int, ...]) -> float:
        candidates = candidate_stages(stages, pilot, goals)
        if not candidates:  # nothing can be accepted: all go through every stage
            return costs.of(stages, stages[-1])
        columns = _served_by(contract, policy, candidates, pilot, goals)
        accepted = [[each for each in column if each.route is Route.ACCEPT] for column in columns]
        fine = [sum(each.step.loss for each in some) <= goals.alpha * len(some) for some in accepted]
        chosen = columns[int(np.flatnonzero(fine)[-1])] if any(fine) else columns[0]
        return float(np.mean([costs.of(stages, served.step.samples) for served in chosen]))

    return min(stage_lists([step.samples for step in pilot[0].steps]), key=cost)


def candidate_stages(stages: Sequence[int], pilot: Sequence[Measured], goals: Goals) -> list[tuple[Stage, ...]]:
    """From the strictest to the most permissive. A candidate is one rank: each stage's threshold is that quantile of
    its own score on the pilot cases. Where widths of intervals decide, those that would accept a wider one than
    tolerated are left out: a fixed sequence may end anywhere, since all before the last that passes hold at once.
    """
    steps = {samples: [case.after(samples) for case in pilot] for samples in stages}
    scores = {samples: _score(goals, of) for samples, of in steps.items()}
    values = {samples: [step.scores[scores[samples]] for step in of] for samples, of in steps.items()}

    def at(rank: float) -> tuple[Stage, ...]:
        above = rank + (1.0 - rank) * REVIEW_RANK
        return tuple(
            Stage(
                samples,
                scores[samples],
                float(np.quantile(values[samples], rank)),
                None if samples == stages[-1] or rank >= 1.0 else float(np.quantile(values[samples], above)),
            )
            for samples in stages
        )

    candidates = list(dict.fromkeys(at(rank) for rank in 1.0 - np.linspace(1.0, 0.0, CANDIDATES) ** 2))
    if goals.score != RELATIVE_WIDTH:
        return candidates
    return list(takewhile(lambda stages: all((stage.accept_up_to or 0.0) <= 1.0 for stage in stages), candidates))


def _served_by(
    contract: Contract, policy: Policy, candidates: Sequence[tuple[Stage, ...]], cases: Sequence[Measured], goals: Goals
) -> list[list[Served]]:
    """Of each candidate, what every case is answered."""
    untested = Guarantee(goals.alpha, goals.delta, goals.loss, 0, 0, 0, "a candidate")
    tried = [replace(policy, stages=candidate, guarantee=untested) for candidate in candidates]
    known = [_input_numbers(policy, case) for case in cases]
    return [[_serve(contract, each, case, of) for case, of in zip(cases, known, strict=True)] for each in tried]


def choose_thresholds(
    contract: Contract,
    policy: Policy,
    stages: Sequence[int],
    pilot: Sequence[Measured],
    cases: Sequence[Measured],
    goals: Goals,
) -> tuple[Policy, Certificate | None, str]:
    """Learn-then-Test over the thresholds of all stages together, on the procedure as it is served.

    Returns policy, certificate, words.
    """
    candidates = candidate_stages(stages, pilot, goals)
    if not candidates:
        return policy, None, "no threshold: hardly any interval is as narrow as the tolerance asks for"
    columns = _served_by(contract, policy, candidates, cases, goals)
    accepted = np.array([[served.route is Route.ACCEPT for served in column] for column in columns]).T
    losses = np.array([[served.step.loss for served in column] for column in columns]).T
    if goals.by:
        policy, why = _by_group(policy, candidates, accepted, losses, cases, goals)
        return policy, None, why
    certificate = learn_then_test(accepted, losses, goals.alpha, goals.delta)
    if certificate is None:
        most, needed = int(accepted.sum(axis=0).max()), accepted_cases_needed(goals.alpha, goals.delta)
        passed = "pass the bounds with an interval narrow enough" if contract.targets else "pass the bounds"
        return policy, None, (
            f"no threshold could be certified on {len(cases)} cases: at most {most} {passed}, and an error of "
            f"at most {goals.alpha:g} with confidence {1 - goals.delta:g} needs {needed} accepted ones, all right"
        )  # fmt: skip
    why = (
        f"accepted {certificate.accepted} of {len(cases)} calibration cases, {certificate.losses:g} of them wrong "
        f"({goals.loss}): error among accepted cases at most {goals.alpha:g} with confidence {1 - goals.delta:g} "
        f"(Learn-then-Test on {_words(stages)}, exact binomial p = {certificate.p_value:.3g}, thresholds fixed on "
        f"{len(pilot)} other cases)"
    )
    guarantee = Guarantee(
        goals.alpha, goals.delta, goals.loss, len(cases), certificate.accepted, round(certificate.losses), why
    )
    return replace(policy, stages=candidates[certificate.index], guarantee=guarantee), certificate, why


def _by_group(
    policy: Policy,
    candidates: Sequence[tuple[Stage, ...]],
    accepted: NDArray[np.bool_],
    losses: NDArray[np.float64],
    cases: Sequence[Measured],
    goals: Goals,
) -> tuple[Policy, str]:
    """Thresholds for each group of cases that its own cases certify; the others have none."""
    found = certify_groups(accepted, losses, [case.group for case in cases], goals.alpha, goals.delta)
    closed = tuple(replace(stage, accept_up_to=None) for stage in candidates[0])
    promise = (
        f"error among accepted cases at most {goals.alpha:g} in every certified {goals.by}, all together with "
        f"confidence {1 - goals.delta:g} (Learn-then-Test on the own cases of each of the {found.tested} that have "
        f"enough, at {found.level:.3g})"
    )
    guarantees = {}
    for name, certificate in found.certificates.items():
        own = sum(case.group == name for case in cases)
        words = (
            f"{goals.by} {name}: accepted {certificate.accepted} of {own} calibration cases, {certificate.losses:g} of "
            f"them wrong ({goals.loss}), p = {certificate.p_value:.3g}"
        )
        guarantees[name] = Guarantee(
            goals.alpha, found.level, goals.loss, own, certificate.accepted, round(certificate.losses), words
        )
    stages = {name: candidates[certificate.index] for name, certificate in found.certificates.items()}
    groups = Groups(goals.by, stages, guarantees, found.without, promise)
    if not guarantees:
        why = (
            f"no {goals.by} could be certified: each needs {found.needed} accepted calibration cases of its own, all "
            f"right, for an error of at most {goals.alpha:g}"
        )
        return replace(policy, stages=closed, groups=groups), why
    count = {name: sum(vars(each)[name] for each in guarantees.values()) for name in ("accepted", "errors", "cases")}
    why = f"{promise}: {'; '.join(each.rule for each in guarantees.values())}"
    total = Guarantee(goals.alpha, goals.delta, goals.loss, count["cases"], count["accepted"], count["errors"], why)
    return replace(policy, stages=closed, guarantee=total, groups=groups), why


def _score(goals: Goals, steps: Sequence[Step]) -> str:
    return goals.score if goals.score is not None and goals.score in steps[0].scores else choose_score(steps)


def _words(stages: Sequence[int]) -> str:
    """`a first pass, then 5 and 20 samples`."""
    numbers = [str(samples) for samples in stages if samples != FIRST_PASS]
    drawn = f"{' and '.join(filter(None, (', '.join(numbers[:-1]), numbers[-1])))} samples"
    return f"a first pass, then {drawn}" if stages[0] == FIRST_PASS else drawn


def choose_volume(
    contract: Contract, cases: Sequence[Measured], steps: Sequence[Step], level: float
) -> VolumeRule | None:
    """Split-conformal widening per class and in total; None without a physical scale. Steps: see `Measured.worst`.

    A class that most cases have none of would be covered by saying so each time. Cases that have it and cases that have
    none are therefore covered each on their own (Mondrian; Vovk et al. 2005), where there are enough: nobody knows
    of which kind a new case is, so the wider of the two is stated. Classes with too few are named.
    """
    if contract.spacing is None or not contract.per_voxel or not all(step.volumes for step in steps):
        return None
    widening, few = {}, []
    for name in steps[0].volumes:
        low, high = (np.array([step.volumes[name][end] for step in steps]) for end in (1, 2))
        truth = np.array([case.truths[name] for case in cases])
        there = truth > 0.0
        kinds = [kind for kind in (there, ~there) if kind.sum() >= cases_needed_for_level(level)]
        every = np.ones_like(there)
        widening[name] = max(interval_widening(low[k], high[k], truth[k], level) for k in (every, *kinds))
        if 0 < there.sum() < cases_needed_for_level(level):
            few.append(f"{name} ({there.sum()})")
    apart = f"; too few cases have {', '.join(few)} to promise as much of those that have it" if few else ""
    return VolumeRule(
        level,
        widening,
        len(cases),
        f"split conformal on {len(cases)} cases: a new case's true volume lies inside with probability at least "
        f"{level:g}, on average over calibrations{apart}",
    )


def missed_truths(
    contract: Contract,
    accepted: Sequence[tuple[Measured, Step]],
    volume: VolumeRule | None,
    interval: IntervalRule | None,
) -> tuple[int, int] | None:
    """Of accepted cases: how many have a truth outside its interval (of volumes `total`, where there is one; of numbers
    any), and their number. None: there are no intervals."""
    if interval is not None:
        outside = [
            errors(case, step, contract.answers) > interval.half_widths(contract.targets, step.numbers[:, 1])
            for case, step in accepted
        ]
        return sum(bool(each.any()) for each in outside), len(outside)
    if volume is None:
        return None
    missed = 0
    for case, step in accepted:
        name = "total" if "total" in step.volumes else sorted(step.volumes)[0]
        low, high = widened(*step.volumes[name], volume.widening[name])
        missed += not low <= case.truths[name] <= high
    return missed, len(accepted)


def _outline(
    contract: Contract, pilot: Sequence[Measured], steps: Sequence[Step], stages: Sequence[int], level: float
) -> OutlineRule | None:
    """None where there are no voxels; see `choose_outline`."""
    if not contract.per_voxel:
        return None
    early = [case.worst(stages).margins for case in pilot]
    voxel = 1.0 if contract.spacing is None else min(min(case.spacing) for case in pilot if case.spacing)
    scales = scales_of([each for each in early if each], level, voxel)
    return refit_outline(contract, scales, steps, level)


def refit_outline(contract: Contract, scales: Margins, steps: Sequence[Step], level: float) -> OutlineRule | None:
    """With scales that are known; see `choose_outline` and `Measured.worst`."""
    unit = "voxels" if contract.spacing is None else "mm"
    return choose_outline(scales, [step.margins for step in steps if step.margins], level, unit)


def choose_sensitive(contract: Contract, steps: Sequence[Step], missed: float) -> SensitiveRule | None:
    """Conformal risk control of the missed share of foreground, over cases that have any. Steps: see `Measured.worst`.

    None where there are no voxels, where too few cases have foreground, and where only a threshold of 0 would do, which
    takes everything for foreground and says nothing.
    """
    shares = [step.missed for step in steps if step.missed]
    if not contract.per_voxel or len(shares) < cases_needed_for_control(missed):
        return None
    losses = np.array(shares)
    index = conformal_risk_control(losses, missed)
    if SENSITIVE_GRID[index] <= 0.0:
        return None
    those, where = ("", "") if len(shares) == len(steps) else (" with foreground", ", where it has any")
    return SensitiveRule(
        SENSITIVE_GRID[index],
        missed,
        len(shares),
        f"conformal risk control on {len(shares)} cases{those}, {losses[:, index].mean():.3f} missed there: on average "
        f"at most {missed:g} of a new case's true foreground is missed by labels_sensitive{where}",
    )


def choose_monitoring(
    policy: Policy,
    cases: Sequence[Measured],
    served: Sequence[Step],
    audited: float,
    expected: Mapping[str, float],
) -> Monitoring:
    """Where the calibration cases lie in the scores, the prediction's statistics, the simple ones of the input, and
    their distance from what is typical."""
    numbers = [
        {**_input_numbers(policy, case), **step.scores, **step.prediction}
        for case, step in zip(cases, served, strict=True)
    ]
    # Scores of a first pass and of samples are on scales of their own: no common distribution.
    scores = [] if policy.stages[0].samples == FIRST_PASS else served[0].scores
    names = [*scores, *served[0].prediction, *SIMPLE, "ood_distance"]
    tenths = np.linspace(0.0, 1.0, QUANTILES)
    return Monitoring(
        audited,
        {
            name: tuple(np.maximum.accumulate(np.quantile([each[name] for each in numbers], tenths)).tolist())
            for name in names
            if name in numbers[0]
        },
        expected,
    )


def choose_recalibration(
    contract: Contract, cases: Sequence[Measured], served: Sequence[Step], method: Method
) -> tuple[Recalibration | None, tuple[Gain, ...]]:
    """Fitted on all calibration cases, as they are answered, if it is a clear gain on cases that it was not fitted on;
    and what was found of each method that was tried, at one level for all of them. Nothing for a regression."""
    if contract.targets:
        return None, ()
    tried = [each for each in _FITS if method in (each, Method.BEST)]
    fold_of = deal_folds([case.patient for case in cases], GAIN_FOLDS)
    probabilities, hits = [step.probabilities for step in served], [case.hits for case in cases]
    folds = [fold_of[case.patient] for case in cases]
    gains = tuple(
        cross_validated_gain(
            each.value, fit_of(contract, each), probabilities, hits, folds, contract.activation,
            level=1.0 - (1.0 - GAIN_LEVEL) / len(tried),
        )
        for each in tried
    )  # fmt: skip
    clear = [gain for gain in gains if gain.clear]
    if not clear:
        return None, gains
    best = max(clear, key=lambda gain: gain.low)
    return fit_of(contract, Method(best.method))(*stacked(cases, served)), gains


_FITS = (Method.TEMPERATURE, Method.ISOTONIC, Method.VENN_ABERS)
"""Methods that fit something."""


def fit_of(contract: Contract, method: Method) -> Fit:
    """What fits this method's recalibration, one of `_FITS`."""
    if method is Method.TEMPERATURE:
        return lambda p, hits: fit_temperature(p, hits, contract.activation)
    return fit_isotonic if method is Method.ISOTONIC else fit_venn_abers


def stacked(cases: Sequence[Measured], steps: Sequence[Step]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of these steps and hits of their cases, `[n, K]` each."""
    return np.concatenate([step.probabilities for step in steps]), np.concatenate([case.hits for case in cases])


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
