"""A series is one volume only if its slices were taken as one; and no decision is lost to an odd attribute."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equipoise_client.errors import UnreadableImage
from equipoise_client.images import read_image
from equipoise_client.images.rejections import MixedStudies, NotOneVolume, StudyRejected
from equipoise_clinic.dicom.report import objects_of
from equipoise_clinic.dicom.rules import Rules
from equipoise_clinic.dicom.series import read, volume_of
from equipoise_clinic.dicom.source import headers
from equipoise_clinic.dicom.study import select
from pydicom.dataset import Dataset

from ...support.phantom import GAP, multiframe, phantom
from ...support.result_sources import find


def series_of(datasets: list[Dataset]) -> Any:
    (chosen,) = select(datasets, Rules.for_model("m"))
    return chosen.series


def in_order() -> list[Dataset]:
    """The phantom's slices, by their number."""
    return sorted((deepcopy(each) for each in phantom().datasets), key=lambda each: int(each.InstanceNumber))


def alternating(name: str, one: Any, other: Any) -> Callable[[list[Dataset]], None]:
    def change(datasets: list[Dataset]) -> None:
        for index, each in enumerate(datasets):
            setattr(each, name, other if index % 2 else one)

    return change


def last(name: str, value: Any) -> Callable[[list[Dataset]], None]:
    return lambda datasets: setattr(datasets[-1], name, value)


@pytest.mark.parametrize(
    "change",
    [
        alternating("EchoTime", "10", "80"),
        alternating("EchoNumbers", 1, 2),
        alternating("AcquisitionNumber", 1, 2),
        alternating("InversionTime", "100", "900"),
        alternating("DiffusionBValue", 0.0, 1000.0),
        alternating("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
        last("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        last("Modality", "CT"),
        last("Modality", ""),
        last("BodyPartExamined", "KNEE"),
        last("PatientPosition", "FFS"),
        last("PhotometricInterpretation", "MONOCHROME1"),
        last("RescaleSlope", "2"),
        last("EchoTime", None),
        last("DeviceSerialNumber", "another"),
        last("PatientSex", "O"),
        last("PatientBirthDate", "19010101"),
    ],
)
def test_slices_of_different_kinds_are_no_volume(change: Callable[[list[Dataset]], None]) -> None:
    datasets = in_order()
    change(datasets)
    with pytest.raises(NotOneVolume):
        series_of(datasets)


def test_a_scan_that_was_continued_is_for_review_and_numbered_slices_are_not() -> None:
    datasets = in_order()
    for index, each in enumerate(datasets):
        each.AcquisitionNumber = 1 + (index > 4)
    assert "several acquisitions" in series_of(datasets).doubts[0]
    for index, each in enumerate(datasets):
        each.AcquisitionNumber, each.EchoTime = index + 1, str(10 + 0.001 * index)
    assert series_of(datasets).doubts == ()


@pytest.mark.parametrize("what", ["spacing", "echo", "type"])
def test_frames_of_different_kinds_are_no_volume(what: str, tmp_path: Path) -> None:
    """Of an enhanced object, as a series and as one file."""
    dataset = multiframe(phantom())
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        if what == "spacing":
            frame.PixelMeasuresSequence = deepcopy(dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence)
            if index == 3:
                frame.PixelMeasuresSequence[0].PixelSpacing = ["2", "2"]
        elif what == "echo":
            frame.MREchoSequence = [item(EffectiveEchoTime=80.0 if index % 2 else 10.0)]
        else:
            frame.MRImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "MP"[index % 2]])]
    with pytest.raises(NotOneVolume):
        volume_of(read([dataset])[0])
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableImage, match="differ in"):
        read_image(tmp_path / "a.dcm")


def test_a_part_of_a_concatenation_is_incomplete_as_a_file_and_as_a_series(tmp_path: Path) -> None:
    dataset = multiframe(phantom())
    dataset.ConcatenationUID, dataset.InConcatenationTotalNumber = "1.2.3", 2
    assert volume_of(read([dataset])[0]).incomplete
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert any("parts of a concatenation" in doubt for doubt in read_image(tmp_path / "a.dcm").doubts)


def test_a_slice_of_nothing_but_padding_is_no_damage() -> None:
    """At the edge of a reformatted stack; of the whole volume it would be none."""
    datasets = in_order()
    for each in datasets:
        each.add_new(0x00280120, "US", 0)
    datasets[0].PixelData = bytes(len(datasets[0].PixelData))
    image = series_of(datasets).image()
    assert image.padding is not None and image.padding.any() and not image.padding.all()
    for each in datasets:
        each.PixelData = bytes(len(each.PixelData))
    with pytest.raises(StudyRejected, match="all of it is padding"):
        series_of(datasets).image()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (last("BurnedInAnnotation", "YES"), "text is burned"),
        (last("QualityControlImage", "YES"), "quality control"),
        (last("SliceThickness", "9"), "not equally thick"),
    ],
)
def test_what_any_slice_says_against_it_counts(change: Callable[[list[Dataset]], None], word: str) -> None:
    datasets = in_order()
    change(datasets)
    image = series_of(datasets).image()
    assert word in "; ".join((*image.doubts, *image.header.doubts))


@pytest.mark.parametrize("names", [("Doe^Jane", "Roe^Richard"), ("", "Roe^Richard")])
def test_patients_without_an_id_are_told_apart_by_name(names: tuple[str, str]) -> None:
    datasets = in_order()
    for index, each in enumerate(datasets):
        each.PatientID, each.PatientName = "", names[index % 2]
    with pytest.raises(MixedStudies):
        series_of(datasets)
    for index, each in enumerate(datasets):
        each.PatientName = "Doe^Jane" if index % 2 else "DOE^JANE"
    assert series_of(datasets)


def test_a_gzipped_slice_beside_a_series_makes_it_incomplete(tmp_path: Path) -> None:
    datasets = in_order()
    for each in datasets:
        del each.InstanceNumber
        each.save_as(tmp_path / f"{each.SOPInstanceUID}.dcm", enforce_file_format=True)
    outer = tmp_path / f"{datasets[-1].SOPInstanceUID}.dcm"
    for name in ("a.dcm.gz", "b.gz"):
        (tmp_path / name).write_bytes(gzip.compress(outer.read_bytes()))
        outer.unlink(missing_ok=True)
        assert "may be of it" in series_of_folder(tmp_path).incomplete[0]
        outer.write_bytes(gzip.decompress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"a text of no importance" * 9))
    assert not series_of_folder(tmp_path).incomplete


def series_of_folder(folder: Path) -> Any:
    (chosen,) = select(folder, Rules.for_model("m"))
    return chosen.series


def item(**tags: Any) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.parametrize("name", ["._0001.dcm", "DICOMDIR", "dicomdir"])
def test_files_that_are_no_instances_are_skipped_by_name(tmp_path: Path, name: str) -> None:
    for index, each in enumerate(phantom().datasets):
        each.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(300))
    assert read(tmp_path)[0].slices == len(phantom().datasets)


def test_slopes_count_slice_by_slice_without_an_intercept() -> None:
    datasets = in_order()
    for index, each in enumerate(datasets):
        each.RescaleSlope = str(1 + index)
    slopes = np.arange(1, len(datasets) + 1)[:, None, None]
    np.testing.assert_allclose(series_of(datasets).image().pixels[0], phantom().values * slopes, rtol=1e-6)


def test_padding_of_some_slices_is_the_same_dark_everywhere() -> None:
    datasets = in_order()
    for each in datasets[2:4]:
        stored = np.frombuffer(each.PixelData, "<u2").copy()
        stored[:50] = 65535
        each.PixelData = stored.tobytes()
    for each in datasets:
        each.add_new(0x00280120, "US", 65535)
    image = series_of(datasets).image()
    assert image.padding.sum() == 100 and len(set(image.pixels[0][image.padding])) == 1


def test_a_malformed_spacing_is_said_to_be_that() -> None:
    datasets = in_order()
    for each in datasets:
        each.PixelSpacing = ["1"]
    with pytest.raises(StudyRejected, match="spacing"):
        series_of(datasets)


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("PatientBirthDate", "19500000", ""),
        ("PatientBirthDate", "ANONYMIZED", ""),
        ("PatientBirthDate", "1950", ""),
        ("StudyDate", "2020-01-21", "20200121"),
        ("StudyTime", "01:06:43", "010643"),
        ("StudyTime", "010643.1234567", "010643.123456"),
        ("StudyTime", "25", ""),
        ("PatientAge", "4 years", ""),
        ("PatientAge", "45Y", "045Y"),
    ],
)
def test_odd_attributes_cost_no_decision(
    head: Any, name: str, value: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are spelt anew or left empty in the results; the attribute is named for the log, not its value."""
    import pydicom.config

    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    source = phantom()
    for each in source.datasets:
        setattr(each, name, value)
    objects = objects_of(find(source.datasets, head))
    assert len(objects) == 4
    assert all(str(each.get(name, "")) == written for each in objects)
    assert headers(series_of(source.datasets)).cleaned == (name,)


def test_gap_of_the_phantom_is_what_is_read() -> None:
    """What the tests above change is all that is wrong with these series."""
    series = series_of(in_order())
    assert series.volume.spacing[0] == pytest.approx(GAP) and series.doubts == ()
