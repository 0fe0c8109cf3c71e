"""The result objects, by other people's readers and validators, on a phantom where every voxel is known."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from equipoise_client import Estimate, Prediction, Route, Volume
from equipoise_client.images import fit
from equipoise_client.prediction import Value
from equipoise_clinic.dicom.codes import UnknownUnit
from equipoise_clinic.dicom.report import objects_of
from equipoise_clinic.dicom.result_source import STATEMENT, result_source
from equipoise_clinic.dicom.rules import Code, Rule
from equipoise_clinic.dicom.series import read, volume_of
from equipoise_core.contract import Activation, Task
from equipoise_core.targets import Target

from ...support import validators
from ...support.phantom import FIRST, GAP, NAME, PATIENT, PLANE, Phantom, header, multiframe, phantom
from ...support.result_sources import LIMIT, find, predicted, written

POSES = {
    "axial": (17.0, -11.0, 8.0),
    "axial, seen from above": (170.0, 9.0, 4.0),
    "coronal": (-80.0, 12.0, 5.0),
    "sagittal": (3.0, 80.0, 5.0),
    "straight": (0.0, 0.0, 0.0),
}


@pytest.fixture(scope="module")
def results(head, tmp_path_factory) -> dict[str, Path]:
    return written(find(phantom().datasets, head), tmp_path_factory.mktemp("results"))


class TestPlaces:
    """Patient safety: a mask or a map on the wrong voxels looks right and is wrong."""

    @pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
    @pytest.mark.parametrize("pose", POSES)
    def test_every_voxel_is_where_it_belongs(self, tmp_path, head, pose, descending) -> None:
        """dcmqi finds each segment, and each uncertainty, at the very place in the patient."""
        source = phantom(POSES[pose], descending)
        self.check(source, written(find(source.datasets, head), tmp_path), tmp_path)

    def test_of_a_multi_frame_source_too(self, tmp_path, head) -> None:
        source = phantom()
        self.check(source, written(find([multiframe(source)], head), tmp_path), tmp_path)

    def test_the_bounds_of_the_outline_are_two_more_segments(self, tmp_path, head) -> None:
        """Where the policy promises them; by their distance in mm from the predicted foreground."""
        source, margins = phantom(), {"level": 0.9, "inner": 1.7, "outer": 3.1}
        stated = {"model_digest": head.model_digest, "policy_digest": "p" * 64, "seed": "7", "outline": margins}
        files = written(find(source.datasets, head, record=stated), tmp_path)
        validators.dciodvfy(files["seg"])
        assert validators.tid1500(files["sr"], tmp_path)["Measurements"]
        labels = [each.SegmentLabel for each in pydicom.dcmread(files["seg"]).SegmentSequence]
        assert labels == ["anterior", "posterior", "outline, inner bound (90%)", "outline, outer bound (90%)"]
        inner, outer = validators.segments(files["seg"], tmp_path / "seg")[2:]
        known = source.labels > 0
        apart = np.linalg.norm(source.points[..., None, :] - source.points[known], axis=-1).min(axis=-1)
        depth = np.linalg.norm(source.points[..., None, :] - source.points[~known], axis=-1).min(axis=-1)
        np.testing.assert_array_equal(validators.at(outer, source.points) > 0, apart <= 3.1)
        np.testing.assert_array_equal(validators.at(inner, source.points) > 0, known & (depth > 1.7))

    @staticmethod
    def check(source: Phantom, files: dict[str, Path], folder: Path) -> None:
        first, second = validators.segments(files["seg"], folder / "seg")
        np.testing.assert_array_equal(validators.at(first, source.points) > 0, source.labels == 1)
        np.testing.assert_array_equal(validators.at(second, source.points) > 0, source.labels == 2)
        share = source.values.astype(np.float32) / 65535.0 * LIMIT
        for name, expected in (("epistemic", share), ("aleatoric", np.float32(LIMIT) - share)):
            found = validators.parametric_map(files[name], folder / name)
            assert sorted(found.shape) == sorted(source.values.shape)
            np.testing.assert_array_equal(validators.at(found, source.points, np.nan), expected)

    def test_frames_of_a_map_ascend(self, results) -> None:
        """OHIF and dcmqi read them in the order they are stored, so that order is the safe one."""
        dataset = pydicom.dcmread(results["epistemic"])
        row, column = np.split(np.array(self.orientation(dataset), float), 2)
        depths = [
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float) @ np.cross(row, column)
            for frame in dataset.PerFrameFunctionalGroupsSequence
        ]
        np.testing.assert_allclose(np.diff(depths), GAP, atol=1e-6)
        places = [f.FrameContentSequence[0].DimensionIndexValues for f in dataset.PerFrameFunctionalGroupsSequence]
        assert [place[-1] if isinstance(place, list) else place for place in places] == list(range(1, len(depths) + 1))

    @staticmethod
    def orientation(dataset: Any) -> Any:
        return dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient

    @pytest.mark.parametrize("kind", ["seg", "epistemic", "aleatoric"])
    def test_spacing_is_from_positions(self, results, kind) -> None:
        """The source's Spacing Between Slices is stale and its Slice Thickness is no distance."""
        measures = pydicom.dcmread(results[kind]).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert float(measures.SpacingBetweenSlices) == pytest.approx(GAP, abs=1e-6)
        assert tuple(float(mm) for mm in measures.PixelSpacing) == PLANE

    def test_resampling_is_undone(self, brain, tmp_path) -> None:
        """A model of 1 mm voxels: masks come back on the source's voxels, overlap the truth, and are not shifted."""
        source = phantom()
        (group,) = read(source.datasets)
        series = volume_of(group)
        prepared = fit(series.image(), brain)
        assert prepared.pixels.shape[1:] != source.values.shape[::-1]
        answer = predicted(brain, prepared)
        halfway = (prepared.pixels >= (FIRST + 5_000) / 2).astype(np.uint8)  # between background and structure
        made_of = result_source(
            series, Rule("brain"), brain, prepared, replace(answer, arrays={**answer.arrays, "labels": halfway})
        )
        files = written(made_of, tmp_path)
        (first, *_) = validators.segments(files["seg"], tmp_path / "seg")
        mask, truth = validators.at(first, source.points) > 0, source.labels >= 1
        overlap = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        apart = source.points[mask].mean(axis=0) - source.points[truth].mean(axis=0)
        assert overlap > 0.9 and np.abs(apart).max() < 0.15, (overlap, apart)
        found = validators.parametric_map(files["epistemic"], tmp_path / "map")
        assert np.isfinite(validators.at(found, source.points, np.nan)).all()


class TestValidators:
    @pytest.mark.parametrize("kind", ["seg", "epistemic", "aleatoric", "sr"])
    def test_dciodvfy(self, results, kind) -> None:
        validators.dciodvfy(results[kind])

    def test_dsr2html(self, results) -> None:
        """The report is a tree that DCMTK renders, and what a doctor has to know stands in it."""
        page = validators.dsr2html(results["sr"])
        for words in ("Preliminary", "Unverified", "Review: an expert has to look at it", "score 0.3 is above 0.2"):
            assert words.lower() in page.lower()
        assert STATEMENT in page

    def test_tid_1500(self, results, tmp_path) -> None:
        """dcmqi's reader shows each volume, both ends of its interval and its standard deviation, all in mL."""
        found = validators.tid1500(results["sr"], tmp_path)
        assert (found["CompletionFlag"], found["VerificationFlag"]) == ("COMPLETE", "UNVERIFIED")
        anterior, posterior, case = found["Measurements"]
        expected = (
            (anterior, Estimate(2.0, 0.1, 1.75, 2.5), 1),
            (posterior, Estimate(0.5, 0.05, 0.375, 0.75), 2),
            (case, Estimate(2.5, 0.2, 2.125, 3.25), None),
        )
        for group, volume, segment in expected:
            assert group.get("ReferencedSegment") == segment
            items = [item for item in group["measurementItems"] if item["quantity"]["CodeValue"] == "118565006"]
            assert {item["units"]["CodeValue"] for item in items} == {"mL"}
            mean, sd = items
            assert mean["derivationModifier"]["CodeValue"] == "373098007" and float(mean["value"]) == volume.mean
            assert sd["derivationModifier"]["CodeValue"] == "386136009" and float(sd["value"]) == volume.sd
            ends = {end["numProperty"]["CodeValue"]: end for end in mean["measurementNumProperties"]}
            assert {end["numPropertyUnits"]["CodeValue"] for end in ends.values()} == {"mL"}
            assert float(ends["371886008"]["numPropertyValue"]) == volume.high - volume.mean
            assert float(ends["371885007"]["numPropertyValue"]) == volume.mean - volume.low

    def test_the_report_names_the_algorithm(self, results, head) -> None:
        """Name, version and parameters: the digests of model and policy."""
        page = validators.dsr2html(results["sr"])
        assert page.count(head.model_digest) >= 3 and "p" * 64 in page

    @pytest.mark.parametrize(
        ("record", "words"),
        [
            ({"volume_level": 0.95}, "95%, conformally calibrated"),
            ({"volume_level": None}, "of the samples alone, not calibrated"),
            ({}, "as the policy states"),
        ],
    )
    def test_the_report_says_what_the_interval_is(self, tmp_path, head, record, words) -> None:
        files = written(find(phantom().datasets, head, record=record), tmp_path)
        assert f"interval of volumes: {words}" in validators.dsr2html(files["sr"])

    def test_preliminary(self, results) -> None:
        dataset = pydicom.dcmread(results["sr"])
        assert (dataset.PreliminaryFlag, dataset.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
        assert all(pydicom.dcmread(results[kind]).ContentDescription == STATEMENT for kind in ("seg", "epistemic"))

    def test_all_are_of_one_study_and_a_series_each(self, results) -> None:
        found = [pydicom.dcmread(file) for file in results.values()]
        assert {str(each.StudyInstanceUID) for each in found} == {header().StudyInstanceUID}
        assert len({each.SeriesInstanceUID for each in found}) == len({each.SOPInstanceUID for each in found}) == 4
        assert {str(each.get("FrameOfReferenceUID", "")) for each in found[:3]} == {header().FrameOfReferenceUID}

    def test_of_a_single_slice(self, tmp_path, cells) -> None:
        """A 2D model with sigmoids, on one image that lies somewhere in the patient."""
        source = phantom()
        dataset = next(each for each in source.datasets if each.InstanceNumber == 3)
        series = volume_of(read([dataset])[0])
        prepared = fit(series.image(), cells)
        answer = predicted(cells, prepared)
        arrays = {**answer.arrays, "labels": (prepared.pixels >= 40_000).astype(np.uint8)}
        made_of = result_source(series, Rule("cells"), cells, prepared, replace(answer, volume=None, arrays=arrays))
        files = written(made_of, tmp_path)
        for file in files.values():
            validators.dciodvfy(file)
        (group, _) = validators.tid1500(files["sr"], tmp_path)["Measurements"]
        assert group["ReferencedSegment"] == 1 and not group.get("measurementItems")
        np.testing.assert_array_equal(pydicom.dcmread(files["seg"]).pixel_array.squeeze() > 0, source.labels[2] > 0)
        found = np.frombuffer(pydicom.dcmread(files["epistemic"]).FloatPixelData, np.float32)
        np.testing.assert_array_equal(found, source.values[2].ravel().astype(np.float32) / 65535.0 * LIMIT)

    def test_of_a_multi_frame_source(self, tmp_path, head) -> None:
        for file in written(find([multiframe(phantom())], head), tmp_path).values():
            validators.dciodvfy(file)

    def test_of_a_source_that_says_little(self, tmp_path, head) -> None:
        """No body part, no thickness, no manufacturer, no dates."""
        source = phantom()
        for dataset in source.datasets:
            for name in ("BodyPartExamined", "SliceThickness", "SpacingBetweenSlices", "Manufacturer", "SeriesDate"):
                del dataset[name]
            dataset.StudyDate = ""
        for file in written(find(source.datasets, head), tmp_path).values():
            validators.dciodvfy(file, r"StudyDate.*would be needed to build DICOMDIR")

    @pytest.mark.parametrize("labels", ["nothing", "everything"])
    def test_extreme_masks(self, tmp_path, head, labels) -> None:
        """No foreground at all, and nothing but: objects that the validators and readers take."""
        (group,) = read(phantom().datasets)
        series = volume_of(group)
        prepared = fit(series.image(), head)
        answer = predicted(head, prepared)
        full = np.full_like(answer.labels, 0 if labels == "nothing" else 1)
        answer = replace(answer, arrays={**answer.arrays, "labels": full})
        files = written(result_source(series, Rule("head"), head, prepared, answer), tmp_path)
        validators.dciodvfy(files["seg"])
        found = pydicom.dcmread(files["seg"]).pixel_array
        assert found.any() == (labels == "everything")

    def test_unknown_volumes_are_left_out(self, tmp_path, head) -> None:
        """NaN is no number in a report; a mean outside its interval has no distances to its ends."""
        nan = float("nan")
        volume = Volume(
            {"anterior": Estimate(nan, nan, nan, nan), "posterior": Estimate(1.0, 0.1, 1.5, 2.0)},
            Estimate(nan, nan, nan, nan),
        )
        files = written(find(phantom().datasets, head, volume=volume, case_score=nan), tmp_path)
        validators.dciodvfy(files["sr"])
        validators.dsr2html(files["sr"])
        anterior, posterior, case = validators.tid1500(files["sr"], tmp_path)["Measurements"]
        assert not anterior.get("measurementItems") and not case.get("measurementItems")
        assert "measurementNumProperties" not in posterior["measurementItems"][0]

    def test_a_map_that_is_not_finite_is_refused(self, head) -> None:
        """NaN would pass every validator."""
        (group,) = read(phantom().datasets)
        series = volume_of(group)
        prepared = fit(series.image(), head)
        answer = predicted(head, prepared)
        spoilt = answer.epistemic.copy()
        spoilt[0, 2, 2, 2] = np.nan
        answer = replace(answer, arrays={**answer.arrays, "epistemic": spoilt})
        with pytest.raises(ValueError, match="not finite"):
            objects_of(result_source(series, Rule("head"), head, prepared, answer))

    def test_codes_of_the_rules_file(self, tmp_path, head) -> None:
        """A segment is called what the site calls it."""
        rule = Rule("head", segments={"anterior": Code("SCT", "5366008", "Hippocampus")})
        files = written(find(phantom().datasets, head, rule), tmp_path)
        first, second = pydicom.dcmread(files["seg"]).SegmentSequence
        assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "5366008"
        assert second.SegmentedPropertyTypeCodeSequence[0].CodeValue == "91723000"
        validators.dciodvfy(files["seg"])


class TestClassification:
    def test_a_report_alone(self, tmp_path, chest) -> None:
        """Recalibrated probabilities, those of the samples by name, route and reason; a radiograph has no geometry."""
        files = written(self.made_of(chest), tmp_path)
        assert list(files) == ["sr"]
        validators.dciodvfy(files["sr"])
        assert "Review: an expert has to look at it" in validators.dsr2html(files["sr"])
        (case,) = validators.tid1500(files["sr"], tmp_path)["Measurements"]
        found = [
            (item["quantity"]["CodeValue"], item.get("derivationModifier", {}).get("CodeMeaning"), item["value"])
            for item in case["measurementItems"][1:]
        ]
        assert found == [
            line
            for stated, mean in (("0.375", "0.25"), ("0.625", "0.75"))
            for line in (
                ("probability", None, stated),
                ("sampled_prob", "Mean", mean),
                ("sampled_prob", "Standard Deviation", "0.125"),
            )
        ]

    def test_numbers_with_their_unit_and_interval(self, tmp_path, chest) -> None:
        """Of a regression each number is a measurement in UCUM's code, with the ends of its interval."""
        files = written(self.of_numbers(chest, "mo"), tmp_path)
        assert list(files) == ["sr"]
        validators.dciodvfy(files["sr"])
        (case,) = validators.tid1500(files["sr"], tmp_path)["Measurements"]
        mean, sd = case["measurementItems"][1:]
        assert (mean["value"], sd["value"]) == ("132.5", "4.25") and mean["units"]["CodeValue"] == "mo"
        content = pydicom.dcmread(files["sr"])
        ends = {
            (item.ConceptNameCodeSequence[0].CodeMeaning, float(item.MeasuredValueSequence[0].NumericValue))
            for item in content.iterall()
            for item in (item.value if item.VR == "SQ" else [])
            if item.get("ValueType") == "NUM" and "ncertainty" in item.ConceptNameCodeSequence[0].CodeMeaning
        }
        assert {value for _, value in ends} == {12.5, 7.5}

    def of_numbers(self, chest: Any, unit: str) -> Any:
        bone = replace(
            chest, name="bone", task=Task.REGRESSION, activation=Activation.SIGMOID, classes=(),
            targets=(Target("age", unit),),
        )  # fmt: skip
        values = {"age": Value(132.5, 4.25, 125.0, 145.0, unit)}
        answer = Prediction("bone", Route.REVIEW, "why", 0.1, 20, None, {}, {}, values)
        return self.made_of(bone, answer)

    @staticmethod
    def made_of(chest: Any, given: Prediction | None = None) -> Any:
        dataset = header()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.10.99.6"
        dataset.Modality = "CR"
        del dataset.FrameOfReferenceUID
        dataset.PixelData = np.arange(dataset.Rows * dataset.Columns, dtype="<u2").tobytes()
        (group,) = read([dataset])
        series = volume_of(group)
        prepared = fit(series.image(), chest)
        answer = given or Prediction(
            chest.name, Route.REVIEW, "why", 0.1, 20, None, {},
            {
                "calibrated": np.array([0.375, 0.625], np.float32),
                "mean": np.array([0.25, 0.75], np.float32),
                "variance": np.array([1 / 64, 1 / 64], np.float32),
            },
        )  # fmt: skip
        return result_source(series, Rule("chest"), chest, prepared, answer)


def test_a_unit_without_a_code_makes_no_report(chest) -> None:
    """`months` is no code of UCUM: a receiver must not guess. The analysis goes on to review without objects."""
    with pytest.raises(UnknownUnit, match="months"):
        objects_of(TestClassification().of_numbers(chest, "months"))


class TestRepeat:
    def test_the_same_bytes(self, tmp_path, head) -> None:
        """The same decision, in other order of instances and at another time: the same files, bit by bit."""
        source = phantom()
        first = written(find(source.datasets, head), tmp_path / "1")
        second = written(find(source.datasets[::-1], head), tmp_path / "2")
        for kind in first:
            assert first[kind].read_bytes() == second[kind].read_bytes(), kind

    def test_sources_are_left_alone(self, head) -> None:
        """Their patient's sex and slice spacing are none that highdicom takes; nobody else sees that."""
        datasets = phantom().datasets
        for dataset in datasets:
            dataset.PatientSex = "U"
        before = [deepcopy(dataset) for dataset in datasets]
        objects_of(find(datasets, head))
        assert list(datasets) == before

    @pytest.mark.parametrize("changed", ["model_digest", "policy_digest", "input_digest", "seed", "samples"])
    def test_another_decision_has_other_names(self, head, changed) -> None:
        """One UID never names two contents."""
        datasets = phantom().datasets
        before = find(datasets, head)
        record = {**before.prediction.record, changed: "other"}
        after = find(datasets, head, record=record)
        assert before.identity.digest != after.identity.digest
        uids = [{each.SOPInstanceUID for each in objects_of(source)} for source in (before, after)]
        assert not uids[0] & uids[1]

    def test_uids_are_well_formed(self, head) -> None:
        for each in objects_of(find(phantom().datasets, head)):
            for uid in (each.SOPInstanceUID, each.SeriesInstanceUID):
                assert uid.is_valid and uid.startswith("2.25.") and len(uid) <= 64


class TestPatient:
    def test_as_in_the_source(self, results) -> None:
        for file in results.values():
            found = pydicom.dcmread(file)
            assert (found.PatientName, found.PatientID, found.PatientBirthDate) == (NAME, PATIENT, "19610203")
            assert (found.PatientSex, found.AccessionNumber, found.StudyID) == ("F", "A1", "S1")

    @pytest.mark.parametrize(
        ("characters", "name"), [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")]
    )
    def test_names_in_other_characters(self, tmp_path, head, characters, name) -> None:
        """Read in the source's character set, written in UTF-8."""
        source = phantom()
        for dataset in source.datasets:
            dataset.SpecificCharacterSet, dataset.PatientName = characters, name
        for number, dataset in enumerate(source.datasets):
            dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        files = written(find(tmp_path, head), tmp_path / "results")
        for file in files.values():
            found = pydicom.dcmread(file)
            assert str(found.PatientName) == name and found.SpecificCharacterSet == "ISO_IR 192"
            validators.dciodvfy(file)

    def test_what_is_not_there_stays_empty(self, tmp_path, head) -> None:
        """A source without half of its patient module, and with a sex that the standard does not have."""
        source = phantom()
        for dataset in source.datasets:
            for name in ("PatientBirthDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
                del dataset[name]
            dataset.PatientSex = "U"
        files = written(find(source.datasets, head), tmp_path)
        found = pydicom.dcmread(files["seg"])
        assert (found.PatientSex, found.StudyID, found.PatientBirthDate) == ("U", "", "")
        assert len(files) == 4
