"""A series through a server: what goes out, what comes back, and what becomes of trouble."""

from __future__ import annotations

from dataclasses import replace

import grpc
import numpy as np
import pydicom
import pytest
from equipoise_client import Retry, Route, ServerUnavailable, UncertaintyClient
from equipoise_client.images.rejections import UnsuitableImage
from equipoise_clinic.dicom.rules import Rules
from equipoise_clinic.dicom.study import analyse, outputs, select

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
