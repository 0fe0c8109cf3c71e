"""Certificates by group: is the error among accepted cases below α at every scanner, and not only on average?

A threshold that holds for all cases together may fail for some of them. Each group is tested on its own cases alone
(Mondrian; Vovk et al. 2005), and that several are tested is paid for: all certificates hold together with confidence
1 − δ (Bonferroni).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from numpy.typing import NDArray

from .cases import Measured
from .errors import CalibrationError
from .risk import Certificate, Floats, accepted_cases_needed, learn_then_test

BY_PREDICTION = "prediction"
"""In the place of a column's name: a case's group is its predicted class."""


@dataclass(frozen=True)
class GroupCertificates:
    """What was tested, and what came out.

    Attributes:
        certificates: of the groups that have one.
        without: cases of each of the others.
        tested: how many groups had enough cases to be tested.
        level: δ of each test: the whole δ over the number of groups tested.
        needed: accepted cases that a group needs for a certificate, all of them right.
    """

    certificates: Mapping[str, Certificate]
    without: Mapping[str, int]
    tested: int
    level: float
    needed: int


def largest_groups(sizes: Mapping[str, int], alpha: float, delta: float) -> tuple[str, ...]:
    """The largest groups, as many as can still be certified when δ is shared among them; sizes alone decide.

    The unnamed group "" is none.
    """
    named = sorted((name for name in sizes if name), key=lambda name: (-sizes[name], name))
    many = [k for k in range(1, len(named) + 1) if sizes[named[k - 1]] >= accepted_cases_needed(alpha, delta / k)]
    return tuple(named[: max(many, default=0)])


def certify_groups(
    accepted: NDArray[np.bool_], losses: Floats, groups: Sequence[str], alpha: float, delta: float
) -> GroupCertificates:
    """Learn-then-Test on each group's own cases, each at δ over the number of groups that are tested.

    Args:
        accepted, losses: `[n, L]` as for `learn_then_test`.
        groups: `[n]`; "" for a case of which none is known.
        alpha, delta: the error among accepted cases of every certified group is at most alpha, all together with
            confidence 1 − delta.
    """
    of, sizes = np.array(groups, dtype=object), Counter(groups)
    tested = largest_groups(sizes, alpha, delta)
    level = delta / max(1, len(tested))
    found = {name: learn_then_test(accepted[of == name], losses[of == name], alpha, level) for name in tested}
    certificates = {name: certificate for name, certificate in found.items() if certificate is not None}
    without = {name: cases for name, cases in sorted(sizes.items()) if name and name not in certificates}
    return GroupCertificates(certificates, without, len(tested), level, accepted_cases_needed(alpha, level))


def check_prediction_groups(contract: Contract) -> None:
    """Raises CalibrationError where a case has no one predicted class."""
    if contract.task is not Task.CLASSIFICATION or contract.activation is not Activation.SOFTMAX:
        raise CalibrationError(
            f"--group-by {BY_PREDICTION} is for a classification with exclusive classes; {contract.name} is none: name "
            "a column of cases.csv, or leave it out"
        )


def grouped_by_prediction(contract: Contract, cases: Sequence[Measured]) -> list[Measured]:
    """The same cases, each in the group of the class that full T predicts."""
    return [replace(case, group=contract.classes[int(case.full.probabilities[0].argmax())]) for case in cases]
