"""What is found against a set of cases before a guarantee is made of them, in words, and when that must stop it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from equipoise_core.contract import Contract
from equipoise_core.record import input_digest
from equipoise_core.scores import default_score
from numpy.typing import NDArray

from .cases import Labelled, Measured
from .errors import CalibrationError
from .exchangeability import STRONG, drift, drift_power, group_p_value, holm, near_pairs, same_images, thumbnail

SMALLEST_GROUP = 5
"""Cases of a group that is compared with the others."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")


@dataclass(frozen=True)
class Finding:
    """One question that was asked about the cases.

    Attributes:
        what: the question, as a heading.
        words: the answer.
        serious: no guarantee is made of such cases unless somebody says why.
    """

    what: str
    words: str
    serious: bool = False


def examine_images(cases: Sequence[Labelled], training: Sequence[Labelled] | None) -> Iterator[Finding]:
    """The same image, or nearly the same, as of different patients, or as in training.

    Args:
        training: images that the network was trained on; None: not given.
    """
    digests = [input_digest(case.image) for case in cases]
    small = [thumbnail(case.image) for case in cases]
    same = same_images(digests, [case.patient for case in cases])
    yield Finding("The same image of two patients", _pairs(same, cases, cases), bool(same))
    near = [
        (i, j)
        for i, j in near_pairs(small, small)
        if i < j and cases[i].patient != cases[j].patient and digests[i] != digests[j]
    ]
    yield Finding("Nearly the same image of two patients", _pairs(near, cases, cases))
    if training is None:
        yield Finding("Images that were trained on", "not looked for: --training names no folder")
        return
    known = {input_digest(case.image): index for index, case in enumerate(training)}
    same = [(index, known[digest]) for index, digest in enumerate(digests) if digest in known]
    yield Finding("Images that were trained on", _pairs(same, cases, training), bool(same))
    near = near_pairs(small, [thumbnail(case.image) for case in training])
    near = [(i, j) for i, j in near if digests[i] not in known]
    yield Finding("Images nearly like one that was trained on", _pairs(near, cases, training))


def examine_numbers(
    contract: Contract, cases: Sequence[Labelled], measured: Sequence[Measured], order_by: str, by: str
) -> Iterator[Finding]:
    """Drift over time, and differences between groups, of errors, scores and simple statistics of the input.

    Args:
        order_by: what the cases' order is, in words; "": not known.
        by: what their groups are.
    """
    score = default_score(contract)
    numbers = {
        "errors": np.array([case.full.loss for case in measured]),
        score: np.array([case.full.scores[score] for case in measured]),
        **{name: np.array([case.statistics[name] for case in measured]) for name in ("noise", "kurtosis")},
    }
    if order_by:
        place = order_of([case.order for case in cases], order_by)
        p = drift({name: values[place] for name, values in numbers.items()})
        seen = f"{drift_power(len(cases)):.0%}"
        power = f"a number that rises by one standard deviation halfway is found in {seen} of such sets"
        found = f"p = {p:.2g} (conformal martingale over all cases in order)"
        yield Finding(f"Drift over {order_by}", f"{found}; {power}", p <= STRONG)
    else:
        yield Finding("Drift over time", "not tested: --order-by names no column with dates or numbers")
    sizes = Counter(case.group for case in cases if case.group)
    large = {group for group, size in sizes.items() if size >= SMALLEST_GROUP}
    if len(large) < 2:
        yield Finding(
            f"Differences between {by}s", f"not tested: fewer than two of them have {SMALLEST_GROUP} cases or more"
        )
        return
    kept = [index for index, case in enumerate(cases) if case.group in large]
    groups = [cases[index].group for index in kept]
    p_values = holm({name: group_p_value(values[kept], groups) for name, values in numbers.items()})
    differ = [f"{name} (p = {p:.2g})" for name, p in p_values.items() if p <= STRONG]
    words = f"none seen among {len(large)} of them (permutation tests, Holm)"
    if differ:
        words = (
            f"{', '.join(differ)} among {len(large)} of them (permutation tests, Holm): what holds on average may not "
            "hold in each; --group-by certifies each of its own"
        )
    yield Finding(f"Differences between {by}s", words)


def order_of(stated: Sequence[str], column: str) -> NDArray[np.int64]:
    """Indices of cases in order of numbers or of ISO dates; those of the same date at random, always the same way.

    Raises CalibrationError that names the first that is neither.
    """
    numeric = [_number(text) for text in stated]
    for text, number in zip(stated, numeric, strict=True):
        if number is None and not _DATE.fullmatch(text):
            raise CalibrationError(
                f"{column} {text!r}: expected a number or a date such as 2026-01-31 for every case, to order them by"
            )
    if any(number is None for number in numeric) and any(number is not None for number in numeric):
        raise CalibrationError(f"{column} holds numbers and dates; expected one of them, to order cases by")
    _, ranks = np.unique(np.array(stated if numeric[0] is None else numeric), return_inverse=True)
    return np.lexsort((np.random.default_rng(0).random(len(ranks)), ranks))


def check_apart(cases: Sequence[Labelled], test: Sequence[Labelled]) -> None:
    """No test case may be an image, or of a patient, that the policy is chosen on. Raises CalibrationError.

    Patients that nobody named are called as their files are, in any two sets alike: of those only the images tell.
    """
    images = {input_digest(case.image): case.name for case in cases}
    patients = {case.patient: case.name for case in cases if case.patient != case.name}
    for case in test:
        named = case.patient if case.patient != case.name else None
        same = {"image": images.get(input_digest(case.image)), "patient": patients.get(named) if named else None}
        for what, other in same.items():
            if other is not None:
                raise CalibrationError(
                    f"{case.name}: the same {what} is among the cases that thresholds are chosen on ({other}); test on "
                    "others"
                )


def refuse(findings: Sequence[Finding], despite: str) -> str:
    """What of it is serious, for the policy; "" if nothing. Raises CalibrationError unless somebody says why."""
    serious = "; ".join(f"{found.what}: {found.words}" for found in findings if found.serious)
    if serious and not despite:
        raise CalibrationError(
            f"{serious}. No guarantee can be made of such cases: correct them, or give --despite with the reason and "
            "who stands for it; the policy will say so"
        )
    return f"{serious} ({despite})" if serious else ""


def _pairs(pairs: Sequence[tuple[int, int]], cases: Sequence[Labelled], others: Sequence[Labelled]) -> str:
    shown = ", ".join(f"{cases[i].name} and {others[j].name}" for i, j in pairs[:3])
    return f"{len(pairs)} pairs, such as {shown}" if pairs else f"none among {len(cases)} cases"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
