"""The site's report: one HTML file, no script and nothing from the network. `SECTIONS` is the report at a glance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Contract, Task
from equipoise_core.volume import widened

from .. import page
from ..calibration.choose import serve
from ..calibration.conformal import coverage_band
from ..calibration.growing import error_bounds
from ..calibration.shift import LEAST_COVERED, effective_cases_needed
from ..calibration.table import CaseTable
from ..page import FAINT, INK, WARN
from .decide import Verdict
from .site import Site

OTHER_COLOURS = (FAINT, "#7f9c6a", "#b08d3e", INK)


@dataclass(frozen=True)
class Findings:
    """What the sections speak of; `document` is `AdaptedSite.document`."""

    contract: Contract
    document: Mapping[str, Any]
    site: Site
    verdict: Verdict
    table: CaseTable


@dataclass(frozen=True)
class Section:
    """Paragraphs, then tables (head, rows; columns after the first to the right), then plots (caption, SVG)."""

    title: str
    notes: Sequence[str]
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]] = ()
    plots: Sequence[tuple[str, str]] = ()


def render_report(
    contract: Contract, document: Mapping[str, Any], site: Site, verdict: Verdict, table: CaseTable
) -> str:
    """HTML."""
    found = Findings(contract, document, site, verdict, table)
    return page.render(
        Path(__file__).with_name("report.html.jinja"),
        {},
        name=contract.name,
        site=site.name,
        open=document["open"],
        policy=verdict.policy,
        sections=[section(found) for section in SECTIONS],
    )


def promises(found: Findings) -> Section:
    """What goes on without a human at this site, and why."""
    policy, document = found.verdict.policy, found.document
    why = found.verdict.why
    notes = [f"{why[0].upper()}{why[1:]}."]
    if policy.guarantee is None:
        notes.append("Nothing is accepted at this site: every case goes to an expert, or is rejected.")
    if document["skipped"]:
        counts = "; ".join(f"{count}: {why}" for why, count in document["skipped"].items())
        notes.append(f"Labelled cases of this call that do not count: {counts}.")
    rows = [
        ("volume intervals", found.verdict.volume),
        ("margins of outlines", found.verdict.outline),
        ("review for what is not typical here", policy.typical.rule),
        ("reject for what the input looks like", policy.suitable.rule),
    ]
    if policy.sensitive:
        rows.append(("sensitive labels", policy.sensitive.rule))
    rows.append(("for whom", policy.population))
    if found.contract.task is not Task.SEGMENTATION:
        rows = rows[2:]
    return Section("What is promised at this site", notes, [(("promise", "in words"), rows)])


def evidence(found: Findings) -> Section:
    """How the certificates of the candidates grow with labelled cases."""
    site, growth = found.site, found.verdict.growth
    rows = []
    for k, each in enumerate(found.document["candidates"]):
        low, high = each["error_bounds"]
        state = "open" if each["certified"] and not growth.refuted[-1, k] else "closed"
        forecast = each["labels_until_open"]
        rows.append(
            (
                f"{k + 1}",
                ", ".join(f"{s['accept_up_to']:.3g}" for s in each["stages"] if s["accept_up_to"] is not None),
                f"{each['accepts_images']:.0%}",
                f"{each['errors']} of {each['accepted']}",
                f"{low:.1%} to {high:.1%}",
                "–" if state == "open" or forecast is None else f"about {forecast}",
                state,
            )
        )
    head = (
        "threshold", "score at most (per stage)", "accepts of the images", "wrong of accepted", "error, at all times",
        "labels still needed", "accept",
    )  # fmt: skip
    calls = "1 call" if site.calls == 1 else f"{site.calls} calls"
    notes = [
        f"{len(site.cases)} labelled cases in {calls}. Thresholds are opened one after the other, "
        f"the strictest first, each as soon as a bet against “{site.alpha:.0%} or more of the accepted cases are "
        f"wrong” has multiplied its stake by {1 / site.delta:g}. One may look after every case: that an open one is "
        f"ever wrong has a chance of at most {site.delta:.0%}.",
        "“Labels still needed” is a forecast: if from now on a quarter as many accepted cases are wrong as allowed.",
        *(f"Not tried: {words}." for words in site.dropped),
    ]
    plots = [("Growth of each bet; above the line its threshold is open.", _wealth(found))] if site.cases else []
    if site.cases:
        plots.append(("Error among accepted cases: bounds that hold at all times at once.", _bounds(found)))
    return Section("Evidence from labelled cases", notes, [(head, rows)], plots)


def shift(found: Findings) -> Section:
    """How far the site is from where the model was calibrated."""
    moved, table, name = found.verdict.shift, found.table, found.site.name
    level = table.goals.level
    rows = [
        ("images without labels", f"{len(found.site.images)}"),
        ("calibration cases of the other site", f"{len(moved.weights)}"),
        ("how well the two can be told apart (AUROC)", f"{moved.separation:.2f} (0.5: not at all)"),
        ("share of the site that the calibration cases resemble", f"{moved.covered:.0%} (needed: {LEAST_COVERED:.0%})"),
        (
            "worth of the calibration cases here (effective size)",
            f"{moved.effective_size:.1f} (needed at level {level:g}: {effective_cases_needed(level)})",
        ),
    ]
    rows += [
        (
            f"error to be expected below threshold {k + 1}",
            "–"
            if each["estimated_error"] is None
            else f"{each['estimated_error']:.1%} (on {each['estimated_on']:.1f} cases)",
        )
        for k, each in enumerate(found.document["candidates"])
    ]
    notes = [
        f"By images alone. A classifier tells images of {name} from the calibration cases, by their statistics and the "
        "model's scores; calibration cases count the more the more they look like images of this site. What follows "
        "is an estimate, not a promise: images cannot show whether the same image would be labelled otherwise here. It "
        "can keep a threshold closed, and never opens one.",
    ]
    score = found.site.bounds.stages[-1].score
    source = found.site.source.ood_distance
    assert source is not None

    def distances(cases: Any) -> list[float]:
        return [source.distance(case.statistics) for case in cases]

    plots = [
        (
            "Distance from what was typical at the other site.",
            _two(distances(table.cases), distances(found.site.images), "out-of-distribution distance", name),
        ),
        (
            "Case score at full T.",
            _two(
                [case.full.scores[score] for case in table.cases],
                [case.full.scores[score] for case in found.site.images],
                score.replace("_", " "),
                name,
            ),
        ),
        ("What each calibration case counts for here, sorted; 1 if the sites were alike.", _weights(found)),
    ]
    return Section("How far this site is from where the model was calibrated", notes, [(("", "found"), rows)], plots)


def volumes(found: Findings) -> Section:
    """Whether the intervals held on the labelled cases."""
    policy = found.verdict.policy
    own = [known.case for known in found.site.cases]
    if policy.volume is None or not own:
        return Section("", [])
    rule, rows = policy.volume, []
    weighted = rule.cases != len(own)
    steps = [serve(found.contract, policy, case).step for case in own]
    for name, widening in rule.widening.items():
        ends = np.array([step.volumes[name] for step in steps])
        truth = np.array([case.truths[name] for case in own])
        before = (ends[:, 1] <= truth) & (truth <= ends[:, 2])
        low, high = np.array([widened(*step.volumes[name], widening) for step in steps]).T
        inside = (low <= truth) & (truth <= high)
        rows.append(
            (
                name,
                f"{widening:.3g} mL",
                f"{int(before.sum())} of {len(own)}",
                f"{int(inside.sum())} of {len(own)}",
                f"{float((high - low).mean()):.3g} mL",
            )
        )
    notes = ["As they are served, on the labelled cases of this site."]
    if weighted:
        size = max(int(found.verdict.shift.effective_size), effective_cases_needed(rule.level))
        low, high = coverage_band(size, len(own), rule.level)
        notes.append(
            f"They had no part in the intervals: with calibration cases worth {size}, {low:.0%} to {high:.0%} inside "
            "is what chance explains."
        )
    else:
        notes.append("The intervals were made from these very cases: this is no test of them.")
    head = ("volume", "widened by", "inside before", "inside", "mean width")
    return Section("Volumes of labelled cases", notes, [(head, rows)])


SECTIONS: Sequence[Callable[[Findings], Section]] = (promises, evidence, shift, volumes)
"""In this order; one without notes is left out."""


def _wealth(found: Findings) -> str:
    growth, site = found.verdict.growth, found.site
    figure, axes = page.axes()
    cases = np.arange(len(growth.wealth) + 1)
    for k, column in enumerate(growth.wealth.T):
        colour = OTHER_COLOURS[k % len(OTHER_COLOURS)]
        axes.plot(cases, np.maximum(np.r_[0.0, column] / np.log(10.0), -3.0), color=colour, label=f"threshold {k + 1}")
    axes.axhline(-np.log10(site.delta), color="black", linewidth=1)
    for call in range(2, site.calls + 1):
        first = next(i for i, known in enumerate(site.cases) if known.call == call)
        axes.axvline(first, color=FAINT, linewidth=0.6, linestyle=":")
    axes.set(xlabel="labelled cases (dotted: further calls)", ylabel="log₁₀ of the bet's wealth")
    axes.legend(frameon=False, fontsize=8)
    return page.svg(figure)


def _bounds(found: Findings) -> str:
    growth, site = found.verdict.growth, found.site
    k = growth.open or 0
    pairs = np.array(
        [
            error_bounds(int(e), int(n), site.delta)
            for e, n in zip(growth.errors[:, k], growth.accepted[:, k], strict=True)
        ]
    )
    pairs = np.stack([np.maximum.accumulate(pairs[:, 0]), np.minimum.accumulate(pairs[:, 1])], axis=1)
    figure, axes = page.axes()
    cases = np.arange(1, len(pairs) + 1)
    axes.fill_between(cases, pairs[:, 0], pairs[:, 1], color=INK, alpha=0.15, linewidth=0)
    axes.plot(cases, pairs[:, 1], color=INK, label=f"threshold {k + 1}")
    seen = growth.errors[:, k] / np.maximum(growth.accepted[:, k], 1)
    axes.plot(cases, seen, color=FAINT, label="share wrong so far")
    axes.axhline(site.alpha, color=WARN, linewidth=1, label=f"allowed: {site.alpha:.0%}")
    axes.set(xlabel="labelled cases", ylabel="error among accepted cases", ylim=(0, min(1.0, 6.0 * site.alpha)))
    axes.legend(frameon=False, fontsize=8)
    return page.svg(figure)


def _two(calibration: Sequence[float], images: Sequence[float], what: str, name: str) -> str:
    figure, axes = page.axes()
    plain = name.replace("$", r"\$")  # no formula
    edges = np.histogram_bin_edges(np.r_[calibration, images], 24)
    for values, colour, label in ((calibration, FAINT, "calibration cases"), (images, INK, plain)):
        share = np.full(len(values), 1.0 / len(values))
        axes.hist(values, edges, weights=share, color=colour, alpha=0.65, label=label)
    axes.set(xlabel=what, ylabel="share of cases")
    axes.legend(frameon=False, fontsize=8)
    return page.svg(figure)


def _weights(found: Findings) -> str:
    moved = found.verdict.shift
    figure, axes = page.axes()
    weights = np.sort(moved.weights)[::-1]
    axes.bar(np.arange(len(weights)), weights, width=1.0, color=INK)
    axes.axhline(1.0, color="black", linewidth=1, linestyle=":")
    axes.set(xlabel="calibration cases", ylabel="weight", xlim=(-0.5, len(weights) - 0.5))
    return page.svg(figure)
