"""Labels as people have them: taken for what they are, or refused with what was found and what is expected."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from equipoise_client.errors import InvalidInput
from equipoise_client.images.label_values import (
    LabelTable,
    truth_of_label,
    truth_of_labels,
    truth_of_map,
    truth_of_masks,
)
from equipoise_client.images.labelled import read_labelled
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from PIL import Image


def contract_of(task, activation, *classes):
    return Contract(
        "m", Task(task), Activation(activation), classes, 1, (4, 4), (4, 4), (4, 4),
        Preprocessing((ZScore(),)), (),
    )  # fmt: skip


CHEST = contract_of("classification", "softmax", "normal", "pneumonia")
FINDING = contract_of("classification", "sigmoid", "pneumonia")
FINDINGS = contract_of("classification", "sigmoid", "edema", "No_Lung", "mass")
CELLS = contract_of("segmentation", "sigmoid", "nucleus")
ORGAN = contract_of("segmentation", "softmax", "background", "liver")
ORGANS = contract_of("segmentation", "softmax", "background", "liver", "tumour")
BRAIN = contract_of("segmentation", "sigmoid", "wt", "tc", "et")
BRATS = LabelTable.parse("wt=1,2,3; tc=1,3; et=3").checked(BRAIN)


@pytest.mark.parametrize(
    ("contract", "label", "truth"),
    [
        (CHEST, "pneumonia", 1), (CHEST, "Pneumonia", 1), (CHEST, " NORMAL ", 0), (CHEST, "1", 1), (CHEST, "0.0", 0),
        (FINDING, "1", [1]), (FINDING, "0", [0]), (FINDING, "normal", [0]), (FINDING, "no pneumonia", [0]),
        (FINDING, "PNEUMONIA", [1]), (FINDINGS, "mass;edema", [1, 0, 1]),
        (FINDINGS, "mass|no lung", [0, 1, 1]), (FINDINGS, "No Finding", [0, 0, 0]), (FINDINGS, "0;1;0", [0, 1, 0]),
    ],
)  # fmt: skip
def test_a_name_or_an_index_is_a_class(contract, label, truth):
    found = truth_of_label(label, contract, None)
    assert found.dtype == np.uint8 and found.tolist() == truth


@pytest.mark.parametrize(
    ("contract", "label"),
    [
        (CHEST, "2"), (CHEST, "-1"), (CHEST, "healthy"), (CHEST, ""), (CHEST, "normal;pneumonia"), (CHEST, "0.5"),
        (FINDING, "2"), (FINDING, "covid"), (FINDINGS, "1"), (FINDINGS, "mass;cyst"), (FINDINGS, "1;0"),
        (FINDINGS, "nan"),
    ],
)  # fmt: skip
def test_what_is_no_class_is_refused_with_what_is_expected(contract, label):
    """An index alone is ambiguous where several classes may hold: is 1 the second class, or yes?"""
    with pytest.raises(InvalidInput, match=f"(?s){label!r}.*{contract.classes[-1]}.*--label-values"):
        truth_of_label(label, contract, None)


@pytest.mark.parametrize(
    ("contract", "stored", "truth"),
    [
        (CHEST, np.array([1]), 1), (CHEST, np.array(1.0), 1), (CHEST, np.array("normal"), 0),
        (CHEST, np.array(True), 1), (CHEST, np.array([0.0, 1.0]), 1), (FINDING, np.array([0]), [0]),
        (FINDINGS, np.array([1, 0, 1]), [1, 0, 1]),
        (FINDINGS, np.array([False, False, False]), [0, 0, 0]), (FINDINGS, np.array("edema"), [1, 0, 0]),
    ],
)  # fmt: skip
def test_an_archive_may_hold_indices_names_or_one_hot(contract, stored, truth):
    assert truth_of_labels(stored, contract, None).tolist() == truth


@pytest.mark.parametrize(
    ("contract", "stored"),
    [
        (CHEST, np.array([1, 1])), (CHEST, np.array([0.3, 0.7])), (CHEST, np.array(-1)), (CHEST, np.array([0, 1, 0])),
        (FINDINGS, np.array([1, -1, 0])), (FINDINGS, np.array([1, np.nan, 0])), (CHEST, np.array(np.nan)),
    ],
)  # fmt: skip
def test_an_archives_label_that_is_no_class_is_refused(contract, stored):
    """Soft labels, uncertain findings (-1 of CheXpert), classes that are not there."""
    with pytest.raises(InvalidInput):
        truth_of_labels(stored, contract, None)


@pytest.mark.parametrize(
    ("contract", "values", "truth"),
    [
        (CELLS, [0, 255], [[0, 1]]), (CELLS, [0, 1], [[0, 1]]), (CELLS, [0, 0], [[0, 0]]),
        (CELLS, [255, 255], [[1, 1]]), (ORGAN, [0, 255], [0, 1]), (ORGANS, [2, 1], [2, 1]),
        (ORGANS, [0.996, 0], [1, 0]),
        (BRAIN, [0, 2], [[0, 0], [0, 1], [0, 0]]),
    ],
)  # fmt: skip
def test_values_of_a_map_are_classes(contract, values, truth):
    assert (
        truth_of_map(np.array([values]), contract, None).reshape(-1, len(values)).squeeze().tolist()
        == np.squeeze(truth).tolist()
    )


@pytest.mark.parametrize(
    ("contract", "values", "says"),
    [
        (CELLS, [0, 1, 255], "holds 255"), (CELLS, range(9), "holds 2, 3, 4, 5, 6, … (7 values)"),
        (ORGANS, [0, 255], "holds 255"),
        (CELLS, [0, -1], "holds -1"), (ORGAN, [0, 0.5], "no index"), (ORGAN, [0, np.nan], "no index"),
        (BRAIN, [0, 4], "holds 4"),
    ],
)  # fmt: skip
def test_values_of_no_class_are_refused_and_never_dropped(contract, values, says):
    """Instance numbers, ignored voxels, the edges of a JPEG: each needs to be said."""
    with pytest.raises(InvalidInput, match=says.replace("(", r"\(").replace(")", r"\)")):
        truth_of_map(np.array([list(values)]), contract, None)


def test_a_table_makes_regions_that_overlap():
    """BraTS: 1 necrosis, 2 oedema, 3 enhancing; and every value must be in the table."""
    truth = truth_of_map(np.array([0, 1, 2, 3]), BRAIN, BRATS)
    assert truth.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    with pytest.raises(InvalidInput, match="holds 4"):
        truth_of_map(np.array([0, 4]), BRAIN, BRATS)
    instances = LabelTable.parse("nucleus=1..500").checked(CELLS)
    assert truth_of_map(np.array([0, 7, 500]), CELLS, instances).tolist() == [[0, 1, 1]]
    with pytest.raises(InvalidInput, match="holds 501"):
        truth_of_map(np.array([501]), CELLS, instances)
    ignoring = LabelTable.parse("liver=1; tumour=2; none=0,3,-1").checked(ORGANS)
    assert truth_of_map(np.array([0, 1, 2, 3, -1]), ORGANS, ignoring).tolist() == [0, 1, 2, 0, 0]
    with pytest.raises(InvalidInput, match="exactly one"):
        truth_of_map(np.array([1]), ORGANS, LabelTable.parse("liver=1,2; tumour=1").checked(ORGANS))
    names = LabelTable.parse("normal=NORMAL,Clear; pneumonia=BACTERIA,VIRUS").checked(CHEST)
    assert [truth_of_label(each, CHEST, names).item() for each in ("clear", "BACTERIA", "virus")] == [0, 1, 1]
    with pytest.raises(InvalidInput, match="label 'covid'"):
        truth_of_label("covid", CHEST, names)


@pytest.mark.parametrize(
    ("contract", "text", "says"),
    [(BRAIN, "wt=1", "none for tc, et"), (BRAIN, "wt=1;tc=2;ed=3", "ed; m knows"), (BRAIN, "wt 1", "expected CLASS")],
)
def test_a_table_must_be_about_the_models_classes(contract, text, says):
    with pytest.raises(InvalidInput, match=says):
        LabelTable.parse(text).checked(contract)


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "whole": [1, 2]},
        {"0": "background", "1": "WT"},
    ],
)
def test_a_dataset_json_is_such_a_table(tmp_path, labels):
    """nnU-Net's names → values, and the Decathlon's values → names."""
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    contract = replace(CELLS, classes=("whole" if "whole" in labels else "wt",))
    table = LabelTable.of_dataset(tmp_path / "dataset.json").checked(contract)
    assert truth_of_map(np.array([0, 1]), contract, table).tolist() == [[0, 1]]
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(InvalidInput, match="background"):
        LabelTable.of_dataset(tmp_path / "dataset.json")


def test_one_mask_per_class():
    """0 and 1, or 0 and 255; of exclusive classes exactly one holds everywhere."""
    masks = np.array([[0, 255], [255, 255], [0, 0]])
    assert truth_of_masks(masks, BRAIN).tolist() == [[0, 1], [1, 1], [0, 0]]
    assert truth_of_masks(np.array([[1, 0], [0, 1], [0, 0]]), ORGANS).tolist() == [0, 1]
    with pytest.raises(InvalidInput, match="exactly one"):
        truth_of_masks(np.array([[1, 0], [1, 1], [0, 0]]), ORGANS)
    with pytest.raises(InvalidInput, match="holds 0, 1, 2"):
        truth_of_masks(np.array([[0, 1], [2, 1], [0, 0]]), BRAIN)


def picture(path, value=0, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full(size, value, np.uint8)
    image.flat[0] = 7
    Image.fromarray(image).save(path)


def mask(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (4, 4))).save(path)


@pytest.mark.parametrize(
    "name", ["labels/a.png", "masks/a.png", "labels/a_mask.png", "masks/a_seg.png", "labels/a.tif"]
)
def test_masks_lie_where_people_put_them(tmp_path, name):
    picture(tmp_path / "images/a.png")
    mask(tmp_path / name, 0, 255)
    (case,) = read_labelled(tmp_path, CELLS)
    assert case.truth.shape == (1, 4, 4) and case.truth.sum() == 8


def test_regions_lie_in_folders_of_their_own(tmp_path):
    """One mask per class; a class without its folder is named."""
    picture(tmp_path / "images/a.png")
    for name, values in (("wt", (255, 255)), ("tc", (0, 255))):
        mask(tmp_path / "labels" / name / "a.png", *values)
    with pytest.raises(InvalidInput, match="wt, tc; expected one for each of wt, tc, et"):
        read_labelled(tmp_path, BRAIN)
    mask(tmp_path / "labels/et/a.png", 0)
    (case,) = read_labelled(tmp_path, BRAIN)
    assert case.truth.sum(axis=(1, 2)).tolist() == [16, 8, 0]


def test_a_mask_in_colour_is_refused(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (4, 4, 3), np.uint8)).save(tmp_path / "labels/a.png")
    with pytest.raises(InvalidInput, match=r"images/a\.png: a\.png: the label is a picture in colour"):
        read_labelled(tmp_path, CELLS)


def test_folders_of_classes_under_other_names(tmp_path):
    """Case does not matter, a negative class has a folder as well, and a folder of no class is no silence."""
    for name in ("NORMAL", "Pneumonia"):
        picture(tmp_path / name / "a.png")
    assert [case.truth.tolist() for case in read_labelled(tmp_path, CHEST)] == [0, 1]
    assert [case.truth.tolist() for case in read_labelled(tmp_path, FINDING)] == [[0], [1]]
    picture(tmp_path / "covid" / "deep" / "a.png")
    with pytest.raises(InvalidInput, match=r"covid/deep/a\.png: label 'covid'.*normal, pneumonia, or 0 to 1"):
        read_labelled(tmp_path, CHEST)
    table = LabelTable.parse("normal=normal; pneumonia=pneumonia,covid")
    assert [case.truth.tolist() for case in read_labelled(tmp_path, CHEST, table=table)] == [0, 1, 1]
    picture(tmp_path / "b.png")
    with pytest.raises(InvalidInput, match="1 images that are in no class's folder"):
        read_labelled(tmp_path, CHEST)


@pytest.mark.parametrize("stated", ["images/a.png", "a.png", "a", "./images/a.png"])
def test_a_table_names_files_by_path_or_name(tmp_path, stated):
    picture(tmp_path / "images/a.png")
    (tmp_path / "cases.csv").write_text(f"file,label,patient\n{stated},1,anna\n")
    (case,) = read_labelled(tmp_path, CHEST)
    assert (case.name, int(case.truth), case.patient) == ("images/a.png", 1, "anna")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\nb.png,1\n", "'b.png': no such file"),
        ("file,label\na.png,1\na.png,0\n", "has two rows"),
        ("file,label\na.png,ill\n", "label 'ill'"),
        ("name,label\na.png,1\n", "expected a column `file`"),
    ],
)
def test_a_table_that_fits_no_file_is_refused(tmp_path, text, says):
    picture(tmp_path / "a.png")
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(InvalidInput, match=says):
        read_labelled(tmp_path, CHEST)


def test_a_row_about_no_case_is_refused(tmp_path):
    """A patient that is stated for nobody would leave cases of one patient on both sides of a split."""
    picture(tmp_path / "images/a.png")
    mask(tmp_path / "labels/a.png", 0, 1)
    picture(tmp_path / "others/b.png")
    (tmp_path / "cases.csv").write_text("file,patient\na.png,anna\nothers/b.png,anna\n")
    with pytest.raises(InvalidInput, match=r"others/b\.png \(1 such rows\), which is no image of these cases"):
        read_labelled(tmp_path, CELLS)


def test_a_column_for_each_class(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "cases.csv").write_text("file,Edema,no lung,mass\na.png,1,0,1\nb.png,0.0,0,0\n")
    assert [case.truth.tolist() for case in read_labelled(tmp_path, FINDINGS)] == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4), (2, 4, 4, 1)])
def test_an_archives_maps_may_have_an_axis_more(tmp_path, shape):
    masks = np.resize(np.array([0, 255], np.uint8), shape)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), masks=masks)
    assert [case.truth.shape for case in read_labelled(tmp_path / "a.npz", CELLS)] == [(1, 4, 4)] * 2


def test_an_archive_may_hold_a_mask_per_class(tmp_path):
    masks = np.zeros((1, 3, 4, 4), bool)
    masks[0, 0], masks[0, 1, :2] = True, True
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4)), masks=masks)
    (case,) = read_labelled(tmp_path / "a.npz", BRAIN)
    assert case.truth.sum(axis=(1, 2)).tolist() == [16, 8, 0]
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4)), masks=masks[:, :2])
    with pytest.raises(InvalidInput, match=r"shape \[2, 4, 4\] of bool; expected \[4, 4\]"):
        read_labelled(tmp_path / "a.npz", BRAIN)


def test_an_archive_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4)), labels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidInput, match=r"a\.npz cannot be read.*plain arrays"):
        read_labelled(tmp_path / "a.npz", CHEST)


def test_a_row_without_a_label_is_refused(tmp_path):
    """A short row is no case of the first class."""
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    for text in ("file,patient,label\na.png,1,1\nb.png,2\n", "file,normal,pneumonia\na.png,0,1\nb.png,1\n"):
        (tmp_path / "cases.csv").write_text(text)
        with pytest.raises(InvalidInput, match=r"b\.png has no label"):
            read_labelled(tmp_path, CHEST)


def test_a_label_belongs_to_one_image(tmp_path):
    picture(tmp_path / "images/1.2.png")
    mask(tmp_path / "labels/1.2.3.png", 0, 1)
    with pytest.raises(InvalidInput, match="has no label"):
        read_labelled(tmp_path, CELLS)


def test_a_label_that_lies_elsewhere_than_its_image_is_refused(tmp_path):
    """Left and right are exchanged in it: voxel by voxel it would be the other side's."""
    volumes = replace(
        ORGAN, spatial=("X", "Y", "Z"), nominal=(8, 8, 8), maximum=(16, 16, 16), spacing=((0.9, 1.1),) * 3,
        orientation="RAS",
    )  # fmt: skip
    values = np.zeros((8, 8, 8), np.uint8)
    values[1:3] = 1
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / folder / "a.nii.gz")
    assert read_labelled(tmp_path, volumes)[0].truth.sum() == values.sum()
    nibabel.save(nibabel.Nifti1Image(values[::-1], np.diag([-1.0, 1, 1, 1])), tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(InvalidInput, match="lies elsewhere than its image"):
        read_labelled(tmp_path, volumes)
