"""What highdicom needs of the source, and what is added to the objects that it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from equipoise_client.images.geometry import functional_group
from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.tag import Tag
from pydicom.valuerep import DS

from .dates import age, da, dt, tm
from .identity import Identity
from .series import Series

CHARACTERS = "ISO_IR 192"
"""UTF-8: whatever the source's Specific Character Set can write, this can."""

_PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "OtherPatientIDsSequence", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "StudyDate", "StudyTime", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "StudyDescription", "StudyID",
    "ProcedureCodeSequence", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID",
)  # fmt: skip
"""Of the Patient, General Study and Patient Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2) and what goes with them."""
_TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyID",
)  # fmt: skip
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "OverlayData", "IconImageSequence")


@dataclass(frozen=True, eq=False)
class Headers:
    """A series' datasets without pixels and private elements, with nothing in them that highdicom would refuse.

    Spacing between slices is that of their positions: highdicom copies the source's own, which may be stale, whatever
    it is told. Orientation and pixel spacing are the series', without noise in the last digits.

    Attributes:
        datasets: in the order of the series'.
        cleaned: keywords of attributes that DICOM does not allow so, and that were corrected or emptied.
        sex: Patient's Sex as the source has it; highdicom takes none but the standard's.
    """

    datasets: tuple[Any, ...]
    cleaned: tuple[str, ...]
    sex: str


def headers(series: Series) -> Headers:
    cleaned: set[str] = set()
    datasets = tuple(_header(dataset, series, cleaned) for dataset in series.datasets)
    return Headers(datasets, tuple(sorted(cleaned)), str(series.first.get("PatientSex", "") or ""))


_CLEANING: Mapping[str, Callable[[str], str]] = {
    "DA": da,
    "TM": tm,
    "DT": dt,
    "AS": age,
}
"""VR → what makes a valid value of a text, or "" where there is none."""


def _clean(dataset: Any, cleaned: set[str]) -> Iterator[Any]:
    """Copies of the elements that are kept; setting an attribute changes an element in place."""
    for tag in list(dataset.keys()):
        if tag.is_private or keyword_for_tag(tag) in _PIXELS:
            continue
        try:
            element = copy(dataset[tag])
            if element.VR in _CLEANING and element.value:
                value = _CLEANING[element.VR](str(element.value))
                if value != str(element.value):
                    cleaned.add(element.keyword)
                    element = DataElement(tag, element.VR, value)
        except Exception:  # noqa: BLE001 (a value that is none of its kind makes pydicom raise nearly anything)
            cleaned.add(keyword_for_tag(tag))
            continue
        yield element


def _header(dataset: Any, series: Series, cleaned: set[str]) -> Any:
    from highdicom import PixelMeasuresSequence
    from pydicom.dataset import Dataset

    header = Dataset()
    for element in _clean(dataset, cleaned):
        header.add(element)
    header.file_meta = dataset.file_meta
    for name in _TYPE_2:
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    gap = None if series.volume is None else series.volume.spacing[0]
    thickness = _thickness(dataset) or gap or 1.0
    if series.frames is None:
        header.SliceThickness = DS(thickness, auto_format=True)
        header.pop("SpacingBetweenSlices", None)
        if gap is not None:
            header.SpacingBetweenSlices = DS(gap, auto_format=True)
        if series.orientation is not None and "ImageOrientationPatient" in header:
            header.ImageOrientationPatient = [DS(cosine, auto_format=True) for cosine in series.orientation]
        if series.plane_spacing is not None and "PixelSpacing" in header:
            header.PixelSpacing = [DS(mm, auto_format=True) for mm in series.plane_spacing]
        return header
    shared = Dataset()
    for element in (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]:
        shared.add(copy(element))
    assert series.plane_spacing is not None and series.orientation is not None
    shared.PixelMeasuresSequence = PixelMeasuresSequence(series.plane_spacing, thickness, gap)
    direction = Dataset()
    direction.ImageOrientationPatient = list(series.orientation)
    shared.PlaneOrientationSequence = [direction]
    header.SharedFunctionalGroupsSequence = [shared]
    return header


def _thickness(dataset: Any) -> float:
    """Slice Thickness, mm; 0 where it is not stated."""
    measures = functional_group(dataset, 0, "PixelMeasuresSequence") or {}
    try:
        return max(0.0, float(measures.get("SliceThickness") or dataset.get("SliceThickness") or 0.0))
    except (TypeError, ValueError):
        return 0.0


def finished(result: Any, headers: Headers, identity: Identity) -> Any:
    """The object with patient and study as in the source's headers, without times of writing and random UIDs."""
    for element in _quoted(headers.datasets[0]):
        result.add(element)
    result.PatientSex = headers.sex
    for name in _TYPE_2:
        if name not in result:
            setattr(result, name, "")
    for element in result.iterall():
        if element.keyword == "DimensionOrganizationUID":  # drawn at random, once per object
            element.value = identity.uid(str(result.SOPInstanceUID), "dimensions")
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        result.pop(name, None)
    for equipment in result.get("ContributingEquipmentSequence", []):
        equipment.pop("ContributionDateTime", None)
    text = (str(element.value) for element in result.iterall() if element.VR in _TEXT)
    if all(each.isascii() for each in text):
        result.pop("SpecificCharacterSet", None)  # none is needed, and DCMTK does not check texts in UTF-8
    else:
        result.SpecificCharacterSet = CHARACTERS
    return result


_TEXT = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")


def _quoted(source: Any) -> Iterator[Any]:
    """Patient and study, decoded from the source's character set."""
    from pydicom.dataset import Dataset

    quoted = Dataset()
    for name in _PATIENT_AND_STUDY:
        if name in source:
            quoted.add(deepcopy(source[name]))
    quoted.SpecificCharacterSet = source.get("SpecificCharacterSet", "") or ""
    quoted.decode()
    for element in quoted:
        if element.VR == "PN":  # pydicom would write the bytes again as they came
            yield DataElement(element.tag, "PN", str(element.value or ""))
        elif element.keyword != "SpecificCharacterSet":
            yield element


def in_file_order(series: Series, values: NDArray[Any]) -> NDArray[Any]:
    """`[slices, …]` ascending along the normal → in the order of the source's instances or frames."""
    if series.frames is None:
        return values
    ordered = np.empty_like(values)
    ordered[list(series.frames)] = values
    return ordered


def ascending(result: Any, pixels: str) -> None:
    """Puts the frames of a finished multi-frame object in ascending order along the slice normal.

    highdicom writes them descending; OHIF and dcmqi read a Parametric Map frame by frame and would show it flipped.

    Args:
        pixels: keyword of the element that holds them, uncompressed, whole bytes per voxel, all frames of one size.
    """
    frames = result.PerFrameFunctionalGroupsSequence
    orientation = result.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross([float(c) for c in orientation[:3]], [float(c) for c in orientation[3:]])
    places = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    depths = [np.array(place, np.float64) @ normal for place in places]
    order = [int(index) for index in np.argsort(depths, kind="stable")]
    size = len(result[pixels].value) // len(frames)
    data = result[pixels].value
    result[pixels].value = b"".join(data[index * size : (index + 1) * size] for index in order)
    result.PerFrameFunctionalGroupsSequence = [frames[index] for index in order]
    dimensions = [each.DimensionIndexPointer for each in result.DimensionIndexSequence]
    (dimension,) = (i for i, pointer in enumerate(dimensions) if pointer == Tag("ImagePositionPatient"))
    for number, frame in enumerate(result.PerFrameFunctionalGroupsSequence, start=1):
        indices = frame.FrameContentSequence[0].DimensionIndexValues
        values = [int(each) for each in indices] if isinstance(indices, Sequence) else [int(indices)]
        values[dimension] = number
        frame.FrameContentSequence[0].DimensionIndexValues = values
