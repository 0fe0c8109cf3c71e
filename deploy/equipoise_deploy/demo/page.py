"""The demo's page: one article per case, self-contained but for its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise_client.prediction import in_words
from jinja2 import Environment, FileSystemLoader


def write_page(path: Path, decisions: Sequence[dict[str, Any]]) -> None:
    """Writes `index.html`; pictures are referred to by name and lie beside it."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    templates.filters["in_words"] = in_words
    shown = [
        {**decision, "picture": next((Path(f).name for f in decision.get("written", ()) if f.endswith(".png")), None)}
        for decision in decisions
    ]
    html = templates.get_template("page.html.jinja").render(decisions=shown)
    path.write_text(html, encoding="utf-8")
