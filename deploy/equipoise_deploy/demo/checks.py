"""What must hold for the demo to pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

PLAUSIBLE_ML = (2.0, 5.0)
ATLAS_TOLERANCE = 0.35


def failed_checks(decisions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The checks that do not hold, in words."""
    routes = {decision["route"] for decision in decisions}
    if len(routes) < 2:
        yield f"every case was routed to {routes}; at least two different routes were expected"
    for decision in decisions:
        if "error" in decision:
            yield f"{decision['image']}: {decision['error']}"
        if decision["must_not_accept"] and decision["route"] == "accept":
            yield f"{decision['image']} was accepted, though {decision['title']}"
        if decision["must_be"] not in ("", decision["route"]):
            yield f"{decision['image']} was routed to {decision['route']}; {decision['must_be']} was expected"
        if decision["atlas_ml"] is not None:
            yield from _volume_failures(decision)


def _volume_failures(decision: dict[str, Any]) -> Iterator[str]:
    low, high = PLAUSIBLE_ML
    volume, atlas = decision["volume_total"]["mean"], decision["atlas_ml"]
    if volume is None or not low <= volume <= high:
        yield f"{decision['image']}: {volume} mL is not between {low} and {high} mL"
    elif abs(volume - atlas) > ATLAS_TOLERANCE * atlas:
        yield f"{decision['image']}: {volume:.2f} mL is further than {ATLAS_TOLERANCE:.0%} from the atlas's {atlas:.2f}"
