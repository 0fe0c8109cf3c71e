"""A series through a server: what goes out, what comes back, and what becomes of trouble."""

from __future__ import annotations

import json
from dataclasses import replace

import grpc
import numpy as np
import pydicom
import pytest
from equipoise_client import Retry, Route, ServerUnavailable, UncertaintyClient
from equipoise_client.errors import InvalidInput
from equipoise_client.images.rejections import UnsuitableImage
from equipoise_clinic.dicom.result_source import Predecessor
from equipoise_clinic.dicom.rules import Rule, Rules
from equipoise_clinic.dicom.study import PartialAnswer, analyse, outputs, select
from msgspec import structs

from ...support.phantom import NAME, PATIENT, Phantom, phantom


@pytest.fixture
def source() -> Phantom:
    return phantom()


@pytest.fixture
def client(triton, head):
    triton.contracts["head"] = head
    with UncertaintyClient(triton.url, retry=Retry(attempts=1), timeout=20) as client:
        yield client


def chosen(source: Phantom):
    (found,) = select(source.datasets, Rules.for_model("head"))
    return found


def test_only_pixels_and_spacing_leave(triton, client, source) -> None:
    """Nothing of patient or study is on the wire, and the volume is turned to the model's orientation."""
    analyse(chosen(source), client)
    (request,) = triton.requests
    assert sorted(tensor.name for tensor in request.inputs) == ["image", "spacing"]
    wire = request.SerializeToString()
    for dataset in source.datasets:
        for planted in (NAME, PATIENT, dataset.StudyInstanceUID, dataset.SOPInstanceUID, dataset.StudyDate):
            assert str(planted).encode() not in wire
    (image,) = triton.tensors
    assert sorted(image["image"].shape[2:]) == sorted(source.values.shape)
    assert sorted(image["image"].ravel()) == sorted(source.values.ravel())


def test_a_rule_names_the_attribute_that_is_the_group(triton, client, source) -> None:
    """It goes with the pixels, and nothing else does; images that contradict each other have none."""
    for dataset in source.datasets:
        dataset.ManufacturerModelName = "Model 7 "
    series = chosen(source)
    by_model = replace(series, rule=structs.replace(series.rule, group="ManufacturerModelName"))
    analyse(by_model, client)
    by_model.series.datasets[0].ManufacturerModelName = "Model 8"
    analyse(by_model, client)
    analyse(series, client)
    assert [request.parameters["group"].string_param for request in triton.requests] == ["Model 7", "", ""]
    assert "group" in triton.requests[0].parameters and PATIENT.encode() not in triton.requests[0].SerializeToString()


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "AccessionNumber", "model"])
def test_no_attribute_that_tells_who_the_patient_is_may_be_a_group(keyword) -> None:
    with pytest.raises(InvalidInput, match="expected one of Manufacturer"):
        Rule("head", group=keyword)


def test_what_comes_back(client, source, head) -> None:
    """Four objects, the decision, and a picture of the slice with most uncertainty."""
    found = analyse(chosen(source), client)
    assert outputs(found.objects) == ["seg", "epistemic", "aleatoric", "sr"]
    assert (found.contract.name, found.model_digest) == ("head", head.model_digest)
    assert found.prediction.route is Route.ACCEPT
    assert found.prediction.volume.total.mean == 4.0 and found.prediction.case_score == 0.125
    assert {each.StudyInstanceUID for each in found.objects} == {source.datasets[0].StudyInstanceUID}
    assert found.series_uid == source.datasets[0].SeriesInstanceUID
    # The server takes the bright half for the last class, and is unsure of it.
    bright = source.values > source.values.mean()
    index = int(np.argmax(bright.sum(axis=(1, 2))))
    picture = found.most_uncertain
    assert picture.index == index and picture.spacing == (1.3, 0.8)
    np.testing.assert_array_equal(picture.mask, 2 * bright[index])
    np.testing.assert_allclose(picture.uncertainty, 0.05 + 0.4 * bright[index], rtol=1e-6)
    assert picture.grey.shape == bright[index].shape and picture.limit == pytest.approx(np.log(3))
    by_value = picture.grey.ravel()[np.argsort(source.values[index], axis=None)]
    assert (np.diff(by_value.astype(int)) >= 0).all() and by_value[0] < by_value[-1]
    place = np.array(
        next(d for d in source.datasets if d.SOPInstanceUID == picture.instance_uid).ImagePositionPatient, float
    )
    np.testing.assert_allclose(place, source.points[index, 0, 0])


def test_a_model_that_is_replaced_meanwhile_gives_no_results_in_the_name_of_the_one_before(
    triton, client, source, head
) -> None:
    """The next time it is asked as the new one wants it."""
    analyse(chosen(source), client)
    triton.contracts["head"] = replace(head, classes=(head.classes[0], *reversed(head.classes[1:])))
    with pytest.raises(ServerUnavailable, match="was replaced"):
        analyse(chosen(source), client)
    found = analyse(chosen(source), client)
    assert (found.model_digest, found.prediction.route) == (triton.contracts["head"].model_digest, Route.ACCEPT)


@pytest.mark.parametrize("code", ["sampler_failed", "first_pass_failed"])
def test_an_answer_that_lacks_samples_is_for_review_or_asked_for_again(triton, client, source, code) -> None:
    """Whatever route it has: the caller says which. The server is there, so it is not unavailable."""
    record = {"problems": [{"code": code}], "samples": 3, "samples_planned": 5, "route": "accept"}
    triton.overrides["record"] = np.full((1, 1), json.dumps(record).encode(), object)
    found = analyse(chosen(source), client)
    assert found.prediction.route is Route.REVIEW and "not all samples" in found.prediction.reason and found.objects
    with pytest.raises(PartialAnswer) as raised:
        analyse(chosen(source), client, whole=True)
    assert not isinstance(raised.value, ServerUnavailable)


def test_a_repeat_is_the_same(client, source) -> None:
    first, second = (analyse(chosen(source), client) for _ in range(2))
    assert [each.SOPInstanceUID for each in first.objects] == [each.SOPInstanceUID for each in second.objects]


def test_a_server_that_is_away_is_no_verdict(triton, client, source) -> None:
    """It passes through: another time it works."""
    triton.failures = [(grpc.StatusCode.UNAVAILABLE, "away")]
    with pytest.raises(ServerUnavailable):
        analyse(chosen(source), client)
    assert analyse(chosen(source), client).objects


def test_an_image_that_the_server_refuses_is_rejected(triton, client, source) -> None:
    triton.failures = [(grpc.StatusCode.INVALID_ARGUMENT, "too flat")]
    with pytest.raises(UnsuitableImage, match="too flat"):
        analyse(chosen(source), client)


def test_an_image_that_the_model_cannot_take_is_rejected(triton, client, source, chest) -> None:
    triton.contracts["head"] = replace(chest, name="head")
    with pytest.raises(UnsuitableImage, match="3 axes"):
        analyse(chosen(source), client)


def test_another_modality_is_not_accepted(client, source) -> None:
    """Results are made, but the report says that the model must not be asked about it."""
    for dataset in source.datasets:
        dataset.Modality = "CT"
    found = analyse(chosen(source), client)
    assert found.prediction.route is Route.REJECT and "modality CT" in found.prediction.reason


def test_results_that_are_stored_are_the_same_when_read(tmp_path, client, source) -> None:
    for number, dataset in enumerate(analyse(chosen(source), client).objects):
        file = tmp_path / f"{number}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        assert pydicom.dcmread(file).SOPInstanceUID == dataset.SOPInstanceUID


def test_a_series_that_is_known_to_be_incomplete_is_never_accepted(client, source) -> None:
    """Neither by its own headers nor by what its source knows; and the report says so."""
    whole = analyse(chosen(source), client)
    found = analyse(chosen(source), client, missing=("1 of its images came damaged or could not be taken",))
    assert whole.prediction.route is Route.ACCEPT and found.prediction.route is Route.REVIEW
    assert "the series is incomplete: 1 of its images came damaged" in found.prediction.reason
    assert not {each.SOPInstanceUID for each in whole.objects} & {each.SOPInstanceUID for each in found.objects}
    for dataset in source.datasets:
        dataset.ImagesInAcquisition = 40
    stated = analyse(chosen(source), client)
    assert stated.prediction.route is Route.REVIEW and "9 of 40 images" in stated.prediction.reason
    said = [str(element.value) for element in stated.objects[-1].iterall() if element.VR == "UT"]
    assert any("9 of 40 images" in text for text in said)


def test_a_closed_model_is_never_accepted(client, source) -> None:
    """The report says so, and is another one."""
    whole = analyse(chosen(source), client)
    asked = []

    def closed(model):
        asked.append(model)
        return "too many were wrong"

    found = analyse(chosen(source), client, closed=closed)
    assert whole.prediction.route is Route.ACCEPT and found.prediction.route is Route.REVIEW
    assert asked == ["head"] and "accept is closed: too many were wrong" in found.prediction.reason
    assert not {each.SOPInstanceUID for each in whole.objects} & {each.SOPInstanceUID for each in found.objects}


def test_a_new_version_names_the_report_that_it_replaces(client, source) -> None:
    """Predecessor Documents Sequence, and in words that the first was incomplete."""
    first = analyse(chosen(source), client)
    report = first.objects[-1]
    earlier = Predecessor(str(report.SeriesInstanceUID), str(report.SOPInstanceUID))
    second = analyse(chosen(source), client, predecessor=earlier)
    (study,) = second.objects[-1].PredecessorDocumentsSequence
    ((named,),) = [series.ReferencedSOPSequence for series in study.ReferencedSeriesSequence]
    assert named.ReferencedSOPInstanceUID == report.SOPInstanceUID
    assert second.prediction.route is Route.ACCEPT and "incomplete" in second.prediction.reason
    assert not {each.SOPInstanceUID for each in first.objects} & {each.SOPInstanceUID for each in second.objects}


ODD = [
    ("PatientBirthDate", "DA", "19500000"), ("PatientBirthDate", "DA", "ANONYMIZED"), ("StudyDate", "DA", "2020-01-21"),
    ("SeriesDate", "DA", "20201399"), ("StudyTime", "TM", "01:06:43"), ("StudyTime", "TM", "010643.1234567"),
    ("PatientAge", "AS", "45"), ("SliceThickness", "DS", ""), ("AcquisitionTime", "TM", "99"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "vr", "value"), ODD, ids=[f"{name} {value}" for name, _, value in ODD])
def test_odd_attributes_cost_no_decision(tmp_path, client, source, name, vr, value) -> None:
    """They are corrected or emptied in the results, and named."""
    for dataset in source.datasets:
        dataset.add(pydicom.DataElement(name, vr, value, validation_mode=0))
    found = analyse(chosen(source), client)
    assert found.prediction.route is Route.ACCEPT and len(found.objects) == 4
    assert found.cleaned == ((name,) if value else ())
    for number, each in enumerate(found.objects):
        each.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        assert str(each.get(name, "")) != value or not value


def test_noise_in_the_orientation_costs_no_decision(client, source) -> None:
    generator = np.random.default_rng(5)
    for dataset in source.datasets:
        noise = generator.normal(0, 1e-7, 6)
        cosines = np.array(dataset.ImageOrientationPatient, float) + noise
        dataset.ImageOrientationPatient = [f"{cosine:.12f}" for cosine in cosines]
        dataset.PixelSpacing = [f"{float(mm) + 1e-7 * generator.normal():.10f}" for mm in dataset.PixelSpacing]
    assert len(analyse(chosen(source), client).objects) == 4


def test_where_no_objects_can_be_made_the_decision_is_kept_for_review(client, source, monkeypatch) -> None:
    from equipoise_clinic.dicom import report

    def fails(_):
        raise ValueError("a patient's name")

    monkeypatch.setattr(report, "objects_of", fails)
    found = analyse(chosen(source), client)
    assert found.objects == () and found.prediction.route is Route.REVIEW
    assert found.prediction.reason.endswith("no result objects can be made for this series (ValueError)")
    assert found.prediction.case_score == 0.125 and found.most_uncertain.grey.any()
