"""What a header says against what a model was made for: silence forbids to accept, contradiction rejects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from equipoise_client import Prediction, Route
from equipoise_client.images import Kind, SourceImage, fit
from equipoise_client.images.header import header_of, judged
from equipoise_core.contract import Contract, ContractError, Subject, parse_contract
from pydicom.dataset import Dataset

CHILD = Subject(body_parts=("CHEST", "THORAX"), views=("PA", "AP"), ages=(1.0, 5.0))
FIT = {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA", "PatientAge": "004Y"}


@pytest.fixture
def children(chest: Contract) -> Contract:
    return replace(chest, subject=CHILD)


def header(**tags: Any) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def coded(value: str, meaning: str) -> list[Dataset]:
    return [header(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)]


def route_of(contract: Contract, **tags: Any) -> Route:
    """Of an answer that the server accepted."""
    image = SourceImage(np.ones((1, 28, 28), np.float32), Kind.DICOM, None, None, header_of(header(**tags)))
    answer = Prediction(contract.name, Route.ACCEPT, "fine", 0.1, 20, None, {}, {})
    return fit(image, contract).judge(answer).route


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"BodyPartExamined": "Thorax "},
        {"BodyPartExamined": "", "AnatomicRegionSequence": coded("51185008", "Brustkorb")},
        {"BodyPartExamined": "", "AnatomicRegionSequence": coded("X", "Entire Chest")},
        {"ViewPosition": "", "ViewCodeSequence": coded("272479007", "postero-anterior")},
        {"PatientOrientation": ["L", "F"]},
        {"PatientOrientation": ["L", "FR"]},
        {"PatientAge": "059M"},
        {"PatientAge": "", "PatientBirthDate": "20190301", "StudyDate": "20210401"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"ImageType": ["DERIVED", "PRIMARY", "POST_PROCESSED"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "T1", "NONE"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "T2_STAR", "NONE"]},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"},
    ],
)
def test_what_fits_is_accepted(children: Contract, tags: dict[str, Any]) -> None:
    assert route_of(children, **{**FIT, **tags}) is Route.ACCEPT


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": ""},
        {"BodyPartExamined": ""},
        {"BodyPartExamined": "UNKNOWN"},
        {"ViewPosition": ""},
        {"ViewPosition": "XY"},
        {"PatientAge": ""},
        {"PatientAge": "4", "PatientBirthDate": "00000000", "StudyDate": "20200101"},
        {"PatientBirthDate": "19500101", "StudyDate": "20200101"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"BurnedInAnnotation": "YES"},
        {"PresentationIntentType": "FOR PROCESSING"},
        {"QualityControlImage": "YES"},
    ],
)
def test_what_is_not_known_is_for_review(children: Contract, tags: dict[str, Any]) -> None:
    assert route_of(children, **{**FIT, **tags}) is Route.REVIEW


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": "MG"},
        {"BodyPartExamined": "HAND"},
        {"BodyPartExamined": "C-SPINE"},
        {"BodyPartExamined": "", "AnatomicRegionSequence": coded("85562004", "Main")},
        {"AnatomicRegionSequence": coded("85562004", "Hand")},
        {"ViewPosition": "LL"},
        {"ViewPosition": "LATERAL"},
        {"ViewPosition": "", "ViewCodeSequence": coded("399173006", "links seitlich")},
        {"ViewCodeSequence": coded("399067008", "lateral projection")},
        {"PatientOrientation": ["A", "F"]},
        {"PatientOrientation": ["P", "F"]},
        {"PatientOrientation": ["L", "H"]},
        {"PatientOrientation": ["R", "F"]},
        {"PatientOrientation": ["F", "L"]},
        {"PatientAge": "045Y"},
        {"PatientAge": "011M"},
        {"PatientAge": "006Y"},
        {"PatientAge": "", "PatientBirthDate": "19500101", "StudyDate": "20200101"},
        {"PhotometricInterpretation": "MONOCHROME2", "PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
        {"PhotometricInterpretation": "MONOCHROME2", "PixelIntensityRelationshipSign": 1},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]},
        {"ImageType": ["DERIVED", "PRIMARY", "PHASE MAP"]},
        {"ImageType": ["DERIVED", "PRIMARY", "I_FFE", "I"]},
        {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
        {"ImageType": "LOCALIZER"},
        {"ImageType": ["DERIVED", "PRIMARY", "T1_MAP"]},
        {"ComplexImageComponent": "PHASE"},
        {"VolumetricProperties": "DISTORTED"},
    ],
)
def test_what_contradicts_is_rejected(children: Contract, tags: dict[str, Any]) -> None:
    assert route_of(children, **{**FIT, **tags}) is Route.REJECT


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_anatomy_of_frames_counts(children: Contract, groups: str) -> None:
    """An enhanced object states its region there, and nowhere else."""

    def route(*regions: list[Dataset], part: str = "") -> Route:
        frames = [header(FrameAnatomySequence=[header(AnatomicRegionSequence=region)]) for region in regions]
        return route_of(children, **{**FIT, "BodyPartExamined": part, groups: frames})

    chest, knee = coded("51185008", "Chest"), coded("72696002", "Knee")
    assert route(chest) is Route.ACCEPT
    assert route(knee) is Route.REJECT
    assert route(chest, knee) is Route.REJECT
    assert route(knee, part="CHEST") is Route.REJECT
    assert route(chest, part="UNKNOWN") is Route.ACCEPT


def test_frame_types_of_enhanced_objects_count(children: Contract) -> None:
    groups = [header(MRImageFrameTypeSequence=[header(FrameType=["ORIGINAL", "PRIMARY", kind])]) for kind in "MP"]
    assert route_of(children, **FIT, PerFrameFunctionalGroupsSequence=groups) is Route.REJECT


def test_a_file_without_a_header_is_at_most_for_review(children: Contract, chest: Contract) -> None:
    """A picture says nothing of age, region and view; a contract that asks for none of them takes it."""
    assert judged(None, chest) == ([], [])
    doubts, contradictions = judged(None, children)
    assert len(doubts) == 3 and not contradictions


def test_an_optional_statement_may_be_missing_but_not_contradict(brain: Contract) -> None:
    contract = replace(brain, subject=Subject(body_parts=("BRAIN", "HEAD"), optional=("body_part",)))
    for part, expected in (("", ([], [])), ("BRAIN", ([], [])), ("SONSTIGES", (1, 0)), ("KNEE", (0, 1))):
        found = judged(header_of(header(Modality="MR", BodyPartExamined=part)), contract)
        assert found == expected or tuple(map(len, found)) == expected


def test_reasons_do_not_quote_the_patient(children: Contract) -> None:
    tags = {**FIT, "PatientAge": "045Y", "BodyPartExamined": "MUELLER", "ViewPosition": "SMITH", "Modality": "S3CRET"}
    text = str(judged(header_of(header(**tags)), children))
    assert not any(word in text for word in ("45", "MUELLER", "SMITH", "S3CRET"))


def test_the_contract_states_its_subject_and_old_ones_none(chest: Contract, children: Contract) -> None:
    """An old contract's digests stay; a subject is part of the model, not of the graph."""
    assert "subject" not in chest.document()
    assert children.digest == chest.digest and children.model_digest != chest.model_digest
    again = parse_contract({**children.document(), "digest": children.digest})
    assert again == children and again.model_digest == children.model_digest
    assert Subject(ages=(1, 5)) == Subject(ages=(1.0, 5.0))
    for wrong in ({"ages": (5.0, 1.0)}, {"optional": ("weight",)}):
        with pytest.raises(ContractError):
            Subject(**wrong)


CT = {"Modality": "CT", "RescaleIntercept": "-1024", "RescaleSlope": "1"}


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({**CT, "RescaleIntercept": ""}, "Hounsfield"),
        ({**CT, "RescaleType": "US"}, "Hounsfield"),
        ({"Modality": "DX", "PixelAspectRatio": [1, 2]}, "not square"),
        ({"Modality": "MR", "ContentQualification": "SERVICE"}, "for service"),
        ({"Modality": "MR", "PatientSpeciesDescription": "Canis lupus familiaris"}, "not of a human"),
        ({"Modality": "MR", "QualityControlSubject": "YES"}, "phantom"),
    ],
)
def test_what_speaks_against_any_model(tags: dict[str, Any], word: str) -> None:
    found = header_of(header(**tags))
    assert word in "; ".join((*found.doubts, *found.contradictions))


def test_what_speaks_for_an_image_is_no_doubt() -> None:
    group = header(PixelValueTransformationSequence=[header(RescaleIntercept="0", RescaleSlope="1", RescaleType="HU")])
    for tags in (
        CT,
        {**CT, "RescaleType": "HU", "PixelAspectRatio": [1, 1], "PatientSpeciesDescription": "Homo sapiens"},
        {"Modality": "CT", "SharedFunctionalGroupsSequence": [group]},
        {"Modality": "CT", "PerFrameFunctionalGroupsSequence": [group]},
        {"Modality": "MR"},
    ):
        found = header_of(header(**tags))
        assert found.doubts == found.contradictions == ()
