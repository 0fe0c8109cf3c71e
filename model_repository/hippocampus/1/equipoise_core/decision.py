"""The routing decision. `accept` is reached only when nothing at all speaks against it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from .contract import Contract, Task
from .policy import Bounds, Policy
from .scores import scores_of


class Route(str, Enum):
    """`accept` goes on automatically, `review` goes to an expert, `reject` is unsuitable input."""

    ACCEPT = "accept"
    REVIEW = "review"
    REJECT = "reject"


@dataclass(frozen=True)
class Decision:
    route: Route
    reason: str


@dataclass(frozen=True)
class Evidence:
    """All that a decision looks at.

    Attributes:
        numbers: case scores and statistics by name.
        samples: samples drawn; `asked` is how many were to be drawn.
        own_samples, own_seed: the caller named T or the seed.
        spacing: voxel spacing in mm, or None.
        problems: what went wrong while sampling, in words.
        stopped: the policy's own stopping rule found fewer samples than its T to be enough.
        windows: the image was taken in windows, being larger than the network sees at once.
        screened: this is the answer of the screen: no sample was drawn.
    """

    numbers: Mapping[str, float]
    samples: int
    asked: int
    own_samples: bool
    own_seed: bool
    spacing: tuple[float, ...] | None
    problems: tuple[str, ...] = ()
    stopped: bool = False
    windows: bool = False
    screened: bool = False


def decide(contract: Contract, policy: Policy | None, why_no_policy: str, evidence: Evidence) -> Decision:
    """Routes one case.

    In this order: anything that went wrong, or no policy for this model → review; input far from the calibration cases
    → reject; unlike them, a caller's own seed or T, a spacing that the model was not made for, or an image taken in
    windows → review; case score at most the policy's threshold → accept; everything else → review. The screen has a
    threshold of its own, and is not held against bounds on scores that samples make.
    """
    for reason in _failures(contract, policy, why_no_policy, evidence):
        return Decision(Route.REVIEW, reason)
    assert policy is not None
    for reason in _outside(_applying(policy.suitable, contract, evidence), "far from", evidence):
        return Decision(Route.REJECT, reason)
    for reason in _reservations(contract, policy, evidence):
        return Decision(Route.REVIEW, reason)
    rule = policy.screen if evidence.screened else policy.accept
    if rule is None:
        return Decision(Route.REVIEW, "the policy has no accept threshold")
    score = evidence.numbers[rule.score]
    if score <= rule.threshold:
        return Decision(Route.ACCEPT, f"{rule.score} {score:.4g} is at most {rule.threshold:.4g}")
    return Decision(Route.REVIEW, f"{rule.score} {score:.4g} is above {rule.threshold:.4g}")


def settled(policy: Policy, numbers: Mapping[str, float], moving: Collection[str], samples: int) -> bool:
    """Whether the policy's stopping rule is content with so many samples.

    Args:
        numbers: as in `Evidence`.
        moving: those of them that more samples would change; the others come from the input alone.
    """
    look = next((each for each in policy.stopping.looks if each.samples == samples), None) if policy.stopping else None
    if look is None:
        return False
    limits = {**policy.typical.limits, **policy.suitable.limits}
    still = {name: pair for name, pair in limits.items() if name not in moving}
    # What the input alone holds back is held back whatever the samples say.
    if not all(low <= numbers.get(name, math.nan) <= high for name, (low, high) in still.items()):
        return True
    ends = [(name, end) for name, pair in limits.items() if name in moving for end in pair if end > 0.0]
    if policy.accept is not None:
        ends.append((policy.accept.score, policy.accept.threshold))
    return all(name in numbers and look.decided(name, numbers[name], end) for name, end in ends)


def _failures(contract: Contract, policy: Policy | None, why_no_policy: str, evidence: Evidence) -> Iterator[str]:
    yield from evidence.problems
    if evidence.samples < evidence.asked and not (evidence.stopped or evidence.screened):
        yield f"only {evidence.samples} of {evidence.asked} samples were drawn"
    for name, number in evidence.numbers.items():
        if not math.isfinite(number):
            yield f"{name} is not a finite number"
    if policy is None:
        yield why_no_policy
    elif policy.model_digest != contract.model_digest:
        yield f"the policy is for another model ({policy.model_digest[:12]}, this is {contract.model_digest[:12]})"
    else:
        rule = policy.screen if evidence.screened else policy.accept
        bounds = (_applying(each, contract, evidence) for each in (policy.suitable, policy.typical))
        named = {name for each in bounds for name in each.limits} | ({rule.score} if rule else set())
        for name in sorted(named - set(evidence.numbers)):
            yield f"the policy looks at {name}, which is not known here"


def _applying(bounds: Bounds, contract: Contract, evidence: Evidence) -> Bounds:
    """Bounds on scores were made from samples: they say nothing of a screen's."""
    if not evidence.screened:
        return bounds
    scores = scores_of(contract)
    return replace(bounds, limits={name: pair for name, pair in bounds.limits.items() if name not in scores})


def _outside(bounds: Bounds, how: str, evidence: Evidence) -> Iterator[str]:
    for name, (low, high) in bounds.limits.items():
        number = evidence.numbers[name]
        if not low <= number <= high:
            yield f"{how} the calibration cases: {name} {number:.4g} is outside {low:.4g} to {high:.4g}"


def _reservations(contract: Contract, policy: Policy, evidence: Evidence) -> Iterator[str]:
    yield from _outside(_applying(policy.typical, contract, evidence), "unlike", evidence)
    if evidence.own_seed:
        yield "the caller named the seed: for study and replay only"
    if evidence.own_samples and evidence.samples != policy.samples:
        yield f"the caller named {evidence.samples} samples, the policy is for {policy.samples}"
    elif evidence.samples != policy.samples and not (evidence.stopped or evidence.screened):
        yield f"{evidence.samples} samples were drawn, the policy is for {policy.samples}"
    if evidence.windows:
        yield "the image is larger than the network sees at once: no policy was made for answers of several windows"
    if contract.task is Task.SEGMENTATION and contract.spacing is not None:
        if evidence.spacing is None:
            yield "no spacing was given"
        elif not all(low <= mm <= high for mm, (low, high) in zip(evidence.spacing, contract.spacing, strict=True)):
            ranges = ", ".join(f"{low:g} to {high:g}" for low, high in contract.spacing)
            yield f"spacing {', '.join(f'{mm:g}' for mm in evidence.spacing)} mm is outside {ranges} mm"
