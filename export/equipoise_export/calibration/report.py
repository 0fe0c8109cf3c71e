"""The calibration report: one HTML file with everything in it, no script and nothing from the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract
from equipoise_core.policy import Policy

from .. import page
from ..page import FAINT, INK, WARN
from ..progress import phase
from . import metrics
from .choose import stacked
from .figures import Judged, volume_columns
from .sweep import Rate


@phase("writing the report")
def render_report(
    contract: Contract,
    policy: Policy,
    why: str,
    sections: Sequence[tuple[str, str, dict[str, Any]]],
    judged: Sequence[Judged],
    groups: dict[str, Any],
    rates: Sequence[Rate] = (),
) -> str:
    """HTML.

    Args:
        why: what the accept threshold guarantees, or why there is none.
        sections: (title, note, figures) of each set of cases.
        judged: cases that the plots show.
    """
    return page.render(
        Path(__file__).with_name("report.html.jinja"),
        {"n": _number, "share": _share, "blocks": _blocks},
        name=contract.name,
        classes=contract.classes,
        policy=policy,
        digest=policy.digest,
        guarantees=list(guarantees(policy, why)),
        sections=sections,
        groups=groups,
        rates=rates,
        plots=list(_plots(contract, policy, judged, rates)),
    )


def guarantees(policy: Policy, why: str) -> Iterator[tuple[str, str]]:
    """(what, in words) of every rule."""
    yield "accept", why
    yield "reject for what the input looks like", policy.suitable.rule
    yield f"review for unusual {', '.join(policy.typical.limits)}", policy.typical.rule
    if policy.volume:
        yield "volume intervals", policy.volume.rule
    if policy.sensitive:
        yield "sensitive labels", policy.sensitive.rule
    elif policy.volume:  # of a segmentation
        yield "sensitive labels", "none: too few cases with foreground, or only a threshold of 0 misses so little"
    if policy.monitoring:
        share = policy.monitoring.audit_share
        yield ("audits", f"{share:.0%} of accepted cases are marked at random, for `equipoise audit monitor`")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _share(interval: dict[str, float | None]) -> str:
    if interval["share"] is None:
        return "–"
    return f"{interval['share']:.1%}, 95 % interval {interval['low']:.1%} to {interval['high']:.1%}"


def _blocks(probabilities: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One table for exclusive classes, one per label otherwise."""
    return [("probabilities", probabilities)] if "ece" in probabilities else list(probabilities.items())


def _plots(
    contract: Contract, policy: Policy, judged: Sequence[Judged], rates: Sequence[Rate]
) -> Iterator[tuple[str, str]]:
    yield (
        "Reliability: how often the given probability comes true. Grey before, blue after recalibration.",
        _reliability(contract, judged),
    )
    yield "Risk and coverage: the share of wrong cases among the most certain ones.", _risk_coverage(judged)
    score = "case score" if policy.guarantee is None else "case score over its stage's accept threshold"
    yield (
        f"{score[0].upper()}{score[1:]}: right cases blue, wrong ones red; what is left of the line is accepted.",
        _histogram(judged, score, None if policy.guarantee is None else 1.0),
    )
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


def _histogram(judged: Sequence[Judged], score: str, threshold: float | None) -> str:
    scores = np.array([each.ranking for each in judged])
    wrong = np.array([each.step.loss > 0 for each in judged])
    figure, axes = page.axes()
    edges = np.linspace(0.0, float(scores.max()) or 1.0, 31)
    axes.hist([scores[~wrong], scores[wrong]], edges, stacked=True, color=[INK, WARN], label=["right", "wrong"])
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1)
    axes.set(xlabel=score, ylabel="cases", yscale="symlog")
    axes.legend(frameon=False)
    return page.svg(figure)


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
