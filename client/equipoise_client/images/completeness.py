"""What the headers of a series say about images that are not there.

A series that is known to be incomplete is never accepted: edges that are missing cannot be seen in its geometry.
References: DICOM PS3.3 C.7.6.1 (Images in Acquisition), C.7.6.16 (concatenations, stacks), C.8.9.1 (Number of Slices),
PS3.4 C.3.4 (Number of Series Related Instances).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .geometry import frames_of


def missing(datasets: Sequence[Any]) -> tuple[str, ...]:
    """Reasons for which a series is incomplete, in words with numbers; empty where its headers do not say so.

    Args:
        datasets: all images of one series that are there.
    """
    return tuple(
        reason for check in (_counts, _numbers, _stacks, _concatenations) for reason in dict.fromkeys(check(datasets))
    )


def _counts(datasets: Sequence[Any]) -> Iterator[str]:
    """Fewer images than are stated. More say nothing: a series may hold several acquisitions."""
    for acquisition in _by(datasets, lambda dataset: str(dataset.get("AcquisitionNumber", "") or "")):
        yield from _fewer(_images(acquisition), _stated(acquisition, "ImagesInAcquisition"), "Images in Acquisition")
    related = _stated(datasets, "NumberOfSeriesRelatedInstances")
    yield from _fewer(len(datasets), related, "Number of Series Related Instances")
    slices, times = _stated(datasets, "NumberOfSlices"), _stated(datasets, "NumberOfTimeSlices")
    if str(datasets[0].get("Modality", "")) == "PT":
        yield from _fewer(_images(datasets), slices * max(times, 1), "Number of Slices")


def _numbers(datasets: Sequence[Any]) -> Iterator[str]:
    """Instance Numbers that are left out. That of a single image says nothing."""
    yield from _gaps([_number(dataset.get("InstanceNumber")) for dataset in datasets], "Instance Numbers")


def _stacks(datasets: Sequence[Any]) -> Iterator[str]:
    """Multi-frame instances: frames that are stated and not described, and positions in a stack that are left out."""
    for dataset in datasets:
        frames = dataset.get("PerFrameFunctionalGroupsSequence")
        if not frames:
            continue
        yield from _fewer(len(frames), frames_of(dataset), "Number of Frames")
        stacks: dict[str, list[int | None]] = defaultdict(list)
        for frame in frames:
            for content in frame.get("FrameContentSequence") or ():
                if "InStackPositionNumber" in content:
                    stacks[str(content.get("StackID", ""))].append(_number(content.InStackPositionNumber))
        for numbers in stacks.values():
            yield from _gaps(numbers, "In-Stack Position Numbers")


def _concatenations(datasets: Sequence[Any]) -> Iterator[str]:
    """Parts of a multi-frame image that was split over several instances."""
    for parts in _by(datasets, lambda dataset: str(dataset.get("ConcatenationUID", "") or "")):
        if parts[0].get("ConcatenationUID"):
            yield from _fewer(len(parts), _stated(parts, "InConcatenationTotalNumber"), "parts of a concatenation")


def _fewer(there: int, stated: int, name: str) -> Iterator[str]:
    if there < stated:
        yield f"{there} of {stated} images ({name})"


def _gaps(numbers: Sequence[int | None], name: str) -> Iterator[str]:
    """They count from 0 or 1; where all are equal or one has none, they say nothing."""
    there = {number for number in numbers if number is not None and number >= 0}
    if None in numbers or len(there) < 2:
        return
    lost = max(there) + 1 - min(1, *there) - len(there)
    if lost > 0:
        yield f"{lost} of the {name} up to {max(there)} are missing"


def _by(datasets: Sequence[Any], key: Callable[[Any], str]) -> list[list[Any]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for dataset in datasets:
        groups[key(dataset)].append(dataset)
    return list(groups.values())


def _images(datasets: Sequence[Any]) -> int:
    return sum(frames_of(dataset) for dataset in datasets)


def _stated(datasets: Sequence[Any], name: str) -> int:
    """The largest that any states; 0 where none does."""
    return max((_number(dataset.get(name)) or 0 for dataset in datasets), default=0)


def _number(value: Any) -> int | None:
    """None: not stated, or no number."""
    try:
        return None if value is None or value == "" else int(value)
    except (TypeError, ValueError):
        return None
