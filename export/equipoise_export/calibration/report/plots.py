"""The report's plots: probabilities, scores, volumes and dropout rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from equipoise_core.contract import Activation, Contract
from equipoise_core.policy import Policy

from ... import page
from ...page import FAINT, INK, WARN
from .. import metrics
from ..choose import stacked
from ..figures import Judged, volume_columns
from ..sweep import Rate
from .findings import Findings, rendered
from .numbers import number_plots


def plots(found: Findings) -> str:
    """All of them, each with a caption."""
    return rendered("plots", plots=list(_plots(found)))


def _plots(found: Findings) -> Iterator[tuple[str, str]]:
    contract, policy, judged, rates = found.contract, found.policy, found.judged, found.rates
    if contract.targets:
        yield from number_plots(contract, judged)
    else:
        yield (
            "Reliability: how often the given probability comes true. Grey before, blue after recalibration.",
            _reliability(contract, judged),
        )
    yield "Risk and coverage: the share of wrong cases among the most certain ones.", _risk_coverage(judged)
    yield _histogram(policy, judged)
    for name in judged[0].step.volumes if policy.volume else ():
        yield f"Volume of {name}: interval against truth, in mL.", _volumes(judged, name)
    if rates:
        yield "Dropout rate: calibration error and risk.", _rates(rates)


def _reliability(contract: Contract, judged: Sequence[Judged]) -> str:
    before, hits = stacked([each.case for each in judged], [each.step for each in judged])
    after = np.concatenate([each.calibrated for each in judged])
    figure, axes = page.axes()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
    for p, colour, label in ((before, FAINT, "before"), (after, INK, "after")):
        if contract.activation is Activation.SOFTMAX:
            confidence, hit = p.max(axis=1), np.take_along_axis(hits, p.argmax(axis=1)[:, None], axis=1)[:, 0]
        else:
            confidence, hit = p.ravel(), hits.ravel()
        sums = metrics.bin_sums(confidence, hit, metrics.equal_widths())
        counts, mean, frequency = sums[:, sums[0] > 0]
        mean, frequency = mean / counts, frequency / counts
        axes.plot(mean, frequency, color=colour, label=label)
        axes.scatter(mean, frequency, 10.0 + 150.0 * counts / len(confidence), color=colour)
    axes.set(xlabel="probability", ylabel="frequency", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False)
    return page.svg(figure)


def _risk_coverage(judged: Sequence[Judged]) -> str:
    losses = np.array([each.step.loss for each in judged])
    figure, axes = page.axes()
    for ranking, colour, label in (
        (np.array([each.ranking for each in judged]), INK, "case score"),
        (losses, FAINT, "best possible"),
    ):
        axes.step(*metrics.risk_coverage(ranking, losses), color=colour, label=label, where="post")
    axes.set(xlabel="coverage", ylabel="risk", xlim=(0, 1), ylim=(0, None))
    axes.legend(frameon=False)
    return page.svg(figure)


def _histogram(policy: Policy, judged: Sequence[Judged]) -> tuple[str, str]:
    score, line, left_out = "case score", None, ""
    shown = [(each.ranking, each.step.loss > 0) for each in judged]
    if policy.guarantee is not None:
        score, line = "case score over the accept threshold that it met", 1.0
        shown = [(each.over_threshold, each.step.loss > 0) for each in judged if each.over_threshold is not None]
        left_out = f" {len(judged) - len(shown)} cases met none." if len(shown) < len(judged) else ""
    scores, wrong = np.array([value for value, _ in shown]), np.array([bad for _, bad in shown])
    figure, axes = page.axes()
    edges = np.linspace(0.0, float(scores.max()) or 1.0, 31)
    axes.hist([scores[~wrong], scores[wrong]], edges, stacked=True, color=[INK, WARN], label=["right", "wrong"])
    if line is not None:
        axes.axvline(line, color="black", linewidth=1)
    axes.set(xlabel=score, ylabel="cases", yscale="symlog")
    axes.legend(frameon=False)
    accepted = "" if line is None else " What is left of the line is accepted, unless something else speaks against it."
    caption = f"{score[0].upper()}{score[1:]}: right cases blue, wrong ones red.{accepted}{left_out}"
    return caption, page.svg(figure)


def _volumes(judged: Sequence[Judged], name: str) -> str:
    mean, _, _, truth, low, high = volume_columns(judged, name)
    figure, axes = page.axes()
    inside = (low <= truth) & (truth <= high)
    for shown, colour in ((inside, INK), (~inside, WARN)):
        axes.vlines(truth[shown], low[shown], high[shown], color=colour, alpha=0.5)
        axes.scatter(truth[shown], mean[shown], 8, color=colour)
    ends = [float(min(truth.min(), low.min())), float(max(truth.max(), high.max()))]
    axes.plot(ends, ends, color=FAINT, linestyle=":")
    axes.set(xlabel="true volume, mL", ylabel="given volume, mL")
    return page.svg(figure)


def _rates(rates: Sequence[Rate]) -> str:
    figure, axes = page.axes()
    tried = [rate for rate in rates if rate.p is not None]
    for name, colour in (("ece", INK), ("aurc", WARN)):
        axes.plot([r.p for r in tried], [getattr(r, name) for r in tried], marker="o", color=colour, label=name.upper())
        axes.axhline(getattr(rates[0], name), color=colour, linewidth=1, linestyle=":")
    axes.set(xlabel="probability of dropping (dotted: the network's own)", ylim=(0, None))
    axes.legend(frameon=False)
    return page.svg(figure)
