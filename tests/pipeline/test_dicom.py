"""A real study through the real server: files in, standard objects out, the same for every copy of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
from equipoise_client import UncertaintyClient
from equipoise_clinic.dicom.rules import Rules
from equipoise_clinic.dicom.study import analyse, outputs, select

from ..support import validators
from ..support.phantom import SYNTAXES, compressed

SOURCE = Path(os.environ.get("EQUIPOISE_DATA", "")) / "dicom/study1-hippocampus-crop"
KINDS = ("seg", "epistemic", "aleatoric", "sr")

pytestmark = [pytest.mark.triton, pytest.mark.skipif(not SOURCE.is_dir(), reason="needs EQUIPOISE_DATA")]


def predict(server: Any, out: Path, *given: Path, model: str = "hippocampus") -> list[dict[str, Any]]:
    """`equipoise predict … --out` in a process of its own."""
    command = [sys.executable, "-m", "equipoise_client.cli.main", "predict", model, *map(str, given)]
    ran = subprocess.run(
        [*command, "--url", server.grpc_url, "--json", "--out", str(out)], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return list(json.loads(ran.stdout))


def results(case: dict[str, Any]) -> dict[str, Path]:
    """The objects that were written, by kind."""
    files = [Path(path) for path in case["written"]]
    return {kind: next(file for file in files if file.name.endswith(f".{kind}.dcm")) for kind in KINDS}


@pytest.fixture(scope="module")
def case(server, tmp_path_factory) -> dict[str, Any]:
    (found,) = predict(server, tmp_path_factory.mktemp("out"), SOURCE)
    return found


@pytest.mark.slow
def test_every_object_is_valid(case, tmp_path) -> None:
    """By other people's validators, on a study that nobody here made."""
    files = results(case)
    for file in files.values():
        validators.dciodvfy(file)
    page = validators.dsr2html(files["sr"])
    assert case["route"] in page.lower() and case["reason"] in page
    assert "interval of volumes: 90%, conformally calibrated" in page
    anterior, posterior, whole = validators.tid1500(files["sr"], tmp_path)["Measurements"]
    for group, volume in ((anterior, "anterior"), (posterior, "posterior")):
        mean, *spread = group["measurementItems"]
        expected = case["volume"][volume]
        ends = {
            end["numProperty"]["CodeValue"]: float(end["numPropertyValue"]) for end in mean["measurementNumProperties"]
        }
        assert float(mean["value"]) == pytest.approx(expected["mean"], rel=1e-8)
        assert float(mean["value"]) + ends["371886008"] == pytest.approx(expected["high"], rel=1e-7)
        assert float(mean["value"]) - ends["371885007"] == pytest.approx(expected["low"], rel=1e-7)
        # Where a first pass decided, there is an interval but no spread of samples.
        assert [float(sd["value"]) for sd in spread] == pytest.approx(
            [] if expected["sd"] is None else [expected["sd"]], rel=1e-8
        )
        assert {item["units"]["CodeValue"] for item in (mean, *spread)} == {"mL"}
    assert float(whole["measurementItems"][0]["value"]) == pytest.approx(case["case_score"], rel=1e-8)


@pytest.mark.slow
def test_dicom_and_nifti_agree_voxel_by_voxel(server, case, tmp_path) -> None:
    """The same volume as NIfTI, built from the standard's equation alone, gives the same labels and map in its grid."""
    datasets = [pydicom.dcmread(file) for file in SOURCE.iterdir()]
    datasets.sort(key=lambda each: float(each.ImagePositionPatient[2]))
    # Axial, 1 mm, identity orientation: rows run to the back, columns to the left, slices up.
    first = np.array(datasets[0].ImagePositionPatient, float)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = first * [-1, -1, 1]
    volume = np.stack([each.pixel_array.T for each in datasets], axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "crop.nii.gz")
    (other,) = predict(server, tmp_path / "out", tmp_path / "crop.nii.gz")
    assert other["case_score"] == pytest.approx(case["case_score"], rel=1e-6)
    labels, epistemic, outline = (
        nibabel.load(next(path for path in other["written"] if path.endswith(f".{name}.nii.gz")))
        for name in ("labels", "epistemic", "outline")
    )
    assert labels.shape == volume.shape
    indices = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    points = (indices @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    classes, between = np.asarray(labels.dataobj), np.asarray(outline.dataobj)
    expected = [classes == 1, classes == 2, between == 2, between >= 1]  # the last two: inner and outer outline
    segments = validators.segments(results(case)["seg"], tmp_path / "seg")
    for segment, mask in zip(segments, expected, strict=True):
        np.testing.assert_array_equal(validators.at(segment, points) > 0, mask)
    found = validators.at(validators.parametric_map(results(case)["epistemic"], tmp_path / "map"), points, np.nan)
    np.testing.assert_allclose(found, np.asarray(epistemic.dataobj), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", ["re-ordered", *SYNTAXES])
def test_copies_give_the_same_objects(server, case, tmp_path, syntax) -> None:
    """Compressed without loss, or numbered and ordered otherwise: the same bytes, and a PACS stores nothing twice."""
    datasets = [pydicom.dcmread(file) for file in sorted(SOURCE.iterdir())]
    if syntax == "re-ordered":
        datasets = [datasets[(number * 7) % len(datasets)] for number in range(len(datasets))]
        for number, dataset in enumerate(datasets):
            dataset.InstanceNumber = number
    else:
        datasets = [compressed(dataset, syntax, tmp_path) for dataset in datasets]
    (chosen,) = select(datasets, Rules.for_model("hippocampus"))
    with UncertaintyClient(server.grpc_url) as client:
        found = analyse(chosen, client)
    assert found.prediction.record["input_digest"] == case["record"]["input_digest"]
    for kind, dataset in zip(outputs(found.objects), found.objects, strict=True):
        dataset.save_as(tmp_path / "again.dcm", enforce_file_format=True)
        assert (tmp_path / "again.dcm").read_bytes() == results(case)[kind].read_bytes(), kind


def test_a_radiograph_gives_a_report_alone(server, tmp_path) -> None:
    """A real CR image without position in the patient: a classification, and no maps."""
    (tmp_path / "study").mkdir()
    source = pydicom.dcmread(pydicom.data.get_testdata_file("RG1_UNCR.dcm"))
    source.save_as(tmp_path / "study/a.dcm", enforce_file_format=True)
    (found,) = predict(server, tmp_path / "out", tmp_path / "study", model="pneumonia")
    (file,) = (Path(path) for path in found["written"] if path.endswith(".dcm"))
    assert file.name == "study.pneumonia.sr.dcm"
    validators.dciodvfy(file, r"ReferringPhysicianName.*<ward> - Retired Person Name form")  # the source's own
    assert found["route"] in validators.dsr2html(file).lower()
    (group,) = validators.tid1500(file, tmp_path)["Measurements"]
    items = [item for item in group["measurementItems"] if "prob" in item["quantity"]["CodeValue"]]
    told = [
        [probability[name] for name in ("calibrated", "mean", "sd")] for probability in found["probability"].values()
    ]
    np.testing.assert_allclose([float(item["value"]) for item in items], np.ravel(told), rtol=1e-7)
    report = pydicom.dcmread(file)
    assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)
