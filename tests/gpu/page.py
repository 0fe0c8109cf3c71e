"""The page of a run: one file, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise_export.page import FAINT, INK, axes, render, svg

from .target import flat

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(document: Mapping[str, Any], file: Path) -> None:
    """`document` as `gpu.json` holds it."""
    plots = {name: _plot(name, entry["figures"]) for name, entry in document["steps"].items()}
    file.write_text(
        render(TEMPLATE, {"flat": flat}, run=document, cpu=document["machine"]["device"] == "cpu", plots=plots),
        encoding="utf-8",
    )


def _plot(step: str, figures: Mapping[str, Any]) -> str:
    """Of what has one; empty for all else."""
    if step == "rebuilds":
        bars = {
            f"{model}, {shape.partition(': ')[2]}": (row["first ms"], row["then ms"])
            for model, rows in figures.items()
            for shape, row in rows.items()
        }
        return _bars(bars, "ms of a run: the first after a change of shape, and the next") if bars else ""
    if step == "throughput":
        bars = {
            f"{model}, {peer}": (next(reversed(loads.values()))["per s"],)
            for model, peers in figures.items()
            if isinstance(peers, Mapping)
            for peer, loads in peers.items()
            if isinstance(loads, Mapping)
            and all(isinstance(load, Mapping) for load in loads.values())
            and "1 clients" in loads
        }
        return _bars(bars, "images per second, most clients") if bars else ""
    return ""


def _bars(values: Mapping[str, tuple[float, ...]], title: str) -> str:
    figure, drawn = axes((7.5, 0.6 + 0.22 * len(values)))
    for index, colour in zip(range(len(next(iter(values.values())))), (INK, FAINT), strict=False):
        bars = drawn.barh(
            list(values), [each[index] for each in values.values()], color=colour, height=0.8 - 0.4 * index
        )
        drawn.bar_label(bars, [f"{each[index]:.3g}" for each in values.values()] if not index else None, fontsize=6)
    drawn.set_xscale("log")
    drawn.tick_params(labelsize=6)
    drawn.invert_yaxis()
    drawn.set_title(title, fontsize=8)
    return svg(figure)
