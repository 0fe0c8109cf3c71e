"""The routing decision, stage by stage. `accept` is reached only when nothing at all speaks against it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial

from .contract import Contract
from .policy import Bounds, Policy
from .reasons import Reason, reason
from .scores import scores_of
from .stages import FIRST_PASS


class Route(str, Enum):
    """`accept` goes on automatically, `review` goes to an expert, `reject` is unsuitable input."""

    ACCEPT = "accept"
    REVIEW = "review"
    REJECT = "reject"


@dataclass(frozen=True)
class Decision:
    route: Route
    reason: Reason


@dataclass(frozen=True)
class Evidence:
    """All that a decision looks at, after one stage.

    Attributes:
        input: statistics of the input by name; no stage changes them.
        answer: case scores and statistics of the prediction by name.
        samples: drawn so far; 0: this is the answer of the first pass.
        planned: samples that the last stage is to have.
        last: no further stage follows.
        named_samples, named_seed: the caller named T or the seed.
        spacing: voxel spacing in mm, or None.
        problems: what went wrong.
        windows: the image was taken in windows, being larger than the network sees at once.
        closed: why nothing is accepted at present; empty: accept is open.
        group: which group of cases the caller says this is one of; None: it does not say.
    """

    input: Mapping[str, float]
    answer: Mapping[str, float]
    samples: int
    planned: int
    last: bool = True
    named_samples: bool = False
    named_seed: bool = False
    spacing: tuple[float, ...] | None = None
    problems: tuple[Reason, ...] = ()
    windows: bool = False
    closed: str = ""
    group: str | None = None


def decide(contract: Contract, policy: Policy | None, why_no_policy: str, evidence: Evidence) -> Decision | None:
    """Routes one case, or leaves it to the next stage (None; never at the last one).

    In this order: anything that went wrong, or no policy for this model → review (after a first pass that failed the
    samples are drawn all the same); input far from the calibration cases → reject; input unlike them, accept closed, a
    caller's own seed or T, a spacing that the model was not made for, an image taken in windows, or a group of cases
    without a certificate under a policy that has them by group → review. Then the answer: where it is unlike those of
    the calibration cases the next stage decides, after the last one it goes to review; case score at most the stage's
    threshold → accept; above the one for review, or no stage left → review.
    """
    for found in _failures(contract, policy, why_no_policy, evidence):
        return None if evidence.samples == FIRST_PASS and not evidence.last else Decision(Route.REVIEW, found)
    assert policy is not None
    for found in _outside(policy.suitable, "far_from_calibration", evidence.input):
        return Decision(Route.REJECT, found)
    for found in _reservations(contract, policy, evidence):
        return Decision(Route.REVIEW, found)
    stage = policy.stage(evidence.samples, evidence.group)
    assert stage is not None
    answer = _comparable(contract, evidence)
    for route, code, bounds in (
        (Route.REJECT, "far_from_calibration", policy.suitable),
        (Route.REVIEW, "unlike_calibration", policy.typical),
    ):
        for found in _outside(bounds, code, answer):
            return Decision(route, found) if evidence.last else None
    value, accept, review = evidence.answer[stage.score], stage.accept_up_to, stage.review_above
    said = partial(reason, score=stage.score, value=value, samples=evidence.samples)
    if accept is not None and value <= accept:
        return Decision(Route.ACCEPT, said("score_accepted", threshold=accept))
    if review is not None and value > review:
        return Decision(Route.REVIEW, said("score_too_high", threshold=review))
    if not evidence.last:
        return None
    why = reason("no_threshold") if accept is None else said("score_too_high", threshold=accept)
    return Decision(Route.REVIEW, why)


def _failures(contract: Contract, policy: Policy | None, why_no_policy: str, evidence: Evidence) -> Iterator[Reason]:
    yield from evidence.problems
    if evidence.last and evidence.samples < evidence.planned:
        yield reason("too_few_samples", drawn=evidence.samples, planned=evidence.planned)
    numbers = {**evidence.input, **evidence.answer}
    for name, number in numbers.items():
        if not math.isfinite(number):
            yield reason("not_finite", name=name)
    if policy is None:
        yield reason("no_policy", message=why_no_policy)
    elif policy.model_digest != contract.model_digest:
        yield reason("other_model", policy=policy.model_digest[:12], model=contract.model_digest[:12])
    else:
        if policy.stages[0].samples == FIRST_PASS and contract.first_pass is None:
            yield reason("no_first_pass")
        stage = policy.stage(evidence.samples)
        if stage and stage.score not in evidence.answer:
            yield reason("unknown_number", name=stage.score)
        named = {*policy.suitable.limits, *policy.typical.limits}
        if evidence.samples == FIRST_PASS:
            named -= set(scores_of(contract))
        for name in sorted(named - set(numbers)):
            yield reason("unknown_number", name=name)


def _comparable(contract: Contract, evidence: Evidence) -> Mapping[str, float]:
    """The answer's numbers that bounds were made for: those on scores are bounds on the scores of samples."""
    if evidence.samples != FIRST_PASS:
        return evidence.answer
    scores = scores_of(contract)
    return {name: number for name, number in evidence.answer.items() if name not in scores}


def _outside(bounds: Bounds, code: str, numbers: Mapping[str, float]) -> Iterator[Reason]:
    for name, (low, high) in bounds.limits.items():
        if name in numbers and not low <= numbers[name] <= high:
            yield reason(code, name=name, value=numbers[name], low=low, high=high)


def _reservations(contract: Contract, policy: Policy, evidence: Evidence) -> Iterator[Reason]:
    """What holds whatever the samples say."""
    yield from _outside(policy.typical, "unlike_calibration", evidence.input)
    if evidence.closed:
        yield reason("closed", message=evidence.closed)
    if evidence.named_seed:
        yield reason("seed_named")
    if evidence.named_samples or policy.stage(evidence.samples) is None:
        yield reason("samples_named", drawn=evidence.samples)
    if evidence.windows:
        yield reason("windows")
    if policy.groups is not None and evidence.group not in policy.groups.stages:
        yield reason("group_not_certified", by=policy.groups.by)
    if contract.physical and contract.spacing is not None:
        if evidence.spacing is None:
            yield reason("no_spacing")
        elif not all(low <= mm <= high for mm, (low, high) in zip(evidence.spacing, contract.spacing, strict=True)):
            yield reason(
                "spacing",
                given=", ".join(f"{mm:g}" for mm in evidence.spacing),
                expected=", ".join(f"{low:g} to {high:g}" for low, high in contract.spacing),
            )
