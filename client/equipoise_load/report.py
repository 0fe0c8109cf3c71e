"""A report for people: tables in the terminal, a page with plots, two runs side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from .slo import PERCENTILES, Objective

_STEADY = {
    True: "yes",
    False: "no: the halves of the run differ; run longer or offer less",
    None: "unknown: too few answers",
}
COLUMNS = ("mean", *PERCENTILES, "max")


def tables(report: Mapping[str, Any]) -> Group:
    """What a terminal shows."""
    latency = Table("ms", *COLUMNS, title="latency")
    rows = {"from due to answer": report["latency_ms"], "from sent to answer": report["service_ms"]}
    for name, figures in {**rows, "generator late by": report["generator_lag_ms"]}.items():
        latency.add_row(name, *(_number(figures.get(column)) for column in COLUMNS))
    if len(report["mix"]) > 1:
        for each in report["mix"]:
            latency.add_row(each["request"], *(_number(each["latency_ms"].get(column)) for column in COLUMNS))
    parts: list[Table] = [latency, _counts(report)]
    if report.get("server"):
        columns = ("model", "requests", "per execution", "queue ms", "compute ms", "total ms")
        server = Table(*columns, title="server's account, warm-up included")
        for model, counts in report["server"].items():
            figures = (counts["requests_per_execution"], counts["queue_ms"], counts["compute_ms"], counts["total_ms"])
            server.add_row(model, str(counts["requests"]), *(_number(figure) for figure in figures))
        parts.append(server)
    return Group(*parts)


def _counts(report: Mapping[str, Any]) -> Table:
    requests = report["requests"]
    table = Table("", "", title="requests", show_header=False)
    table.add_row("sent, answered, failed", f"{requests['sent']}, {requests['answered']}, {requests['failed']}")
    offered = report["offered_per_second"]
    table.add_row("offered per second", "closed loop" if offered is None else _number(offered))
    table.add_row("achieved per second", _number(report["achieved_per_second"]))
    table.add_row("images per second", _number(report["images_per_second"]))
    table.add_row("samples per image", _number(report["samples_per_image"]))
    table.add_row("tries per request", _number(requests["tries"] / requests["sent"] if requests["sent"] else None))
    table.add_row("by code", ", ".join(f"{code} {count}" for code, count in requests["by_code"].items()))
    table.add_row("by route", ", ".join(f"{route} {count}" for route, count in report["routes"].items()))
    table.add_row("settled", _STEADY[report["steady"]])
    return table


def verdicts(objectives: Sequence[Objective], report: Mapping[str, Any]) -> Table:
    """Which objectives were met."""
    table = Table("promise", "measured", "kept", title="objectives")
    for objective in objectives:
        kept = objective.met(report)
        table.add_row(str(objective), _number(objective.measured(report)), "[green]yes[/]" if kept else "[red]no[/]")
    return table


def comparison(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> Table:
    """Two reports side by side, with the ratio of the second to the first."""
    table = Table("figure", *names, "ratio", title="comparison")
    rows = {f"{column} ms": (first["latency_ms"].get(column), second["latency_ms"].get(column)) for column in COLUMNS}
    for key in ("offered_per_second", "achieved_per_second", "images_per_second", "samples_per_image"):
        rows[key.replace("_", " ")] = (first.get(key), second.get(key))
    rows["error share"] = (first["requests"]["error_share"], second["requests"]["error_share"])
    for name, (a, b) in rows.items():
        table.add_row(name, _number(a), _number(b), _number(b / a) if a and b is not None else "")
    return table


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """One HTML file with its plots inside: nothing is loaded from anywhere."""
    from jinja2 import Environment

    template = files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    plots = {"percentiles": _percentiles(report), "series": _series(report)}
    path.write_text(page.render(report=report, columns=COLUMNS, plots=plots, number=_number), encoding="utf-8")


def _percentiles(report: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="percentile", ylabel="latency, ms")
    points = report["percentiles"]
    axes.step([1.0 - p / 100.0 for p, _ in points], [ms for _, ms in points], where="post", color="#1f5a92")
    axes.set(xscale="log", ylim=(0, None))
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(lambda share, _: f"p{100.0 - 100.0 * share:.6g}")
    axes.grid(alpha=0.3)
    return _svg(figure)


def _series(report: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    seconds = [each["second"] for each in report["series"]]
    for name, colour in (("p99", "#b5442e"), ("p50", "#1f5a92")):
        above.plot(seconds, [each[name] for each in report["series"]], label=name, color=colour, marker=".")
    above.set(ylabel="latency, ms", ylim=(0, None))
    below.bar(seconds, [each["due"] for each in report["series"]], color="#9db7cf", label="due")
    below.bar(seconds, [each["failed"] for each in report["series"]], color="#b5442e", label="failed")
    below.set(ylabel="requests", xlabel="seconds since the end of the warm-up, by when requests were due")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    return _svg(figure)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
