"""Labelled cases in each layout that is documented."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from equipoise_client.errors import InvalidInput
from equipoise_client.images.labelled import read_labelled
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from equipoise_core.targets import Target
from PIL import Image


@pytest.fixture
def classifier():
    return Contract(
        "chest", Task.CLASSIFICATION, Activation.SOFTMAX, ("normal", "pneumonia"), 1, (28, 28), (28, 28), (28, 28),
        Preprocessing((ZScore(),)), (),
    )  # fmt: skip


@pytest.fixture
def segmenter():
    return Contract(
        "hippocampus", Task.SEGMENTATION, Activation.SOFTMAX, ("background", "anterior"), 1, ("X", "Y", "Z"), (8, 8, 8),
        (64, 64, 64), Preprocessing((ZScore(),)), (), spacing=((0.9, 1.1),) * 3, orientation="RAS",
    )  # fmt: skip


@pytest.fixture
def nuclei():
    return Contract(
        "nuclei", Task.SEGMENTATION, Activation.SIGMOID, ("nucleus",), 1, ("Y", "X"), (8, 8), (64, 64),
        Preprocessing((ZScore(),)), (),
    )  # fmt: skip


def test_folders_by_class_and_a_table_are_read(tmp_path, classifier):
    """Folder names are labels; cases.csv adds patients and groups."""
    contract = classifier
    for index, image in enumerate(np.random.default_rng(0).integers(0, 255, (4, 28, 28), dtype=np.uint8)):
        folder = tmp_path / "data" / contract.classes[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    (tmp_path / "data" / "cases.csv").write_text("file,patient,group\nnormal/0.png,anna,site 1\n")
    cases = read_labelled(tmp_path / "data", contract)
    assert [int(case.truth) for case in cases] == [0, 0, 1, 1]
    assert (cases[0].patient, cases[0].group) == ("anna", "site 1")
    assert cases[1].patient != cases[0].patient
    assert cases[0].image.shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: None, "neither a folder"),
        (lambda path: path.mkdir(), "folders normal, pneumonia"),
    ],
)
def test_data_that_holds_no_cases_is_refused_with_what_is_expected(tmp_path, classifier, make, word):
    """What was given, what is expected."""
    make(tmp_path / "data")
    with pytest.raises(InvalidInput, match=word):
        read_labelled(tmp_path / "data", classifier)


def test_a_label_map_is_turned_and_resampled_with_its_image(tmp_path, segmenter):
    """Stored flipped and at 2 mm; image and label are equal, so they must be equal after preparation too."""
    voxels = np.zeros((6, 9, 12), np.uint8)
    voxels[1:3, 2:4, 1:4] = 1
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-2.0, 1.0, 1.0, 1.0])), tmp_path / folder / "a.nii.gz")
    (case,) = read_labelled(tmp_path, segmenter)
    assert case.truth.shape == case.image.shape[1:] == (12, 9, 12)
    assert case.spacing == pytest.approx((1.0, 1.0, 1.0), rel=0.01)
    overlap = (case.truth > 0) & (case.image[0] >= 0.5)
    assert overlap.sum() >= 0.8 * max((case.truth > 0).sum(), (case.image[0] >= 0.5).sum())


def test_a_label_that_may_stand_in_an_alpha_channel_is_refused(tmp_path, nuclei):
    """White everywhere, and the mask as its opacity: read without it, all of the image would be the structure."""
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 3:12] = 255
    for folder, picture in (("images", Image.fromarray(mask)), ("labels", Image.new("L", (16, 16), 255))):
        (tmp_path / folder).mkdir()
        if folder == "labels":
            picture.putalpha(Image.fromarray(mask))
        picture.save(tmp_path / folder / "a.png")
    with pytest.raises(InvalidInput, match="label with transparency"):
        read_labelled(tmp_path, nuclei)


def test_a_scaled_label_keeps_its_classes(tmp_path, segmenter):
    """NIfTI stores labels given as floats with a slope: a 1 comes back as 0.996, and is no background."""
    voxels = np.zeros((6, 9, 12))
    voxels[1:3, 2:4, 1:4], voxels[4:, 6:, 8:] = 1, 2
    label = nibabel.Nifti1Image(voxels, np.eye(4))
    label.set_data_dtype(np.uint8)
    for folder, image in (("images", nibabel.Nifti1Image(voxels.astype(np.uint8), np.eye(4))), ("labels", label)):
        (tmp_path / folder).mkdir()
        nibabel.save(image, tmp_path / folder / "a.nii.gz")
    assert 0 < np.asarray(nibabel.load(tmp_path / "labels" / "a.nii.gz").dataobj)[1, 2, 1] < 1
    several = replace(segmenter, classes=("background", "a", "b"), activation=Activation.SOFTMAX)
    (case,) = read_labelled(tmp_path, several)
    assert set(np.unique(case.truth)) == {0, 1, 2} and (case.truth == 1).sum() == (voxels == 1).sum()
    nibabel.save(nibabel.Nifti1Image(voxels / 2, np.eye(4)), tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(InvalidInput, match="no index of a class"):
        read_labelled(tmp_path, several)


def test_an_archive_with_everything_is_read(tmp_path, classifier):
    """Names, patients and groups come along; the wrong number of labels is refused."""
    images = np.zeros((3, 28, 28), np.uint8)
    np.savez(
        tmp_path / "a.npz", images=images, labels=[0, 1, 1], ids=["a", "b", "c"], patients=[7, 7, 8], groups=[1, 2, 1]
    )
    cases = read_labelled(tmp_path / "a.npz", classifier)
    assert [(case.name, case.patient, case.group, int(case.truth)) for case in cases] == [
        ("a", "7", "1", 0), ("b", "7", "2", 1), ("c", "8", "1", 1),
    ]  # fmt: skip
    np.savez(tmp_path / "b.npz", images=images, labels=[0, 1])
    with pytest.raises(InvalidInput, match="3 images and 2 labels"):
        read_labelled(tmp_path / "b.npz", classifier)


def test_where_labels_are_not_asked_for_images_alone_will_do(tmp_path, classifier, segmenter):
    """An archive or a folder; every truth is blank, in the shape that the task has."""
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(InvalidInput, match="expected `images` and `labels`"):
        read_labelled(tmp_path / "a.npz", classifier)
    assert [case.truth.shape for case in read_labelled(tmp_path / "a.npz", classifier, labels=False)] == [(), ()]
    (tmp_path / "images").mkdir()
    for name in "ba":
        nibabel.save(nibabel.Nifti1Image(np.ones((9, 8, 10), np.uint8), np.eye(4)), tmp_path / f"images/{name}.nii.gz")
    cases = read_labelled(tmp_path, segmenter, labels=False)
    assert [case.name for case in cases] == ["images/a.nii.gz", "images/b.nii.gz"]
    assert all(case.truth.shape == (9, 8, 10) and not case.truth.any() for case in cases)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no images"):
        read_labelled(tmp_path / "empty", segmenter, labels=False)


@pytest.fixture
def regression():
    return Contract(
        "bone", Task.REGRESSION, Activation.SIGMOID, (), 1, (8, 8), (8, 8), (8, 8), Preprocessing((ZScore(),)), (),
        targets=(Target("age", "mo"), Target("height", "cm")),
    )  # fmt: skip


def numbered(folder, rows, images=("a.png", "b.png")):
    folder.mkdir(parents=True)
    for index, name in enumerate(images):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_numbers_come_from_columns_named_by_target(tmp_path, regression):
    """In any order and case, with patients and groups beside them; images may lie in a folder of their own."""
    rows = ["file,patient,Height,AGE,group", "a.png,anna,151.5,130,x", "b.png,ben,99,1e2,y"]
    first, second = read_labelled(numbered(tmp_path / "data", rows), regression)
    assert (first.truth.tolist(), first.patient, first.group) == ([130.0, 151.5], "anna", "x")
    assert second.truth.tolist() == [100.0, 99.0] and second.truth.dtype == np.float64
    (tmp_path / "other" / "images").mkdir(parents=True)
    (tmp_path / "data" / "a.png").rename(tmp_path / "other" / "images" / "a.png")
    (tmp_path / "other" / "cases.csv").write_text("file,age,height\nimages/a.png,1,2\n")
    assert [case.truth.tolist() for case in read_labelled(tmp_path / "other", regression)] == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["file,age", "a.png,1", "b.png,2"], "columns file and age, height"),
        (["file,age,height", "a.png,1,2"], "b.png has no row"),
        (["file,age,height", "a.png,1,2", "b.png,,3"], "age is empty; expected a number in mo"),
        (["file,age,height", "a.png,1,2", "b.png,nan,3"], "age is nan"),
        (["file,age,height", "a.png,1,2", "b.png,3,tall"], "height is tall; expected a number in cm"),
        (["file,age,height", "a.png,1,2", "b.png,1 000,3"], "age is 1 000"),
    ],
)
def test_numbers_that_are_missing_or_none_are_refused(tmp_path, regression, rows, words):
    with pytest.raises(InvalidInput, match=words):
        read_labelled(numbered(tmp_path / "data", rows), regression)


def test_an_archive_of_numbers_is_read(tmp_path, regression):
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    age, height = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    for entries in (
        {"age": age, "height": height[:, None]},
        {"labels": np.stack([age, height], axis=1)},
    ):
        np.savez(tmp_path / "cases.npz", images=images, **entries)
        cases = read_labelled(tmp_path / "cases.npz", regression)
        assert [case.truth.tolist() for case in cases] == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    for entries, words in (
        ({"age": age}, "height"),
        ({"labels": age}, "expected one for each of age, height"),
        ({"age": age, "height": height[:2]}, r"\[2\]"),
        ({"age": age, "height": np.array([1.0, np.nan, 2.0])}, "height is nan"),
    ):
        np.savez(tmp_path / "cases.npz", images=images, **entries)
        with pytest.raises(InvalidInput, match=words):
            read_labelled(tmp_path / "cases.npz", regression)


def test_without_labels_numbers_are_not_known(tmp_path, regression):
    np.savez(tmp_path / "cases.npz", images=np.zeros((1, 8, 8), np.float32) + 1)
    (case,) = read_labelled(tmp_path / "cases.npz", regression, labels=False)
    assert np.isnan(case.truth).all() and case.truth.shape == (2,)
