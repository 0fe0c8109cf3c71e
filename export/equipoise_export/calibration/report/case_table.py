"""Every case that was measured as a line of a CSV file beside the report."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract, Task

from ..figures import Judged
from ..regression import intervals


def write_cases(path: Path, contract: Contract, listed: Mapping[str, Sequence[Judged]]) -> None:
    """Writes the table, sorted by set and name.

    Args:
        listed: the cases of each set, by its name.
    """
    rows = [
        {"set": name, **row(contract, each)}
        for name, judged in listed.items()
        for each in sorted(judged, key=lambda one: one.case.name)
    ]
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # names need not be text
        table = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
        table.writeheader()
        table.writerows(rows)


def row(contract: Contract, judged: Judged) -> dict[str, Any]:
    """One case under the policy: columns by name; empty where there is no such number.

    A class's or target's name stands behind a prefix: it may be called as another column is.
    """
    case, step = judged.case, judged.step
    return {
        "case": case.name,
        "patient": case.patient,
        "group": case.group,
        "route": judged.route,
        "reason": judged.reason,
        "samples": step.samples,
        "score_name": judged.score_name,
        "score": _short(judged.score),
        "threshold": "" if judged.threshold is None else _short(judged.threshold),
        "right": "no" if step.loss else "yes",
        **dict(_answer(contract, judged)),
    }


def _answer(contract: Contract, judged: Judged) -> Iterator[tuple[str, Any]]:
    if contract.task is Task.CLASSIFICATION:
        yield "answer", named(contract, judged.step.probabilities[0], 0.5)
        yield "truth", named(contract, judged.case.hits[0], 0.5)
        for name, p in zip(contract.classes, judged.calibrated[0], strict=True):
            yield f"probability_{name}", _short(p)
    if contract.targets:
        for name, value, low, high, truth in numbers(contract, judged):
            for what, number in (("value", value), ("low", low), ("high", high), ("truth", truth)):
                yield f"{what}_{name}", _short(number)
    if contract.task is Task.SEGMENTATION:
        yield "dice", _short(judged.step.dice)
        for name, (mean, _, _) in judged.step.volumes.items():
            low, high = judged.widened(name)
            for what, value in (("volume", mean), ("low", low), ("high", high), ("truth", judged.case.truths[name])):
                yield f"{what}_ml_{name}", _short(value)


def numbers(contract: Contract, judged: Judged) -> Iterator[tuple[str, float, float, float, float]]:
    """(target, value, both ends of its interval, truth) of a regression, in the targets' units."""
    rule = judged.policy.interval
    assert rule is not None
    ends = intervals(contract, rule, judged.step)
    for name, (value, _), (low, high) in zip(contract.answers, judged.step.numbers, ends, strict=True):
        yield name, float(value), float(low), float(high), judged.case.truths[name]


def named(contract: Contract, values: np.ndarray[Any, Any], least: float) -> str:
    """The classes that `values [K]` speak for: the largest (softmax), or all from `least` on (sigmoid)."""
    if contract.activation is Activation.SOFTMAX:
        return contract.classes[int(values.argmax())]
    return "; ".join(name for name, value in zip(contract.classes, values, strict=True) if value >= least) or "none"


def _short(value: float) -> str:
    return f"{value:.6g}"
