"""Where DICOM planes lie, from attributes of an image or from functional groups of its frames (PS3.3 C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def frames_of(dataset: Any) -> int:
    """Number of frames as it states it, not checked."""
    return int(dataset.get("NumberOfFrames", 1) or 1)


def functional_group(dataset: Any, frame: int, name: str) -> Any | None:
    """The item of a multi-frame functional group: a frame's own, else the one all share, else None."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[frame]] if frame < len(own) else [], shared):
        for group in groups:
            if group.get(name):
                return group[name].value[0]
    return None


def spacing_in_plane(dataset: Any, frame: int = 0) -> tuple[float, float] | None:
    """mm between (rows, columns). Imager Pixel Spacing is no substitute: it is measured at the detector."""
    measures = functional_group(dataset, frame, "PixelMeasuresSequence")
    between = vector((dataset if measures is None else measures).get("PixelSpacing"), 2)
    return (between[0], between[1]) if between is not None and min(between) > 0 else None


def vector(value: Any, count: int) -> tuple[float, ...] | None:
    """The numbers of an element that should have so many; None where it has not."""
    if value is None or isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        return None
    return tuple(float(each) for each in value)


def planes_of(dataset: Any, frames: int) -> tuple[list[list[float]], list[list[float]]] | None:
    """Position `[frames][3]` and orientation `[frames][6]` of every frame, or None where one is missing."""
    positions, directions = [], []
    for frame in range(frames):
        fallback = dataset if frames == 1 else {}
        position = functional_group(dataset, frame, "PlanePositionSequence") or fallback
        orientation = functional_group(dataset, frame, "PlaneOrientationSequence") or fallback
        place = vector(position.get("ImagePositionPatient"), 3)
        direction = vector(orientation.get("ImageOrientationPatient"), 6)
        if place is None or direction is None:
            return None
        positions.append(list(place))
        directions.append(list(direction))
    return positions, directions
