"""The monitors of every policy of a log as one HTML file: counts, and how the evidence grew. Nothing of a case."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path

from equipoise_client.extras import needs

from .chain import entries
from .monitor import Monitor
from .status import LIMIT, PolicyStatus, Watched

_POINTS = 400
"""Of a curve, at most."""

_COLOURS = dict(zip(Watched, ("#c2553a", "#1f5f8b", "#7a5195", "#3a7d44", "#a67c00"), strict=True))

Curves = dict[str, dict[Watched, list[tuple[int, float]]]]
"""Policy → monitor → (line of the log, e-value)."""


def write_page(path: Path, log: Path, every: float, alpha: float | None) -> list[PolicyStatus]:
    """Writes the page and gives what it shows; see `monitor.monitor`. Raises AuditError for a broken log, OSError."""
    with needs("clinic", "the page of the monitors"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    statuses, curves = _read(log, every, alpha)
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = pages.get_template("page.html.jinja").render(
        log=log.name, limit=LIMIT, policies=[(each, _plot(curves[each.policy])) for each in statuses], words=Watched
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return statuses


def _read(log: Path, every: float, alpha: float | None) -> tuple[list[PolicyStatus], Curves]:
    watcher, curves = Monitor(every, alpha), Curves()
    known: dict[tuple[str, Watched], int] = defaultdict(int)
    for entry in entries(log):
        watcher.add(entry)
        policy = str((entry.body or {}).get("policy_digest") or "")
        for status in watcher.statuses():
            for each in status.monitors:
                if each.cases != known[status.policy, each.watched]:
                    known[status.policy, each.watched] = each.cases
                    points = curves.setdefault(status.policy, {}).setdefault(each.watched, [])
                    points.append((entry.sequence, each.e_value))
        curves.setdefault(policy, {})
    return watcher.statuses(), defaultdict(dict, curves)


def _plot(curves: dict[Watched, list[tuple[int, float]]]) -> str:
    """The e-values over the lines of the log, as an SVG element."""
    with needs("clinic", "the page of the monitors"):
        import matplotlib as mpl
        from matplotlib.figure import Figure
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(LIMIT, color="#b42318", linewidth=1.2, linestyle="--")
    axes.text(0.0, LIMIT * 1.15, "alarm", color="#b42318", transform=axes.get_yaxis_transform())
    for watched, points in curves.items():
        thinned = [*points[:: max(1, len(points) // _POINTS)], points[-1]]
        lines, values = zip(*thinned, strict=True)
        axes.plot(lines, [max(1e-3, value) for value in values], label=watched.value, color=_COLOURS[watched])
    axes.set_yscale("log")
    axes.set_ylim(1e-3, None)
    axes.set_xlabel("line of the log")
    axes.set_ylabel("e-value")
    if curves:
        axes.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "equipoise", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
