"""What every report is made of: one HTML file with its plots in it, no script and nothing from the network."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

INK, FAINT, WARN = "#1f5f8b", "#9fb3c4", "#c2553a"


def render(template: Path, filters: Mapping[str, Callable[..., Any]], **context: Any) -> str:
    """HTML. Everything is escaped but what the template calls safe; a name that is not known is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=select_autoescape(["jinja"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template.name).render(**context)


def ready(path: Path) -> Path:
    """The path of a report, once it is known that it can be written: hours of work come before. Makes its folder.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the report's file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written; name another file")
    return path


def axes(size: tuple[float, float] = (4.6, 3.6)) -> tuple[Figure, Any]:
    """An empty plot; `size` in inches."""
    figure = Figure(figsize=size, layout="constrained")
    drawn = figure.add_subplot()
    drawn.spines[["top", "right"]].set_visible(False)
    return figure, drawn


def svg(figure: Figure) -> str:
    """The plot as an element for the page: the same bytes for the same plot."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "equipoise", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
