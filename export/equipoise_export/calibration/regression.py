"""Regression: what error is tolerated, and intervals that hold the truth.

Locally weighted split conformal prediction (Lei et al. 2018, JASA 113, §5.2; Romano, Patterson & Candès 2019 for why an
interval should follow its case): see `equipoise_core.intervals`. What the width depends on is fixed on pilot cases, its
one factor on calibration cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from equipoise_core.contract import Contract
from equipoise_core.intervals import RELATIVE_WIDTH, IntervalRule, TargetRule
from numpy.typing import NDArray

from .cases import Measured, Step
from .conformal import upper_limit
from .errors import CalibrationError

Floats = NDArray[np.float64]
Tolerance = float | str | Mapping[str, float]

FLOORS = (0.01, 0.1, 1.0, 10.0)
"""What is tried to be added to a standard deviation, in medians of it: the more, the less the widths differ."""

SMALLEST_WEIGHT = 1e-9
"""Of pilot cases without any error."""


def tolerances(contract: Contract, stated: Tolerance | None) -> dict[str, float]:
    """Of each target, in its unit: `12` where there is one, or `age=12,height=3`.

    Raises CalibrationError that says which are missing, unknown or no positive numbers.
    """
    names = contract.answers
    example = f"--tolerance {12 if len(names) == 1 else ','.join(f'{name}=12' for name in names)}"
    units = ", ".join(f"{target.name} in {target.unit}" for target in contract.targets)
    if stated is None:
        raise CalibrationError(
            f"--tolerance is missing: state how far from the truth an accepted answer may lie ({units}), such as "
            f"{example}"
        )
    pairs: Mapping[str, Any]
    if isinstance(stated, Mapping):
        pairs = stated
    elif "=" in str(stated):
        pairs = {part.partition("=")[0].strip(): part.partition("=")[2] for part in str(stated).split(",")}
    else:
        pairs = {names[0]: stated}
    if sorted(pairs) != sorted(names):
        raise CalibrationError(f"--tolerance {stated}: expected one for each of {units}, such as {example}")
    try:
        found = {name: float(pairs[name]) for name in names}
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"--tolerance {stated}: expected numbers, such as {example}") from error
    if not all(0.0 < value < np.inf for value in found.values()):
        raise CalibrationError(f"--tolerance {stated}: expected finite numbers above 0, such as {example}")
    return found


def loss_in_words(contract: Contract, allowed: Mapping[str, float]) -> str:
    """What counts as an error."""
    each = (f"{target.said(allowed[target.name])} ({target.name})" for target in contract.targets)
    return f"further than {' or '.join(each)} from the truth"


def check_numbers(contract: Contract, truths: Sequence[NDArray[Any]]) -> None:
    """Labels that all are the same number calibrate nothing. Raises CalibrationError that names the target."""
    for name, column in zip(contract.answers, np.array(truths, np.float64).reshape(len(truths), -1).T, strict=True):
        if len(column) and (column == column[0]).all():
            raise CalibrationError(f"{contract.name}: all {len(column)} labels of {name} are {column[0]:g}: check them")


def errors(case: Measured, step: Step, names: Sequence[str]) -> Floats:
    """`[K]`: how far the answer lies from the truth, in the targets' units."""
    return np.abs(step.numbers[:, 0] - np.array([case.truths[name] for name in names]))


def pilot_rule(
    contract: Contract, pilot: Sequence[Measured], level: float, allowed: Mapping[str, float]
) -> IntervalRule:
    """What the width depends on: per target the floor that makes the pilot cases' intervals narrowest, and the weight
    that makes them cover; the factor is still 1."""
    deviations = np.array([case.full.numbers[:, 1] for case in pilot])
    distances = np.array([errors(case, case.full, contract.answers) for case in pilot])
    rules = {}
    for name, sd, error in zip(contract.answers, deviations.T, distances.T, strict=True):
        middle = float(np.median(sd)) or 1.0
        tried = []
        for floor in (share * middle for share in FLOORS):
            weight = float(np.quantile(error / (sd + floor), level, method="higher"))
            tried.append((weight * float((sd + floor).mean()), max(weight, SMALLEST_WEIGHT), floor))
        _, weight, floor = min(tried)
        rules[name] = TargetRule(weight, floor, allowed[name])
    return IntervalRule(level, 1.0, rules, 0, "of pilot cases")


def choose_interval(
    contract: Contract, rule: IntervalRule, cases: Sequence[Measured], stages: Sequence[int]
) -> IntervalRule:
    """The factor: split conformal on each case's worst target and stage, so that it holds whichever stage decides.

    Raises TooFewCases.
    """
    unit = replace(rule, factor=1.0)

    def worst(case: Measured) -> float:
        steps = [case.after(samples) for samples in stages]
        shares = [
            errors(case, step, contract.answers) / unit.half_widths(contract.targets, step.numbers[:, 1])
            for step in steps
        ]
        return float(np.max(shares))

    factor = upper_limit(np.array([worst(case) for case in cases]), rule.level)
    several = "all its truths lie" if len(contract.targets) > 1 else "its truth lies"
    words = (
        f"locally weighted split conformal on {len(cases)} cases: of a new case {several} inside with probability at "
        f"least {rule.level:g}, on average over calibrations, whichever stage decides; accepted only where half the "
        "interval is within the tolerance"
    )
    return replace(rule, factor=factor, cases=len(cases), rule=words)


def with_width(contract: Contract, rule: IntervalRule, cases: Sequence[Measured]) -> list[Measured]:
    """The same cases with the score by which a policy with this rule routes."""

    def scored(step: Step) -> Step:
        width = rule.relative_width(contract.targets, step.numbers[:, 1])
        return replace(step, scores={**step.scores, RELATIVE_WIDTH: width})

    return [replace(case, steps=tuple(scored(step) for step in case.steps)) for case in cases]


def intervals(contract: Contract, rule: IntervalRule, step: Step) -> Floats:
    """`[K, 2]`: low and high."""
    half = rule.half_widths(contract.targets, step.numbers[:, 1])
    return np.stack([step.numbers[:, 0] - half, step.numbers[:, 0] + half], axis=1)
