"""A finding → the objects that are stored. The only module that decides which ones there are."""

from __future__ import annotations

from typing import Any

from .finding import Finding
from .maps import segmentation, uncertainty_maps
from .report import report


def objects_of(finding: Finding) -> tuple[Any, ...]:
    """Segmentation, Parametric Maps, report; of a classification the report alone. The same finding, the same bytes."""
    if finding.masks is None:
        return (report(finding, None),)
    segments = segmentation(finding)
    maps = uncertainty_maps(finding)
    return (segments, *maps, report(finding, segments, maps))
