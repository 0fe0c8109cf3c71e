"""From a folder or a heap of instances to the series that go to a model, or to the one reason why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from equipoise_client import InvalidInput, StudyRejected
from equipoise_client.images import rejections
from equipoise_client.images.rejections import (
    DamagedInstance,
    DuplicatePositions,
    GantryTilt,
    MissingSlices,
    MixedStudies,
    NoFrameOfReference,
    NoGeometry,
    NoSeriesFits,
    NothingReadable,
    NotOneVolume,
    SeveralSeriesFit,
    TooFewSlices,
    UnevenSlices,
    UnreadableSyntax,
    WrongModality,
    WrongPlane,
    WrongView,
)
from equipoise_clinic.dicom.rules import Rule, Rules
from equipoise_clinic.dicom.study import select, sorted_out

from ...support.phantom import GAP, NAME, PATIENT, SLICES, SYNTAXES, compressed, header, multiframe, phantom

ANY = Rules.for_model("head")
Datasets = list[Any]


def moved(datasets: Datasets, index: int, by: tuple[float, float, float]) -> None:
    """Moves the slice that is `index`-th along the normal, by mm along row, column, normal."""
    dataset = sorted(datasets, key=lambda each: each.InstanceNumber)[index]
    row, column = np.split(np.array(dataset.ImageOrientationPatient, float), 2)
    axes = np.stack([row, column, np.cross(row, column)])
    place = np.array(dataset.ImagePositionPatient, float) + np.array(by) @ axes
    dataset.ImagePositionPatient = [f"{mm:.8f}" for mm in place]


def lose_one(datasets: Datasets) -> None:
    datasets.remove(next(each for each in datasets if each.InstanceNumber == 4))


def move_one(datasets: Datasets) -> None:
    moved(datasets, 4, (0.0, 0.0, 0.3 * GAP))


def move_one_sideways(datasets: Datasets) -> None:
    moved(datasets, 4, (0.2 * GAP, 0.0, 0.0))


def double_one(datasets: Datasets) -> None:
    again = deepcopy(datasets[0])
    again.SOPInstanceUID += ".1"
    datasets.append(again)


def two_versions_of_one(datasets: Datasets) -> None:
    again = deepcopy(datasets[0])
    again.PixelData = bytes(len(again.PixelData))
    datasets.append(again)


def tilt(datasets: Datasets) -> None:
    for index in range(SLICES):
        moved(datasets, index, (0.0, 0.1 * GAP * index, 0.0))


def turn_one(datasets: Datasets) -> None:
    datasets[2].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def another_study(datasets: Datasets) -> None:
    datasets[3].StudyInstanceUID += ".1"


def another_patient(datasets: Datasets) -> None:
    datasets[3].PatientID = "somebody else"


def another_frame_of_reference(datasets: Datasets) -> None:
    datasets[3].FrameOfReferenceUID += ".1"


def forget(*names: str, every: bool = True) -> Callable[[Datasets], None]:
    def spoil(datasets: Datasets) -> None:
        for dataset in datasets if every else datasets[3:4]:
            for name in names:
                delattr(dataset, name)

    spoil.__name__ = f"forget {' and '.join(names)}{'' if every else ' once'}"
    return spoil


def video(datasets: Datasets) -> None:
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"


def cut_off(datasets: Datasets) -> None:
    datasets[0].PixelData = datasets[0].PixelData[:100]


def another_size(datasets: Datasets) -> None:
    datasets[0].Rows //= 2


def another_spacing(datasets: Datasets) -> None:
    datasets[0].PixelSpacing = ["1.0", "1.0"]


def nonsense_orientation(datasets: Datasets) -> None:
    for dataset in datasets:
        dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]


def words_for_numbers(datasets: Datasets) -> None:
    for dataset in datasets:
        dataset["Rows"].VR = "LO"
        dataset.Rows = NAME


SPOILT: list[tuple[Callable[[Datasets], None], type[StudyRejected]]] = [
    (lose_one, MissingSlices),
    (move_one, UnevenSlices),
    (move_one_sideways, UnevenSlices),
    (double_one, DuplicatePositions),
    (two_versions_of_one, DuplicatePositions),
    (tilt, GantryTilt),
    (turn_one, NotOneVolume),
    (another_study, MixedStudies),
    (another_patient, MixedStudies),
    (another_frame_of_reference, NotOneVolume),
    (another_size, NotOneVolume),
    (another_spacing, NotOneVolume),
    (nonsense_orientation, NotOneVolume),
    (forget("FrameOfReferenceUID"), NoFrameOfReference),
    (forget("FrameOfReferenceUID", every=False), NotOneVolume),
    (forget("ImagePositionPatient"), NoGeometry),
    (forget("ImagePositionPatient", every=False), NoGeometry),
    (forget("ImageOrientationPatient"), NoGeometry),
    (forget("PixelSpacing"), NoGeometry),
    (forget("PixelData", every=False), DamagedInstance),
    (forget("SOPInstanceUID", every=False), DamagedInstance),
    (forget("StudyInstanceUID"), DamagedInstance),
    (video, UnreadableSyntax),
    (cut_off, DamagedInstance),
    (words_for_numbers, DamagedInstance),
    (list.clear, NothingReadable),
]


@pytest.mark.parametrize(("spoil", "expected"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_each_fault_has_its_reason(spoil, expected) -> None:
    """One class and one stable text for each; what it says holds nothing of the patient."""
    datasets = deepcopy(list(phantom().datasets))
    spoil(datasets)
    with pytest.raises(StudyRejected) as caught:
        for chosen in select(datasets, ANY):
            chosen.series.image()
    assert type(caught.value) is expected
    assert caught.value.reason == expected.reason and str(caught.value).startswith(expected.reason)
    for planted in (NAME, PATIENT, "1.2.826", "20240229", "19610203"):
        assert planted not in str(caught.value)


def test_reasons_differ() -> None:
    classes = [each for each in vars(rejections).values() if isinstance(each, type) and issubclass(each, StudyRejected)]
    assert len({each.reason for each in classes}) == len(classes)


class TestOrder:
    @pytest.mark.parametrize("descending", [False, True])
    def test_slices_ascend_whatever_came_first(self, descending) -> None:
        """Neither Instance Number nor the order of arrival counts."""
        source = phantom(descending=descending)
        for datasets in (source.datasets, source.datasets[::-1]):
            (chosen,) = select(datasets, ANY)
            np.testing.assert_array_equal(chosen.series.image().pixels[0], source.values)
            np.testing.assert_allclose(chosen.series.positions, source.points[:, 0, 0], atol=1e-8)
            assert chosen.series.image().spacing == pytest.approx((GAP, 1.3, 0.8))

    def test_the_affine_is_the_standards(self) -> None:
        """Voxel index → place, for all voxels, against the standard's equation."""
        source = phantom()
        (chosen,) = select(source.datasets, ANY)
        affine = chosen.series.image().affine
        indices = np.stack(np.meshgrid(*map(np.arange, source.values.shape), indexing="ij"), axis=-1)
        ras = indices @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(ras * [-1, -1, 1], source.points, atol=1e-6)

    def test_frames_of_one_file(self) -> None:
        source = phantom()
        (chosen,) = select([multiframe(source)], ANY)
        np.testing.assert_array_equal(chosen.series.image().pixels[0], source.values)

    def test_the_same_instance_twice_counts_once(self) -> None:
        source = phantom()
        (chosen,) = select([*source.datasets, *deepcopy(source.datasets)], ANY)
        assert len(chosen.series.datasets) == SLICES

    @pytest.mark.parametrize("syntax", SYNTAXES)
    def test_compressed(self, tmp_path, syntax) -> None:
        """Lossless compression changes no voxel."""
        source = phantom()
        (chosen,) = select([compressed(dataset, syntax, tmp_path) for dataset in source.datasets], ANY)
        assert {dataset.file_meta.TransferSyntaxUID.is_compressed for dataset in chosen.series.datasets} == {True}
        np.testing.assert_array_equal(chosen.series.image().pixels[0], source.values)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number, dataset in enumerate(phantom().datasets):
            place = tmp_path / "deep" / "er" / f"IM{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(place, enforce_file_format=True)
        return tmp_path

    def test_files_in_folders(self, folder: Path) -> None:
        """Wherever they lie and however they are called; what is no DICOM is left alone."""
        (folder / "README.txt").write_text("hello")
        (folder / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
        (chosen,) = select(folder, ANY)
        assert len(chosen.series.datasets) == SLICES

    def test_results_are_no_source(self, folder: Path, head, brain) -> None:
        """A study that holds our own results gives the same choice again."""
        from ...support.result_sources import find, written

        written(find(phantom().datasets, head), folder / "results")
        (chosen,) = select(folder, ANY)
        assert {str(each.Modality) for each in chosen.series.datasets} == {"MR"}

    @pytest.mark.parametrize("name", ["last.dcm", "IM9", "IM.0009", "1.2.840.10008.99"])
    @pytest.mark.parametrize("content", [b"", b"\0" * 500], ids=["empty", "zeros"])
    def test_a_file_that_only_claims_to_be_one(self, folder: Path, name: str, content: bytes) -> None:
        """Without it the last slice might be missing: the series is known to be incomplete."""
        (folder / name).write_bytes(content)
        (chosen,) = select(folder, ANY)
        assert chosen.series.incomplete == ("1 files beside it cannot be read, and may be of it",)

    @pytest.mark.parametrize("name", ["._IM3", ".DS_Store", "DICOMDIR", "README", "viewer.exe", "notes.txt"])
    def test_what_is_no_image_by_its_name_is_left_alone(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"\0\5\x16\7" + bytes(200))
        (chosen,) = select(folder, ANY)
        assert chosen.series.incomplete == ()

    @pytest.mark.parametrize("size", [400, 900, -100])
    def test_an_edge_that_was_cut_off_leaves_the_series_incomplete(self, folder: Path, size: int) -> None:
        """Geometry cannot show that the last slice is missing."""
        files = {pydicom.dcmread(file).InstanceNumber: file for file in folder.rglob("IM*")}
        files[SLICES].write_bytes(files[SLICES].read_bytes()[:size])
        (chosen,) = select(folder, ANY)
        assert len(chosen.series.datasets) == SLICES - 1 and chosen.series.incomplete

    def test_pixels_stay_on_the_disk_until_they_are_asked_for(self, folder: Path, monkeypatch) -> None:
        """So that memory holds the series in use, and not the study."""
        from equipoise_clinic.dicom import series

        monkeypatch.setattr(series, "_DEFERRED", 100)
        (chosen,) = select(folder, ANY)
        held = [each.get_item("PixelData", keep_deferred=True).value for each in chosen.series.datasets]
        assert held == [None] * SLICES
        np.testing.assert_array_equal(chosen.series.image().pixels[0], phantom().values)

    @pytest.mark.parametrize("size", [140, 200, 400, 900, -100])
    def test_a_file_that_was_cut_off(self, folder: Path, size: int) -> None:
        file = sorted(folder.rglob("IM*"))[0]
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(DamagedInstance):
            for chosen in select(folder, ANY):
                chosen.series.image()

    def test_no_folder(self, tmp_path: Path) -> None:
        for place in (tmp_path / "none", tmp_path):
            with pytest.raises(NothingReadable):
                select(place, ANY)


class TestRules:
    def study(self) -> Datasets:
        """A localiser in another plane, a short axial series, the one we want, and a CT."""
        datasets: Datasets = []
        for number, (description, angles, slices, modality) in enumerate(
            [
                ("Localizer", (3.0, 80.0, 5.0), 9, "MR"),
                ("T1 short", (0.0, 0.0, 0.0), 3, "MR"),
                ("T1 HippoCrop", (17.0, -11.0, 8.0), 9, "MR"),
                ("Head", (0.0, 0.0, 0.0), 9, "CT"),
            ]
        ):
            for dataset in sorted(phantom(angles).datasets, key=lambda each: each.InstanceNumber)[:slices]:
                dataset.SeriesInstanceUID += f".{number}"
                dataset.SOPInstanceUID += f".{number}"
                dataset.SeriesDescription, dataset.Modality = description, modality
                datasets.append(dataset)
        return datasets

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            (Rule("m", description="hippo"), "T1 HippoCrop"),
            (Rule("m", description="^t1", minimum_slices=5), "T1 HippoCrop"),
            (Rule("m", modality="CT"), "Head"),
            (Rule("m", plane="sagittal"), "Localizer"),
            (Rule("m", modality="MR", plane="axial", minimum_slices=9), "T1 HippoCrop"),
        ],
    )
    def test_the_series_that_fits(self, rule, expected) -> None:
        (chosen,) = select(self.study(), Rules((rule,)))
        assert chosen.series.first.SeriesDescription == expected and chosen.rule.model == "m"

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            (Rule("m", description="liver"), NoSeriesFits),
            (Rule("m", modality="PT"), WrongModality),
            (Rule("m", modality="MR", description="t1", plane="coronal"), WrongPlane),
            (Rule("m", modality="MR", description="t1", plane="axial", minimum_slices=10), TooFewSlices),
            (Rule("m", modality="MR", description="t1"), SeveralSeriesFit),
        ],
    )
    def test_why_none_fits(self, rule, expected) -> None:
        """The reason is that of what came closest."""
        with pytest.raises(StudyRejected) as caught:
            select(self.study(), Rules((rule,)))
        assert type(caught.value) is expected

    @pytest.mark.parametrize("name", ["ImageOrientationPatient", "ImagePositionPatient", "NumberOfFrames"])
    def test_nonsense_in_another_series_is_no_matter(self, name) -> None:
        """Only what is chosen has to be right."""
        datasets = self.study()
        for dataset in datasets:
            if dataset.SeriesDescription == "Localizer":
                dataset.add_new(name, "LO", ["a", "b"])
        (chosen,) = select(datasets, Rules((Rule("m", modality="MR", plane="axial", minimum_slices=9),)))
        assert chosen.series.first.SeriesDescription == "T1 HippoCrop"

    def test_one_bad_series_stops_no_other(self) -> None:
        """Each model gets its own; what was refused is said."""
        datasets = [each for each in self.study() if each.SeriesDescription != "Head" or each.InstanceNumber != 4]
        rules = Rules((Rule("a", description="hippo"), Rule("b", modality="CT"), Rule("c", modality="PT")))
        found = sorted_out(datasets, rules)
        assert [each.model for each in found.chosen] == ["a"]
        assert [(each.model, type(each.reason)) for each in found.refused] == [("b", MissingSlices)]
        with pytest.raises(MissingSlices):
            select(datasets, Rules((Rule("b", modality="CT"),)))

    def test_two_versions_of_one_instance_spoil_their_series_alone(self) -> None:
        datasets = self.study()
        two_versions_of_one(datasets)
        found = sorted_out(datasets, Rules((Rule("a", description="localizer"), Rule("b", modality="CT"))))
        assert [each.model for each in found.chosen] == ["b"] and [each.model for each in found.refused] == ["a"]

    def test_one_series_for_each_model(self) -> None:
        """The first rule of a model that fits is taken; another model may have another series, or the same."""
        rules = Rules((Rule("a", description="hippo"), Rule("a", modality="CT"), Rule("b", modality="CT")))
        assert [(each.rule.model, each.series.first.Modality) for each in select(self.study(), rules)] == [
            ("a", "MR"),
            ("b", "CT"),
        ]


class TestRulesFile:
    def test_all_of_it(self, tmp_path: Path) -> None:
        file = tmp_path / "rules.toml"
        file.write_text(
            '[[series]]\nmodel = "hippocampus"\nmodality = "MR"\ndescription = "hippo"\nplane = "axial"\n'
            'minimum_slices = 20\nbody_part = "BRAIN"\n[[series]]\nmodel = "pneumonia"\n'
            '[segments.hippocampus]\nanterior = { scheme = "SCT", value = "5366008", meaning = "Hippocampus" }\n'
        )
        first, second = Rules.load(file).series
        assert (first.model, first.plane, first.minimum_slices, first.body_part) == (
            "hippocampus",
            "axial",
            20,
            "BRAIN",
        )
        assert first.segments["anterior"].meaning == "Hippocampus"
        assert second == Rule("pneumonia")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no rule"),
            ("[[series]]\nmodel = 3", r"series\[1\]\.model is 3; expected str"),
            (
                '[[series]]\nmodel = "a"\nslices = 3',
                r"series\[1\]\.slices: no such key; expected one of model, modality",
            ),
            ('[[series]]\nmodel = "a"\nplane = "oblique"', "expected one of sagittal"),
            ('[[series]]\nmodel = "a"\ndescription = "("', "not a regular expression"),
            ('[[series]]\nmodel = "a"\nminimum_slices = 0', "expected 1 or more"),
            ('[[series]]\nmodel = "a"\nminimum_slices = true', "minimum_slices is True; expected int"),
            ('[[series]]\nmodel = "../a"', "name of a public model"),
            ('[[series]]\nmodality = "MR"', "model"),
            ('[[series]]\nmodel = "a"\n[segments.b]\nx = { scheme = "SCT", value = "1", meaning = "x" }', "segments.b"),
            ('[[series]]\nmodel = "a"\n[segments.a]\nx = { scheme = "SCT" }', "segments.a.x.value is missing"),
            (
                '[[series]]\nmodel = "a"\n[segments.a]\nx = { scheme = "SCT", value = 1, meaning = "x" }',
                "segments.a.x.value is 1; expected str",
            ),
            ('[[series]]\nmodel = "a"\n[segments]\na = 3', "segments.a is 3; expected a table"),
            ('segments = 3\n[[series]]\nmodel = "a"', "segments is 3; expected a table"),
            ('[series]\nmodel = "a"', "in double brackets"),
            ("series = [3]", r"series\[1\] is 3; expected a table"),
            ("[[rules]]", "rules: no such key; expected one of series, segments"),
            ("[[series", "cannot be read as TOML"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, text: str, words: str) -> None:
        file = tmp_path / "rules.toml"
        file.write_text(text)
        with pytest.raises(InvalidInput, match=words):
            Rules.load(file)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"rules\.toml"):
            Rules.load(tmp_path / "rules.toml")


def test_a_radiograph_needs_no_geometry() -> None:
    """One image without position is taken as it is; two of them are no volume."""
    datasets = [header(), header()]
    for number, dataset in enumerate(datasets):
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.PixelData = bytes(2 * dataset.Rows * dataset.Columns)
        del dataset.FrameOfReferenceUID
    (chosen,) = select(datasets[:1], ANY)
    assert chosen.series.volume is None and chosen.series.image().pixels.shape == (1, 20, 28)
    with pytest.raises(NoGeometry):
        select(datasets, ANY)


def radiograph(number: int, view: str, series: int = 1) -> Any:
    dataset = header()
    dataset.Modality, dataset.ViewPosition, dataset.InstanceNumber = "DX", view, number
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.4.{series}"
    dataset.PixelData = bytes(2 * dataset.Rows * dataset.Columns)
    return dataset


class TestViews:
    @pytest.mark.parametrize("series", [1, 2], ids=["one series", "two series"])
    @pytest.mark.parametrize(
        ("rule", "view"), [(Rule("m"), "PA"), (Rule("m", view="PA"), "PA"), (Rule("m", view="ll"), "LL")]
    )
    def test_the_frontal_one_unless_the_rules_say_another(self, series: int, rule: Rule, view: str) -> None:
        (chosen,) = select([radiograph(1, "LL"), radiograph(2, "PA", series)], Rules((rule,)))
        assert chosen.series.first.ViewPosition == view and chosen.series.incomplete == ()

    @pytest.mark.parametrize("views", [("PA", "PA"), ("PA", ""), ("", ""), ("PA", "AP"), ("LL", "RL")])
    def test_where_it_is_not_clear_nothing_is_chosen(self, views: tuple[str, str]) -> None:
        with pytest.raises(SeveralSeriesFit):
            select([radiograph(number, view) for number, view in enumerate(views)], ANY)

    def test_no_image_has_the_view(self) -> None:
        with pytest.raises(WrongView):
            select([radiograph(1, "LL")], Rules((Rule("m", view="PA"),)))


def test_a_patient_id_in_another_spelling_is_the_same_patient() -> None:
    datasets = list(phantom().datasets)
    datasets[0].PatientID = f" {PATIENT.lower()}  "
    assert len(select(datasets, ANY)) == 1


def test_a_site_may_say_that_a_scanner_s_counts_are_wrong() -> None:
    datasets = list(phantom().datasets)
    for dataset in datasets:
        dataset.ImagesInAcquisition = SLICES + 1
    (chosen,) = select(datasets, ANY)
    assert chosen.series.incomplete == (f"{SLICES} of {SLICES + 1} images (Images in Acquisition)",)
    (chosen,) = select(datasets, Rules((Rule("head", ignore_counts=True),)))
    assert chosen.series.incomplete == ()


def test_the_real_series(tmp_path: Path) -> None:
    """Spacing by position is 6.5 mm where Slice Thickness says 5."""
    import os

    folder = Path(os.environ.get("EQUIPOISE_DATA", "")) / "dicom"
    if not folder.is_dir():
        pytest.skip("needs EQUIPOISE_DATA")
    for name, size, gap in (("study1-t1-post", (22, 512, 512), 6.5), ("study3-t1-post", (22, 320, 280), 6.5)):
        shutil.copytree(folder / name, tmp_path / name)
        (chosen,) = select(tmp_path / name, Rules((Rule("head", modality="MR", plane="axial"),)))
        image = chosen.series.image()
        assert image.pixels.shape[1:] == size and image.spacing[0] == pytest.approx(gap, abs=1e-4)
