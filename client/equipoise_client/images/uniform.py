"""Whether the slices of a stack were taken as one: the same kind of image, echo, time and values.

Even positions do not say so: echoes that alternate, or a localizer beyond the last slice, lie on an even grid too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from .geometry import functional_group, spacing_in_plane
from .rejections import NotOneVolume

_SAME = (
    "SOPClassUID", "Modality", "ImageType", "FrameType", "ComplexImageComponent", "PhotometricInterpretation",
    "SamplesPerPixel", "BodyPartExamined", "Laterality", "ImageLaterality", "PatientPosition", "ViewPosition",
    "EchoNumbers", "DiffusionDirectionality", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID",
    "SequenceName", "ScanningSequence", "ConvolutionKernel", "RescaleType", "Units", "ContrastBolusAgent",
    "PresentationLUTShape", "PixelIntensityRelationshipSign", "DeviceSerialNumber", "PatientSex", "PatientBirthDate",
    "PatientSpeciesDescription",
)  # fmt: skip
"""Attributes that all slices state alike, or none."""

_CLOSE = (
    "EchoTime", "EffectiveEchoTime", "InversionTime", "RepetitionTime", "DiffusionBValue", "FlipAngle", "KVP",
)  # fmt: skip
"""Numbers that may differ by rounding."""
_TOLERANCE = 0.02

_GROUPS = (
    "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "MREchoSequence", "MRDiffusionSequence",
    "MRTimingAndRelatedParametersSequence", "FrameAnatomySequence", "CTReconstructionSequence", "FrameContentSequence",
)  # fmt: skip
"""Functional groups in which enhanced objects state them."""

_BLOCKS = ("AcquisitionNumber", "FrameAcquisitionNumber")
"""May change once along the stack, where a scan was continued; not back and forth."""


def of_datasets(datasets: Sequence[Any]) -> tuple[str, ...]:
    """Doubts about single-frame slices, given in their order in space. Raises NotOneVolume that names the attribute."""
    if len({str(dataset.get("RescaleSlope") or "").strip() == "" for dataset in datasets}) > 1:
        raise NotOneVolume("some state a RescaleSlope, some do not")
    return _checked([[dataset] for dataset in datasets])


def of_frames(dataset: Any, order: Sequence[int]) -> tuple[str, ...]:
    """The same of the frames of one dataset, `order` being theirs in space."""
    spacings = [spacing_in_plane(dataset, frame) or (0.0, 0.0) for frame in order]
    if any(max(axis) - min(axis) > 1e-3 * max(*axis, 1e-6) for axis in zip(*spacings, strict=True)):
        raise NotOneVolume("they differ in PixelSpacing")
    described = []
    for frame in order:
        groups = [functional_group(dataset, frame, name) for name in _GROUPS]
        described.append([group for group in groups if group is not None])
    return _checked(described)


def _checked(slices: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    for name in _SAME:
        if len({_value(each, name) for each in slices}) > 1:
            raise NotOneVolume(f"they differ in {name}")
    for name in _CLOSE:
        stated = [_value(each, name) for each in slices]
        if len(set(stated)) > 1 and not _close(stated):
            raise NotOneVolume(f"they differ in {name}")
    return tuple(_changes(slices))


def _changes(slices: Sequence[Sequence[Any]]) -> Iterator[str]:
    for name in _BLOCKS:
        values = [_value(each, name) for each in slices]
        changes = sum(one != other for one, other in pairwise(values))
        if changes >= len(set(values)):
            raise NotOneVolume(f"{name} alternates from slice to slice")
        if changes and len(set(values)) < len(values):  # a number for each slice counts slices
            yield f"the slices come from several acquisitions ({name})"
    if not _close([_value(each, "SliceThickness") or "0" for each in slices]):
        yield "the slices are not equally thick (SliceThickness)"


def _value(places: Sequence[Any], name: str) -> str:
    """What the first of these places that has it says; "" for nothing."""
    found = next((place[name].value for place in places if name in place), None)
    values = [found] if isinstance(found, (str, bytes)) or not isinstance(found, Sequence) else found
    return "\\".join("" if value is None else str(value).strip() for value in values)


def _close(stated: Sequence[str]) -> bool:
    try:
        numbers = [float(each) for each in stated]
    except ValueError:
        return False
    return max(numbers) - min(numbers) <= _TOLERANCE * max(map(abs, numbers))
