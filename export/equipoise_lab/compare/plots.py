"""The plots of a comparison: every model with a colour, a marker and a line of its own, the same in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from equipoise_export import page
from equipoise_export.calibration import metrics
from equipoise_export.calibration.resample import Estimate
from equipoise_export.calibration.sums import CalibrationSums
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .results import Results
from .timing import Milliseconds

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#7F7F7F")
"""Okabe & Ito's, without the yellow that is hardly seen on white: outcome apart by colour-blind eyes."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
"""8, 11 and 5 have no common divisor: no two of 440 models look alike."""

SIZE = (6.4, 3.7)
FEW = 10
"""A point of the reliability plot stands for at least so many answers."""


def style(index: int) -> dict[str, Any]:
    """How a model is drawn."""
    looks = {"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {"markersize": 5, **{name: values[index % len(values)] for name, values in looks.items()}}


def plots(
    every: Sequence[Results], aurc: Sequence[Estimate], times: Sequence[Milliseconds], risk: str
) -> Iterator[tuple[str, str]]:
    """(caption, SVG) of each; `risk` in words."""
    yield (
        f"Risk and coverage: mean {risk} of the cases that are kept, the most certain ones first.",
        _risk_coverage(every, risk),
    )
    yield (
        "Cost and AURC: left is faster (logarithmic), down is better; bars are 95 % intervals of AURC and the least "
        "and greatest round of the timing.",
        _cost(every, aurc, times),
    )
    points = f"Points that stand for fewer than {FEW} answers are left out."
    yield (
        f"Reliability of the mean over samples: how often the given probability comes true. {points}",
        _reliability(every, [each.plain for each in every]),
    )
    yield (
        f"Reliability after each policy's recalibration. {points}",
        _reliability(every, [each.recalibrated for each in every]),
    )


def _risk_coverage(every: Sequence[Results], risk: str) -> str:
    figure, axes = page.axes(SIZE)
    for index, each in enumerate(every):
        coverage, mean_risk = metrics.risk_coverage(each.score, each.risk)
        marks = np.unique(np.linspace(0, len(coverage) - 1, 8).astype(int) + index) % len(coverage)
        axes.step(coverage, mean_risk, where="post", label=each.name, markevery=marks, **style(index))
    axes.set(xlabel="coverage", ylabel=f"mean {risk}", xlim=(0, 1.02), ylim=(0, None))
    return _with_legend(figure)


def _reliability(every: Sequence[Results], sums: Sequence[CalibrationSums]) -> str:
    figure, axes = page.axes(SIZE)
    axes.plot([0, 1], [0, 1], color=page.FAINT, linewidth=1, linestyle=":")
    lowest = 1.0
    for index, (each, of) in enumerate(zip(every, sums, strict=True)):
        counts, confidence, hits = of.bins.sum(axis=0)
        kept = counts >= FEW
        x, y = confidence[kept] / counts[kept], hits[kept] / counts[kept]
        axes.plot(x, y, label=each.name, **style(index))
        lowest = min([lowest, *x, *y])
    axes.set(xlabel="given probability of the answer", ylabel="share that comes true")
    axes.set(xlim=(max(0.0, lowest - 0.03), 1.02), ylim=(max(0.0, lowest - 0.03), 1.02))
    return _with_legend(figure)


def _cost(every: Sequence[Results], aurc: Sequence[Estimate], times: Sequence[Milliseconds]) -> str:
    figure, axes = page.axes(SIZE)
    for index, (each, area, time) in enumerate(zip(every, aurc, times, strict=True)):
        if area.value is None or area.low is None or area.high is None:
            continue
        axes.errorbar(
            [time.median],
            [area.value],
            yerr=[[max(0.0, area.value - area.low)], [max(0.0, area.high - area.value)]],
            xerr=[[time.median - time.least], [time.greatest - time.median]],
            **{**style(index), "markersize": 7, "linestyle": "none"},
            capsize=3,
            label=each.name,
        )
    axes.set(xlabel="milliseconds per image in process", ylabel="AURC", xscale="log")
    low, high = min(time.least for time in times), max(time.greatest for time in times)
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    return _with_legend(figure)


def _with_legend(figure: Figure) -> str:
    """Beside the plot, where it covers nothing."""
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return page.svg(figure)
