"""The objects that are stored of a decision. The only module that decides which ones there are."""

from __future__ import annotations

from typing import Any

from .maps import segmentation, uncertainty_maps
from .report import report
from .result_source import ResultSource


def objects_of(source: ResultSource) -> tuple[Any, ...]:
    """Segmentation, Parametric Maps, report; of a classification the report alone. The same input, the same bytes."""
    if source.masks is None:
        return (report(source, None),)
    segments = segmentation(source)
    maps = uncertainty_maps(source)
    return (segments, *maps, report(source, segments, maps))
