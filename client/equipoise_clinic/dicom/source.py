"""What highdicom needs of the source, and what is added to the objects that it makes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from datetime import date
from typing import Any

import numpy as np
from equipoise_client.images.geometry import functional_group
from numpy.typing import NDArray
from pydicom.tag import Tag
from pydicom.valuerep import DS

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


_log = logging.getLogger(__name__)


def headers(series: Series) -> list[Any]:
    """The series' datasets without pixels and private elements, with nothing in them that highdicom would refuse.

    Spacing between slices is that of their positions: highdicom copies the source's own, which may be stale, whatever
    it is told.
    """
    return [_header(dataset, series) for dataset in series.datasets]


def _header(dataset: Any, series: Series) -> Any:
    from highdicom import PixelMeasuresSequence
    from pydicom.dataset import Dataset

    header = Dataset()
    for element in dataset:
        if not element.tag.is_private and element.keyword not in _PIXELS:
            header.add(_cleaned(copy(element)))  # setting an attribute changes the element in place
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


def _cleaned(element: Any) -> Any:
    """The element with its value as the standard writes it, or empty where it is none: a decision must not be lost to
    what an anonymiser left in a date. The log names the attribute, never its value."""
    spell = _SPELLING.get(element.VR)
    if spell is None or not element.value:
        return element
    several = isinstance(element.value, Sequence) and not isinstance(element.value, str)
    given = [str(each).strip() for each in element.value] if several else [str(element.value).strip()]
    spelt = [spell(each) for each in given]
    if spelt != given:
        _log.warning("%s is not as the standard writes it: %s in results", element.keyword or element.tag,
                     "spelt anew" if all(spelt) else "left empty")  # fmt: skip
        element.value = spelt[0] if all(spelt) and len(spelt) == 1 else (spelt if all(spelt) else "")
    return element


def _date(text: str) -> str:
    found = re.fullmatch(r"(\d{4})[-./:]?(\d{2})[-./:]?(\d{2})", text)
    try:
        return date(*(int(part) for part in found.groups())).strftime("%Y%m%d") if found else ""
    except ValueError:
        return ""


def _time(text: str) -> str:
    found = re.fullmatch(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d|60)(?:[.,](\d+))?)?)?", text)
    if found is None:
        return ""
    fraction = f".{found[4][:6]}" if found[4] else ""
    return "".join(part or "" for part in found.groups()[:3]) + fraction


def _moment(text: str) -> str:
    zone = re.search(r"[+-]\d{4}$", text)
    bare = text[: zone.start()] if zone and len(text) > 8 else text
    day, clock = _date(bare[:8]), _time(bare[8:]) if len(bare) > 8 else ""
    return day + clock + (zone[0] if zone and bare is not text else "") if day and (clock or len(bare) <= 8) else ""


def _age(text: str) -> str:
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text.upper())
    return f"{int(found[1]):03}{found[2]}" if found else ""


def _integer(text: str) -> str:
    return text if re.fullmatch(r"[+-]?\d{1,12}", text) and -(2**31) <= int(text) < 2**31 else ""


_SPELLING = {"DA": _date, "TM": _time, "DT": _moment, "AS": _age, "IS": _integer}


def _thickness(dataset: Any) -> float:
    """Slice Thickness, mm; 0 where it is not stated."""
    measures = functional_group(dataset, 0, "PixelMeasuresSequence") or {}
    return float(measures.get("SliceThickness") or dataset.get("SliceThickness") or 0.0)


def finished(result: Any, series: Series, identity: Identity) -> Any:
    """The object with patient and study as in the source, without times of writing and random UIDs."""
    for element in _quoted(series.first):
        result.add(element)
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
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    quoted = Dataset()
    for name in _PATIENT_AND_STUDY:
        if name in source:
            quoted.add(_cleaned(deepcopy(source[name])))
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
