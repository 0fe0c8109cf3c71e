"""What the calibration report shows of a regression's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from equipoise_core.contract import Contract

from ... import page
from ...page import FAINT, INK, WARN
from ..figures import Judged
from ..regression import intervals


def number_plots(contract: Contract, judged: Sequence[Judged]) -> Iterator[tuple[str, str]]:
    """(caption, SVG) of each target."""
    for k, target in enumerate(contract.targets):
        unit = "" if target.unit == "1" else f", in {target.unit}"
        yield (
            f"{target.name}: interval against truth{unit}. Red: further from the truth than tolerated; full circles "
            "are accepted.",
            _against_truth(contract, judged, k, unit),
        )


def _against_truth(contract: Contract, judged: Sequence[Judged], k: int, unit: str) -> str:
    name = contract.answers[k]
    figure, axes = page.axes()
    truth = np.array([each.case.truths[name] for each in judged])
    for case, true in zip(judged, truth, strict=True):
        rule = case.policy.interval
        assert rule is not None
        low, high = intervals(contract, rule, case.step)[k]
        mean = case.step.numbers[k, 0]
        colour = WARN if abs(mean - true) > rule.targets[name].tolerance else INK
        axes.vlines(true, low, high, color=colour, alpha=0.3)
        axes.scatter(true, mean, 14, color=colour, facecolors=colour if case.route == "accept" else "none")
    ends = [float(truth.min()), float(truth.max())]
    axes.plot(ends, ends, color=FAINT, linestyle=":")
    axes.set(xlabel=f"true {name}{unit}", ylabel=f"given {name}{unit}")
    return page.svg(figure)
