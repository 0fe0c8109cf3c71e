"""Coded concepts: the standard's where there are any, private ones for what nobody has coded yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydicom.sr.codedict import codes as known
from pydicom.sr.coding import Code

SCHEME = "99EQUIPOISE"

CASE_SCORE = Code("case_score", SCHEME, "Case score (higher is less certain)")
ROUTE = Code("route", SCHEME, "Route")
ROUTES: Mapping[str, Code] = MappingProxyType(
    {
        "accept": Code("accept", SCHEME, "Accept: may go on automatically"),
        "review": Code("review", SCHEME, "Review: an expert has to look at it"),
        "reject": Code("reject", SCHEME, "Reject: the input is unsuitable"),
    }
)
REASON = Code("reason", SCHEME, "Reason of the route")
INTENDED_USE = Code("intended_use", SCHEME, "Intended use")
PROBABILITY = Code("probability", SCHEME, "Probability")
SAMPLED_PROBABILITY = Code("sampled_prob", SCHEME, "Probability over samples, before recalibration")
EPISTEMIC = Code("epistemic", SCHEME, "Epistemic uncertainty (mutual information, nats)")
ALEATORIC = Code("aleatoric", SCHEME, "Aleatoric uncertainty (expected entropy, nats)")
WHOLE_CASE = Code("whole_case", SCHEME, "The whole case")

VOLUME = Code("118565006", "SCT", "Volume")
MEAN = Code("373098007", "SCT", "Mean")
STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
BODY_STRUCTURE = Code("123037004", "SCT", "Body structure")
MILLILITRE = Code("mL", "UCUM", "milliliter")
NO_UNITS = Code("1", "UCUM", "no units")
ARTIFICIAL_INTELLIGENCE = Code("123109", "DCM", "Artificial Intelligence")
IMAGING_REPORT = Code("126000", "DCM", "Imaging Measurement Report")

_BODY_PARTS: Mapping[str, Code] = MappingProxyType(
    {
        "ABDOMEN": Code("818981001", "SCT", "Abdomen"),
        "BRAIN": Code("12738006", "SCT", "Brain"),
        "BREAST": Code("76752008", "SCT", "Breast"),
        "CHEST": Code("816094009", "SCT", "Chest"),
        "HEAD": Code("69536005", "SCT", "Head"),
        "HEART": Code("80891009", "SCT", "Heart"),
        "KIDNEY": Code("64033007", "SCT", "Kidney"),
        "LIVER": Code("10200004", "SCT", "Liver"),
        "LUNG": Code("39607008", "SCT", "Lung"),
        "NECK": Code("45048000", "SCT", "Neck"),
        "PANCREAS": Code("15776009", "SCT", "Pancreas"),
        "PELVIS": Code("816092008", "SCT", "Pelvis"),
        "PROSTATE": Code("41216001", "SCT", "Prostate"),
        "SPLEEN": Code("78961009", "SCT", "Spleen"),
    }
)
_PROCEDURES: Mapping[str, Code] = MappingProxyType(
    {
        "CT": Code("77477000", "SCT", "Computed tomography"),
        "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
        "CR": Code("168537006", "SCT", "Plain radiography"),
        "DX": Code("168537006", "SCT", "Plain radiography"),
    }
)


def region(body_part: str) -> Code:
    """Anatomic region of a Body Part Examined; the most general one where it is not known."""
    return _BODY_PARTS.get(body_part.strip().upper(), BODY_STRUCTURE)


def procedure(modality: str) -> Code:
    """The imaging procedure that a modality stands for."""
    return _PROCEDURES.get(modality, Code("363679005", "SCT", "Imaging"))


def class_code(name: str) -> Code:
    """A class of a model, in the private scheme: a code value has at most 16 characters."""
    return Code(f"class_{hashlib.sha256(name.encode()).hexdigest()[:10]}", SCHEME, name[:64])


def number_code(name: str) -> Code:
    """A number that a regression answers, likewise."""
    return Code(f"number_{hashlib.sha256(name.encode()).hexdigest()[:9]}", SCHEME, name[:64])


class UnknownUnit(ValueError):
    """A unit that is no UCUM code known here: a report must not state a number in it."""


_MORE_UNITS = ("g", "kg", "L", "mL", "m", "m2", "kg/m2", "g/cm3", "mL/min", "mmol/L", "mg/dL", "{score}")
"""UCUM's, beside those that DICOM's own value sets use."""


def unit(stated: str) -> Code:
    """The UCUM code that is spelled so (`mo`, `%`). Raises UnknownUnit."""
    standard = (getattr(known.UCUM, keyword) for keyword in dir(known.UCUM))
    coded = {code.value: code for code in standard if isinstance(code, Code)}
    coded |= {each: Code(each, "UCUM", each) for each in _MORE_UNITS}
    if stated not in coded:
        raise UnknownUnit(f"{stated} is no unit of UCUM that is known here; export the model with one, such as mo or %")
    return coded[stated]


def scheme() -> Any:
    """Says in an object what the private codes are."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(SCHEME, name="Equipoise uncertainty", responsible_organization="Equipoise")
