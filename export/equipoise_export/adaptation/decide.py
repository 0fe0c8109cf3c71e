"""What may be promised at a site: bounds and candidates before any label, a policy from the labels so far."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Contract
from equipoise_core.decision import Route
from equipoise_core.ood_distance import FARTHEST
from equipoise_core.outline import OutlineRule
from equipoise_core.policy import Adapted, Guarantee, Policy, SensitiveRule, VolumeRule
from equipoise_core.stages import Stage
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from ..calibration.cases import Measured, Step, all_seen
from ..calibration.choose import (
    Goals,
    choose_bounds,
    choose_monitoring,
    choose_volume,
    deal_pilot,
    refit_outline,
    serve,
)
from ..calibration.conformal import cases_needed_for_level
from ..calibration.expected import unusual_rate
from ..calibration.growing import Growth, follow
from ..calibration.shift import (
    Shift,
    compare_sites,
    effective_cases_needed,
    effective_size,
    weighted_error,
    weighted_upper_limit,
)
from ..calibration.table import CaseTable
from .errors import AdaptationError
from .site import Site

SHARES = (0.7, 0.85, 1.0)
"""Of the calibration cases below the other site's own threshold, the strictest candidate accepts 70 %: a
stricter one errs less, but meets fewer cases that count for it, and the others wait for it."""

CHANGED = 0.01
"""Accept is closed where images of later calls differ from those of the first at this level, over all calls."""

SMALLEST_SHARE = 1e-6


def images_needed(false_alarms: float) -> int:
    """Images of the site: half of them say what is typical, the others how far from it new ones lie."""
    return 2 * cases_needed_for_level(1.0 - false_alarms) + 2


def begin(
    contract: Contract,
    source: Policy,
    table: CaseTable,
    name: str,
    images: Sequence[Measured],
    alpha: float,
    delta: float,
) -> Site:
    """Fixes everything that labels must not choose: bounds by the site's images, candidates by the other site's scores.

    Args:
        images: one of each patient, without labels.

    Raises:
        AdaptationError: too few images, or the other site's policy accepts nothing.
    """
    needed = images_needed(table.goals.false_alarms)
    if len(images) < needed:
        raise AdaptationError(
            f"{name}: {len(images)} images, one of each patient; at least {needed} are needed to say what is typical "
            "there (they need no labels): give more"
        )
    if source.guarantee is None:
        raise AdaptationError("the policy accepts nothing at its own site; calibrate the model on cases of this one")
    if source.groups is not None:
        raise AdaptationError(
            f"the policy is certified by {source.groups.by}; adapt one that was calibrated without --group-by"
        )
    half = deal_pilot([case.patient for case in images], 0.5)
    first, second = ([case for case in images if half[case.patient] is side] for side in (True, False))
    blank = tuple(replace(stage, accept_up_to=None) for stage in source.stages)
    bounds = choose_bounds(contract, first, second, table.goals, blank)
    served = [serve(contract, bounds, case).step for case in second]
    bounds = replace(
        bounds,
        recalibration=source.recalibration,
        monitoring=choose_monitoring(bounds, second, served, table.goals.audited, unusual_rate(len(second))),
        despite=source.despite,
        population=f"cases of {name} like the labelled ones of {name}, taken as they came; no other site",
    )
    candidates = tighter_stages(source, table.cases)
    shift = shift_of(source, table.cases, images)
    kept: list[tuple[Stage, ...]] = []
    dropped: list[str] = []
    for stages in candidates:
        error, size = error_at(contract, bounds, stages, table, shift, alpha, delta)
        if kept and not error <= alpha:
            dropped.append(
                f"threshold {_limit(stages)}: an error of {error:.3g} among accepted cases is to be expected at "
                f"{name} (calibration cases worth {size:.1f} of its own)"
            )
        else:
            kept.append(stages)
    return Site(
        name, secrets.token_hex(32), source, bounds, tuple(kept), tuple(dropped), alpha, delta, (*first, *second),
        fitted=len(first),
    )  # fmt: skip


def tighter_stages(source: Policy, cases: Sequence[Measured]) -> list[tuple[Stage, ...]]:
    """The source's stages with tighter thresholds, and last its own: each stage's threshold is the score below which
    a share of the calibration cases lies of those that lie below its own."""

    def tighter(stage: Stage, share: float) -> Stage:
        if stage.accept_up_to is None or share == 1.0:
            return stage
        scores = np.array([case.after(stage.samples).scores[stage.score] for case in cases])
        rank = share * float((scores <= stage.accept_up_to).mean())
        return replace(stage, accept_up_to=min(stage.accept_up_to, float(np.quantile(scores, rank))))

    return list(dict.fromkeys(tuple(tighter(stage, share) for stage in source.stages) for share in SHARES))


def features(source: Policy, cases: Sequence[Measured]) -> NDArray[np.float64]:
    """`[n, d]`: what the other site's policy sees of images: their statistics as its out-of-distribution distance takes
    them, the distance itself, scores and the prediction's statistics at full T."""
    distance = source.ood_distance
    assert distance is not None
    rows = []
    for case in cases:
        z = (np.array([case.statistics[name] for name in distance.names]) - distance.location) / distance.scale
        prediction = [math.log(max(share, SMALLEST_SHARE)) for share in case.full.prediction.values()]
        rows.append(
            [
                *np.clip(z, -FARTHEST, FARTHEST),
                distance.distance(case.statistics),
                *case.full.scores.values(),
                *prediction,
            ]
        )
    return np.array(rows)


def shift_of(source: Policy, calibration: Sequence[Measured], images: Sequence[Measured]) -> Shift:
    """How far the site's images are from the calibration cases."""
    return compare_sites(features(source, calibration), features(source, images))


def error_at(
    contract: Contract,
    bounds: Policy,
    stages: tuple[Stage, ...],
    table: CaseTable,
    shift: Shift,
    alpha: float,
    delta: float,
) -> tuple[float, float]:
    """(estimated error among the site's accepted cases, effective number of calibration cases): no bound."""
    served = [serve(contract, accepting(bounds, stages, alpha, delta), case) for case in table.cases]
    accepted = np.array([each.route is Route.ACCEPT for each in served])
    return weighted_error(accepted, np.array([each.step.loss for each in served]), shift.weights)


def accepting(bounds: Policy, stages: tuple[Stage, ...], alpha: float, delta: float) -> Policy:
    """The site's bounds with a candidate's thresholds, to see what it would do."""
    return replace(bounds, stages=stages, guarantee=Guarantee(alpha, delta, "", 0, 0, 0, "a candidate"))


def changed(site: Site, images: Sequence[Measured]) -> str | None:
    """Whether later images differ from those that fixed the bounds, in words; None: not that it could be seen.

    Two-sample Kolmogorov–Smirnov tests on the distance from what is typical at the site and on the case score, each at
    its share of what is left to this call of `CHANGED` (half of it to the first call, half of the rest to the next …).
    """
    assert site.bounds.ood_distance is not None
    before = site.images[site.fitted :]  # those that fitted the distance lie nearer than new ones do
    level = CHANGED / 2.0 ** (site.looks + 1) / 2.0
    score = site.bounds.stages[-1].score
    numbers = {
        "ood_distance": [[site.bounds.ood_distance.distance(c.statistics) for c in of] for of in (before, images)],
        score: [[case.full.scores[score] for case in of] for of in (before, images)],
    }
    for name, (then, now) in numbers.items():
        p = float(ks_2samp(then, now).pvalue)
        if p <= level:
            return (
                f"{len(images)} later images of {site.name} differ in {name} from the {len(site.images)} that fixed "
                f"what is typical there (p = {p:.2g}): its labelled cases vouch for other images; begin anew in an "
                "empty folder"
            )
    return None


@dataclass(frozen=True)
class Verdict:
    """The site's policy as it is now, and why.

    Attributes:
        why: what the accept threshold promises, or why there is none.
        volume, outline: what intervals and margins promise, or why they promise nothing.
        growth: evidence after each labelled case, per candidate.
        accepts: `[K]`, the share of the site's unlabelled images that each candidate would accept.
        errors: (estimated error, effective size) of each candidate, by the other site's weighted cases.
    """

    policy: Policy
    why: str
    volume: str
    outline: str
    growth: Growth
    shift: Shift
    accepts: NDArray[np.float64]
    errors: tuple[tuple[float, float], ...]


def decide_site(contract: Contract, site: Site, table: CaseTable) -> Verdict:
    """The most permissive policy that the site's own labelled cases allow now."""
    candidates = [accepting(site.bounds, stages, site.alpha, site.delta) for stages in site.candidates]
    served = [[serve(contract, each, known.case) for each in candidates] for known in site.cases]
    shape = (len(site.cases), len(candidates))
    accepted = np.array([[each.route is Route.ACCEPT for each in row] for row in served], bool).reshape(shape)
    losses = np.array([[each.step.loss for each in row] for row in served], np.float64).reshape(shape)
    growth = follow(accepted, losses, site.alpha, site.delta)
    shift = shift_of(site.source, table.cases, site.images)
    policy, why = _accept(contract, site, growth, table.goals)
    volume, words = _volume(contract, site, table, shift)
    outline, margins = _outline(contract, site, table, shift)
    lost = f"; margins of outlines: {margins}" if site.source.outline is not None and outline is None else ""
    promise = Adapted(
        site.name, site.source.digest, len(site.images), len(site.cases), shift.effective_size, f"{why}{lost}"
    )  # fmt: skip
    sensitive = site.source.sensitive
    return Verdict(
        replace(
            policy,
            calibration_digest=digest_of(sorted(case.image_digest for case in _all_cases(site))),
            volume=volume,
            outline=outline,
            sensitive=_sensitive(sensitive, site.name) if sensitive else None,
            adapted=promise,
        ),
        why,
        words,
        margins,
        growth,
        shift,
        np.array([[serve(contract, e, c).route is Route.ACCEPT for e in candidates] for c in site.images]).mean(axis=0),
        tuple(error_at(contract, site.bounds, s, table, shift, site.alpha, site.delta) for s in site.candidates),
    )


def _all_cases(site: Site) -> Iterator[Measured]:
    yield from site.images
    yield from (known.case for known in site.cases)


def _accept(contract: Contract, site: Site, growth: Growth, goals: Goals) -> tuple[Policy, str]:
    index, name = growth.open, site.name
    if site.closed is not None:
        return site.bounds, site.closed
    if not site.cases:
        return site.bounds, f"no labelled case of {name} yet: everything goes to review"
    seen = all_seen([known.shown for known in site.cases])
    unseen = [each for each, there in zip(contract.classes, seen, strict=True) if not there]
    if unseen:
        return site.bounds, (
            f"none of the {len(site.cases)} labelled cases of {name} shows {' or '.join(unseen)}, or all do: what was "
            "never seen cannot be vouched for"
        )
    if index is None:
        refuted = bool(growth.refuted[-1, 0])
        taken, wrong = int(growth.accepted[-1, 0]), int(growth.errors[-1, 0])
        found = "more errors than allowed, with confidence" if refuted else "not enough to be sure yet"
        return site.bounds, (
            f"{len(site.cases)} labelled cases of {name}: the strictest threshold accepts {taken}, {wrong} of them "
            f"wrong ({goals.loss}): {found}"
        )
    taken, wrong = int(growth.accepted[-1, index]), int(growth.errors[-1, index])
    why = (
        f"accepted {taken} of {len(site.cases)} labelled cases of {name}, {wrong} of them wrong ({goals.loss}): error "
        f"among accepted cases at most {site.alpha:g} with confidence {1 - site.delta:g}, whenever one looks (betting, "
        f"threshold {index + 1} of {len(site.candidates)} in a sequence fixed before the first label), if the labelled "
        f"cases are a fair sample of the cases of {name} and these stay as they are"
    )
    guarantee = Guarantee(site.alpha, site.delta, goals.loss, len(site.cases), taken, wrong, why)
    return replace(site.bounds, stages=site.candidates[index], guarantee=guarantee), why


def _volume(contract: Contract, site: Site, table: CaseTable, shift: Shift) -> tuple[VolumeRule | None, str]:
    """By the site's own labelled cases where there are enough of them, else by the other site's, weighted."""
    level, name = table.goals.level, site.name
    stages = [stage.samples for stage in site.source.stages]
    own = [known.case for known in site.cases]
    if len(own) >= effective_cases_needed(level):
        rule = choose_volume(contract, own, [case.worst(stages) for case in own], level)
        if rule is not None:
            rule = replace(rule, rule=f"{rule.rule}; all of them of {name}")
            return rule, rule.rule
    steps = [case.worst(stages) for case in table.cases]
    if site.source.volume is None or not all(step.volumes for step in steps):
        return None, "none: the other site's policy has none"
    refused = shift.refusal(level)
    if refused:
        return None, f"none: {refused}; {effective_cases_needed(level)} labelled cases of {name} will do instead"
    widening = {each: _weighted_widening(table.cases, steps, each, shift, level) for each in steps[0].volumes}
    if not all(map(math.isfinite, widening.values())):
        return None, f"none: the calibration cases say too little of {name} at level {level:g}"
    words = (
        f"split conformal on {len(steps)} cases of another site, weighted by how much their images resemble those of "
        f"{name} and worth {shift.effective_size:.1f} cases of it: a new case's true volume lies inside with "
        f"probability about {level:g}, if the sites differ in their images alone; the weights are estimated, so this "
        "is no guarantee"
    )
    return VolumeRule(level, widening, len(steps), words), words


def _weighted_widening(
    cases: Sequence[Measured], steps: Sequence[Step], name: str, shift: Shift, level: float
) -> float:
    low, high = (np.array([step.volumes[name][end] for step in steps]) for end in (1, 2))
    truth = np.array([case.truths[name] for case in cases])
    kinds = [np.ones(len(cases), bool), *(k for k in (truth > 0.0, truth <= 0.0) if _enough(shift.weights[k], level))]
    excess = np.maximum(low - truth, truth - high)
    return max(weighted_upper_limit(excess[k], shift.weights[k], shift.largest, level) for k in kinds)


def _enough(weights: NDArray[np.floating[Any]], level: float) -> bool:
    """Whether cases of these weights may have a limit of their own; see `choose_volume`."""
    return effective_size(weights) >= effective_cases_needed(level)


def _outline(contract: Contract, site: Site, table: CaseTable, shift: Shift) -> tuple[OutlineRule | None, str]:
    """As `_volume`, with the scales of the other site's margins, which are fixed."""
    source, level, name = site.source.outline, table.goals.level, site.name
    if source is None:
        return None, "none: the other site's policy has none"
    stages = [stage.samples for stage in site.source.stages]
    scales = (source.inner or 1.0, source.outer or 1.0)
    own = [known.case for known in site.cases]
    if len(own) >= effective_cases_needed(level):
        rule = refit_outline(contract, scales, [case.worst(stages) for case in own], level)
        if rule is None:
            return None, f"none: too many labelled cases of {name} have a structure that the model misses altogether"
        rule = replace(rule, rule=f"{rule.rule}; all of them of {name}")
        return rule, rule.rule
    margins = [margins for case in table.cases if (margins := case.worst(stages).margins) is not None]
    if len(margins) < len(table.cases):
        return (
            None,
            "none: the table of calibration cases knows no margins, it is of an earlier version; calibrate anew",
        )
    needed = effective_cases_needed(level)
    if refused := shift.refusal(level):
        return None, f"none: {refused}; {needed} labelled cases of {name} will do instead"
    scores = (np.array(margins) / scales).max(axis=1)
    limit = weighted_upper_limit(scores, shift.weights, shift.largest, level)
    if not math.isfinite(limit):
        return None, f"none: the calibration cases say too little of {name} at level {level:g}; {needed} labelled will"
    inner, outer = (limit * scale for scale in scales)
    unit = "voxels" if contract.spacing is None else "mm"
    words = (
        f"split conformal on {len(margins)} weighted cases of another site, worth {shift.effective_size:.1f} of "
        f"{name}: with probability about {level:g} a new case's true outline lies nowhere more than {outer:.3g} {unit} "
        f"outside and {inner:.3g} {unit} inside the predicted one, if the sites differ in their images alone; the "
        "weights are estimated, so this is no guarantee"
    )
    return OutlineRule(level, inner, outer, len(margins), words), words


def _sensitive(rule: SensitiveRule, name: str) -> SensitiveRule:
    return replace(rule, rule=f"the threshold of another site: nothing is promised of it for {name}")


def _limit(stages: tuple[Stage, ...]) -> str:
    return ", ".join(f"{stage.accept_up_to:.4g}" for stage in stages if stage.accept_up_to is not None)
