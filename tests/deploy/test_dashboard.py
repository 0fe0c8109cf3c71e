"""The dashboard as far as its file alone shows it; tests/pipeline/test_monitoring.py has a real run."""

from __future__ import annotations

import json
from pathlib import Path

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana/equipoise.json").read_text(encoding="utf-8"))
WIDTH = 24  # of Grafana's grid


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    """Grafana would show one of them only."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(places) == len(set(places)) and max(x for x, _ in places) < WIDTH, "panels lie on each other"


def test_every_panel_asks_the_prometheus_that_was_chosen():
    """One dashboard serves every site: the data source is a variable of it, and so are the models."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"source", "model"}
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles) > 20
    for panel in panels:
        assert panel["targets"], panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${source}"} for source in sources), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
