"""What a DICOM header says that its image shows, and whether that is what a contract's images showed.

What is not stated forbids to accept an answer; what contradicts the contract, or itself, rejects it.

References: DICOM PS3.3 C.7.6.1.1.2 (Image Type), C.7.6.1.1.1 (Patient Orientation), C.8.7.10 and C.8.11.5 (View
Position), C.11.6 (Presentation LUT Shape); PS3.16 Annex L (Body Part Examined).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from equipoise_core.contract import Contract

_CODED_PARTS = {
    "51185008": "CHEST", "T-D3000": "CHEST", "12738006": "BRAIN", "T-A0100": "BRAIN", "69536005": "HEAD",
    "T-D1100": "HEAD", "89546000": "SKULL", "T-11100": "SKULL", "113345001": "ABDOMEN",
    "T-D4000": "ABDOMEN", "416775004": "CHESTABDPELVIS", "416949008": "ABDOMENPELVIS",
    "416550000": "CHESTABDOMEN", "122494005": "CSPINE", "T-11501": "CSPINE", "72696002": "KNEE", "T-D9200": "KNEE",
    "85562004": "HAND", "T-D8700": "HAND", "12921003": "PELVIS", "T-D6000": "PELVIS", "45048000": "NECK",
    "T-D1600": "NECK",
}  # fmt: skip
"""Code Values of Anatomic Region Sequence, SNOMED CT and SRT, as Body Part Examined says them."""

_REGIONS = (
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ANUS AORTA AORTICARCH ARM AXILLA BACK BILEDUCT BLADDER BRAIN BREAST "
    "BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDOMENPELVIS "
    "CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW "
    "ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER GLUTEUS HAND HEAD HEADNECK HEART "
    "HIP HIPPOCAMPUS HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LOWERLEG LSPINE LSSPINE "
    "LUMEN LUNG MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NOSE OPTICCANAL ORBIT OVARY "
    "PANCREAS PARATHYROID PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RECTUM RIB SCALP SCAPULA SCLERA SCROTUM "
    "SELLA SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THORAX "
    "THUMB THYMUS THYROID TLSPINE TMJ TOE TONGUE TRACHEA TSPINE UPPERARM URETER URETHRA UTERUS VAGINA VULVA "
    "WHOLEBODY WRIST ZYGOMA "
)
_PARTS = frozenset(_REGIONS.split())
"""Terms that say a region, letters only: another one than the contract's contradicts it, a word that is none of these
says nothing."""

_CODED_VIEWS = {
    "272479007": "PA", "R-40888": "PA", "R-10214": "PA", "399348003": "AP", "R-10206": "AP", "399173006": "LL",
    "R-10236": "LL", "399198007": "RL", "R-10232": "RL", "399067008": "LAT", "R-102CD": "LAT", "399260004": "ML",
    "399352003": "LM", "R-10228": "LM", "399368009": "MLO", "399162004": "CC", "399061009": "AXIAL",
    "399182000": "OBL", "399135007": "LAO", "399356000": "RAO", "399006002": "LPO", "399038007": "RPO",
}  # fmt: skip
"""Code Values of View Code Sequence (CID 4010), as View Position says them."""

_VIEWS = frozenset(("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL", "OBL", "OBLIQUE", "CC", "MLO",
                    "ML", "LM", "TAN", "AXIAL", "DECUB", "LAO", "RAO", "LPO", "RPO"))  # fmt: skip
_FRONTAL, _LATERAL = frozenset(("PA", "AP")), frozenset(("LL", "RL", "LAT", "LATERAL"))

_KINDS = {
    "LOCALIZER": "a localizer", "SCOUT": "a localizer", "TOPOGRAM": "a localizer", "MOSAIC": "a mosaic of slices",
    "P": "a phase image", "PHASE": "a phase image", "PHASE MAP": "a phase image", "R": "a real part",
    "REAL": "a real part", "I": "an imaginary part", "IMAGINARY": "an imaginary part", "ADC": "a diffusion map",
    "FA": "a diffusion map", "TRACEW": "a diffusion map", "T1 MAP": "a parameter map", "T2 MAP": "a parameter map",
    "T2_STAR MAP": "a parameter map", "R2 MAP": "a parameter map", "VELOCITY": "a velocity map",
    "VELOCITY MAP": "a velocity map", "PERFUSION": "a perfusion map", "MIP": "a projection", "MAX_IP": "a projection",
    "MINIP": "a projection", "MIN_IP": "a projection", "PROJECTION IMAGE": "a projection",
    "SCREEN SAVE": "a picture of a screen", "SCREENSAVE": "a picture of a screen", "REPORT": "a report",
    "CSA REPORT": "a report", "SUBTRACTION": "a difference of images", "SUB": "a difference of images",
}  # fmt: skip
"""Values of Image Type (third and later) and Frame Type that say: this is not what a scanner shows of a region."""
_PART_OF_VENDOR = re.compile(
    r"(?P<kind>PHASE|P|R|I)_[A-Z]+|(?P<map>(?:T1|T2|T2_STAR|R2)[ _]MAP|(?:RCBV|RCBF|MTT|TTP|CBV|CBF)(?:_.*)?)"
)

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}


@dataclass(frozen=True)
class Header:
    """Of one image or volume. None: not stated.

    Attributes:
        modality: Modality (0008,0060).
        body_part: Body Part Examined or Anatomic Region, letters only; "?" where it is no term for a region.
        view: View Position or View Code; "?" likewise.
        rows, columns: first letters of Patient Orientation: where a row and a column of a projection lead to.
        laterality: Image Laterality, or Laterality.
        age: years, from Patient's Age, else from the dates of birth and study.
        doubts, contradictions: about the image, whatever the model.
    """

    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    rows: str | None = None
    columns: str | None = None
    laterality: str | None = None
    age: float | None = field(default=None, repr=False)  # a patient's: not for messages
    doubts: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


def header_of(dataset: Any) -> Header:
    """What one dataset says; messages quote only the standard's own words."""
    part, parts_differ = _one_of(dataset, "BodyPartExamined", "AnatomicRegionSequence", _CODED_PARTS, _part)
    view, views_differ = _one_of(dataset, "ViewPosition", "ViewCodeSequence", _CODED_VIEWS, _view)
    orientation = dataset.get("PatientOrientation") or []
    rows, columns = (_text(each)[:1] or None for each in orientation) if _pair(orientation) else (None, None)
    age, doubt = _age(dataset)
    contradictions = [f"Image Type says that it is {kind}" for kind in sorted({*_kinds(dataset)})]
    contradictions += [f"{what} contradict each other" for what in (parts_differ, views_differ) if what]
    frontal, lateral = (view or "") in _FRONTAL, (view or "") in _LATERAL
    if (frontal and rows in ("A", "P")) or (lateral and rows in ("L", "R")):
        contradictions.append("View Position and Patient Orientation contradict each other")
    contradictions += _polarity(dataset)
    contradictions += _subject(dataset)
    regions, sides = _anatomy_of_frames(dataset)
    known = {region for region in (*regions, part) if region in _PARTS}
    if len(known) > 1 and not known <= _SAME:
        contradictions.append("its anatomic regions contradict each other")
    part = part if part in _PARTS else min(known, default=part)
    laterality = _text(dataset.get("ImageLaterality")) or _text(dataset.get("Laterality")) or None
    if len(sides) > 1 or (laterality and sides and {laterality} != sides):
        contradictions.append("its lateralities contradict each other")
    return Header(
        _text(dataset.get("Modality")) or None,
        part,
        view,
        rows,
        columns,
        laterality or next(iter(sides), None),
        age,
        (*_doubts(dataset), *([doubt] if doubt else [])),
        tuple(contradictions),
    )


def header_of_all(datasets: Sequence[Any]) -> Header:
    """Of slices that were taken as one: what the first says, and whatever speaks against any of them."""
    each = [header_of(dataset) for dataset in datasets]
    doubts, against = (
        tuple(dict.fromkeys(text for header in each for text in getattr(header, name)))
        for name in ("doubts", "contradictions")
    )
    return replace(each[0], doubts=doubts, contradictions=against)


def judged(header: Header | None, contract: Contract) -> tuple[list[str], list[str]]:
    """Doubts and contradictions: what a header says against what the contract was made for.

    A file without a header leaves open all that the contract asks for, but for its modality: only DICOM has one.
    """
    stated = header or Header()
    doubts, contradictions = list(stated.doubts), list(stated.contradictions)
    name, subject = contract.name, contract.subject

    def compare(what: str, given: str | None, expected: tuple[str, ...], known: bool, optional: bool = False) -> None:
        if not expected or given in expected:
            return
        wanted = f"{name} expects {' or '.join(expected)}"
        if given is None:
            if not optional:
                doubts.append(f"the {what} is not stated, {wanted}")
        elif known:
            contradictions.append(f"{what} {given} given, {wanted}")
        else:
            doubts.append(f"the {what} is given by a word that DICOM does not define, {wanted}")

    if header is not None:
        modality = stated.modality
        compare("modality", modality, contract.modalities, re.fullmatch("[A-Z]{2,16}", modality or "") is not None)
    if subject is None:
        return doubts, contradictions
    optional = subject.optional
    expected = tuple(map(_part, subject.body_parts))
    compare("body part", stated.body_part, expected, stated.body_part in _PARTS, "body_part" in optional)
    compare("view", stated.view, subject.views, stated.view in _VIEWS, "view" in optional)
    known = stated.laterality in ("L", "R", "B", "U")
    compare("laterality", stated.laterality, subject.lateralities, known, "laterality" in optional)
    if subject.views and set(subject.views) <= _FRONTAL:
        if stated.columns not in (None, "F") or stated.rows not in (None, "L", "R"):
            contradictions.append(f"Patient Orientation is not that of an upright frontal view, as {name} expects")
        elif stated.rows == "R":
            contradictions.append(f"Patient Orientation says that left and right are exchanged, {name} expects L\\F")
    if subject.ages is not None:
        low, high = subject.ages
        if stated.age is None and "age" not in optional:
            doubts.append(f"the patient's age is not stated, {name} was made for {low:g} to {high:g} years")
        elif stated.age is not None and not low <= stated.age < high + 1:  # completed years
            contradictions.append(f"the patient's age is outside {low:g} to {high:g} years, what {name} was made for")
    return doubts, contradictions


def _text(value: Any) -> str:
    return str(value if value is not None else "").strip().upper()


def _pair(value: Any) -> bool:
    return not isinstance(value, str) and len(value) == 2


def _part(value: str) -> str:
    return re.sub("[^A-Z]", "", value.upper())


def _view(value: str) -> str:
    return value.upper().strip()


def _one_of(dataset: Any, name: str, coded: str, codes: dict[str, str], spelt: Any) -> tuple[str | None, str]:
    """What an attribute and its coded twin say; and both their names where they contradict each other."""
    terms = _PARTS if spelt is _part else _VIEWS
    word = spelt(_text(dataset.get(name))) if _text(dataset.get(name)) else None
    items = dataset.get(coded) or []
    code = None
    if len(items):
        value, meaning = (
            _text(items[0].get("CodeValue")),
            spelt(_text(items[0].get("CodeMeaning")).removeprefix("ENTIRE ")),
        )
        code = spelt(codes[value]) if value in codes else meaning
    given = word if word in terms or code is None else code
    if word in terms and code in terms and word != code and not {word, code} <= _SAME:
        return given, f"{name} and {coded}"
    return (given if given in terms else "?") if given is not None else None, ""


def _anatomy_of_frames(dataset: Any) -> tuple[set[str], set[str]]:
    """Regions, and sides, that the functional groups of a multi-frame image state (PS3.3 C.7.6.16.2.8)."""
    regions, sides = set(), set()
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]
    groups += [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    for item in (each for group in groups for each in group.get("FrameAnatomySequence") or []):
        region, _ = _one_of(item, "BodyPartExamined", "AnatomicRegionSequence", _CODED_PARTS, _part)
        regions |= {region} if region else set()
        sides |= {_text(item.get("FrameLaterality"))} - {""}
    return regions, sides


_SAME = frozenset(("HEAD", "BRAIN", "SKULL", "HIPPOCAMPUS")) | _LATERAL
"""Terms of which two do not contradict each other in one header."""


def _kinds(dataset: Any) -> Iterator[str]:
    """What Image Type, Frame Type and their kin say against a plain image."""
    types = [dataset.get("ImageType"), dataset.get("FrameType")]
    complex_ = [dataset.get("ComplexImageComponent")]
    properties = [dataset.get("VolumetricProperties")]
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]
    groups += [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    for group in groups:
        for keyword in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "XRay3DFrameTypeSequence"):
            for item in group.get(keyword) or []:
                types.append(item.get("FrameType"))
                complex_.append(item.get("ComplexImageComponent"))
                properties.append(item.get("VolumetricProperties"))
    for values in types:
        for value in [] if values is None else [values] if isinstance(values, str) else list(values)[2:]:
            word = _text(value)
            found = _PART_OF_VENDOR.fullmatch(word)
            if word in _KINDS:
                yield _KINDS[word]
            elif found:
                yield _KINDS[found["kind"]] if found["kind"] else "a parameter map"
    for value in complex_:
        if _text(value) in ("PHASE", "REAL", "IMAGINARY"):
            yield _KINDS[_text(value)]
    if any(_text(value) == "DISTORTED" for value in properties):
        yield "a projection"


def _doubts(dataset: Any) -> Iterator[str]:
    if f"{_text(dataset.get('SOPClassUID'))}.".startswith(f"{_SECONDARY_CAPTURE}."):
        yield "it is a secondary capture, not the image as the scanner made it"
    if _text(dataset.get("BurnedInAnnotation")) == "YES":
        yield "text is burned into the image"
    if _text(dataset.get("PresentationIntentType")) == "FOR PROCESSING":
        yield "it is for processing, not for presentation"
    if _text(dataset.get("QualityControlImage")) in ("YES", "BOTH"):
        yield "it is an image for quality control"
    if _text(dataset.get("ContentQualification")) == "SERVICE":
        yield "it was made for service, not for diagnosis"
    aspect = dataset.get("PixelAspectRatio")
    if _pair(aspect or "") and int(aspect[0]) != int(aspect[1]):
        yield "its pixels are not square (Pixel Aspect Ratio)"
    if _text(dataset.get("Modality")) == "CT" and not _calibrated(dataset):
        yield "it does not state how its values become Hounsfield units"


def _calibrated(dataset: Any) -> bool:
    """Whether a CT image says how stored values become Hounsfield units (PS3.3 C.8.2.1.1.2; C.7.6.16.2.9)."""
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]
    groups += [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])][:1]
    places = [item for group in groups for item in group.get("PixelValueTransformationSequence") or ()] or [dataset]
    stated = any(place.get("ModalityLUTSequence") or _text(place.get("RescaleIntercept")) for place in places)
    return stated and all(_text(place.get("RescaleType")) in ("", "HU") for place in places)


def _subject(dataset: Any) -> Iterator[str]:
    if _text(dataset.get("PatientSpeciesDescription")) not in ("", "HUMAN", "HOMO SAPIENS"):
        yield "it is not of a human"
    if _text(dataset.get("QualityControlSubject")) == "YES":
        yield "it shows a phantom (Quality Control Subject)"


def _polarity(dataset: Any) -> Iterator[str]:
    """Photometric Interpretation says what is bright; the attributes that say it again must agree."""
    photometric, shape = _text(dataset.get("PhotometricInterpretation")), _text(dataset.get("PresentationLUTShape"))
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        yield "Photometric Interpretation and Presentation LUT Shape contradict each other"
    sign = dataset.get("PixelIntensityRelationshipSign")
    frontal = _text(dataset.get("Modality")) in ("CR", "DX")
    if frontal and (photometric, _text(sign)) in (("MONOCHROME1", "-1"), ("MONOCHROME2", "1")):
        yield "Photometric Interpretation and Pixel Intensity Relationship Sign contradict each other"


def _age(dataset: Any) -> tuple[float | None, str]:
    """Years, and a doubt where the header states two ages."""
    stated = re.fullmatch(r"(\d{1,3})([DWMY])", _text(dataset.get("PatientAge")))
    age = int(stated[1]) * _DAYS[stated[2]] / _DAYS["Y"] if stated else None
    born = _date(dataset.get("PatientBirthDate"))
    taken = next(filter(None, (_date(dataset.get(name)) for name in _TAKEN)), None)
    lived = (taken - born).days / _DAYS["Y"] if born and taken and born <= taken else None
    if age is None:
        return lived, ""
    if lived is not None and abs(lived - age) > 2:
        return age, "Patient's Age and Patient's Birth Date contradict each other"
    return age, ""


_TAKEN = ("AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate")


def _date(value: Any) -> date | None:
    found = re.fullmatch(r"(\d{4})[.:-]?(\d{2})[.:-]?(\d{2})", _text(value))
    try:
        return date(*(int(part) for part in found.groups())) if found else None  # type: ignore[arg-type]
    except ValueError:
        return None
