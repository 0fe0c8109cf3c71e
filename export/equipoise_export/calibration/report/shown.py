"""The section of pictures: each case with what was said of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from equipoise_core.contract import Contract, Task

from ..figures import Judged
from .case_table import named, numbers
from .findings import Findings, rendered
from .pictures import legend


@dataclass(frozen=True)
class Bar:
    """The probability of one class, 0..1."""

    name: str
    probability: float
    true: bool


def examples(found: Findings) -> str:
    """Cases from which a reader learns most; empty where none were asked for."""
    if not any(each.shown for each in found.examples):
        return ""
    contract = found.contract
    return rendered(
        "examples",
        kinds=[each for each in found.examples if each.kind.route != "accept" or found.policy.guarantee],
        lines=partial(_lines, contract),
        bars=partial(_bars, contract),
        legend=legend(contract) if contract.task is Task.SEGMENTATION else [],
    )


def _lines(contract: Contract, judged: Judged) -> Iterator[tuple[str, str]]:
    """(what, in words)."""
    step = judged.step
    if contract.task is Task.SEGMENTATION:
        yield "Dice", f"{step.dice:.2f}"
        for name, (mean, _, _) in step.volumes.items():
            low, high = judged.widened(name)
            yield name, f"{mean:.3g} mL ({low:.3g} to {high:.3g}); label {judged.case.truths[name]:.3g} mL"
    for name, value, low, high, truth in numbers(contract, judged) if contract.targets else ():
        yield name, f"{value:.4g} ({low:.4g} to {high:.4g}); label {truth:.4g}"
    if contract.task is Task.CLASSIFICATION:
        yield "answer", named(contract, step.probabilities[0], 0.5)
        yield "label", named(contract, judged.case.hits[0], 0.5)
    if judged.route == "accept" and judged.threshold is not None:
        yield "score", f"{judged.score:.3g}, accepted up to {judged.threshold:.3g}"
    else:
        yield "because", judged.reason


def _bars(contract: Contract, judged: Judged) -> list[Bar]:
    if contract.task is not Task.CLASSIFICATION:
        return []
    values = zip(contract.classes, judged.calibrated[0], judged.case.hits[0], strict=True)
    return [Bar(name, float(p), bool(hit)) for name, p, hit in values]
