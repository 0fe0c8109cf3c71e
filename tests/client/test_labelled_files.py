"""Labelled folders as people have them: nothing is passed over, nothing ordinary is refused, no traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from equipoise_client.errors import InvalidInput
from equipoise_client.images.labelled import read_labelled
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from PIL import Image


def contract(task: Task, classes: tuple[str, ...], activation: Activation = Activation.SOFTMAX) -> Contract:
    return Contract("m", task, activation, classes, 1, (8, 8), (8, 8), (8, 8), Preprocessing((ZScore(),)), ())


CLASSIFIER = contract(Task.CLASSIFICATION, ("normal", "a", "b"))
SEGMENTER = contract(Task.SEGMENTATION, ("background", "lesion"))


def picture(path: Path, values: object = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, np.uint8), (8, 8))).save(path)
    return path


def classified(root: Path, table: bytes | str, names: tuple[str, ...] = ("1.png", "2.png")) -> Path:
    for name in names:
        picture(root / "images" / name)
    (root / "cases.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


TABLES: dict[str, bytes | str] = {
    "commas": "file,label,patient\n1.png,a,Müller\n2.png,b,x\n",
    "semicolons, spaces, another case": " File ; LABEL ;Patient\n images/1.png ; a ;Müller\n2.png;b;x\n",
    "tabs": "file\tlabel\tpatient\n1.png\ta\tMüller\n2.png\tb\tx\n",
    "Excel's first line": "sep=;\r\nfile;label;patient\r\n1.png;a;Müller\r\n2.png;b;x\r\n",
    "a byte-order mark": "\ufefffile,label,patient\n1.png,a,Müller\n2.png,b,x\n",
    "Unicode text": "file\tlabel\tpatient\r\n1.png\ta\tMüller\r\n2.png\tb\tx\r\n".encode("utf-16"),
    "file is not first, empty rows and columns": "patient,label,file,\nMüller,a,1.png,\n\n,,,\nx,b,2.png\n",
    "names without endings, backslashes": "file,label,patient\nimages\\1.png,a,Müller\n2,b,x\n",
    "one-hot": "file,normal,a,b,patient\n1.png,0.0,1.0,0.0,Müller\n2.png,0,0,1,x\n",
    "one-hot in words": "file,Normal,A,B,patient\n1.png,FALSE,TRUE,FALSE,Müller\n2.png,no,no,yes,x\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_any_dialect_are_read(tmp_path, kind):
    cases = read_labelled(classified(tmp_path, TABLES[kind]), CLASSIFIER)
    assert [(int(case.truth), case.patient) for case in cases] == [(1, "Müller"), (2, "x")]


def test_a_table_of_excel_is_read_and_said(tmp_path):
    """Its own code is a guess: names and patients depend on it."""
    table = "file;label;patient\n1.png;a;Müller\n".encode("cp1252")
    with pytest.warns(UserWarning, match="cp1252"):
        (case,) = read_labelled(classified(tmp_path, table, ("1.png",)), CLASSIFIER)
    assert case.patient == "Müller"


def test_absolute_paths_are_those_in_the_folder(tmp_path, monkeypatch):
    """Also where the folder is named by a relative path, and through links."""
    root = classified(tmp_path / "data", f"file,label\n{tmp_path}/data/images/1.png,a\n", ("1.png",))
    (tmp_path / "elsewhere").mkdir()
    (root / "images" / "1.png").replace(tmp_path / "elsewhere" / "1.png")
    (root / "images" / "1.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert [case.name for case in read_labelled(Path("data"), CLASSIFIER)] == ["images/1.png"]
    (root / "cases.csv").write_text(f"file,label\n{tmp_path}/elsewhere/1.png,a\n")
    with pytest.raises(InvalidInput, match="lies outside of data"):
        read_labelled(Path("data"), CLASSIFIER)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,label,Label\n1.png,a,b\n2.png,b,a\n", "columns label, Label have the same name"),
        ("file,label\n1.png,a\n", r"2\.png has no row in cases.csv \(1 such"),
        ("label,file\na\nb,2.png\n", "row 1 states no file"),
        ("file,label\n1.png,a,b\n2.png,b\n", "row of 1.png has more cells"),
        ("picture,label\n1.png,a\n", r"expected a column `file`.*got \['picture', 'label'\]"),
        ("file,normal,a,b\n1.png,1,1,0\n2.png,0,0,1\n", "label '1;1;0'"),
        ("file,normal,a,b\n1.png,0,0,0\n2.png,0,0,1\n", "label '0;0;0'"),
        ("file,label\n1.png,a\n2.png\n", "2.png has no label"),
        (b"file,label\n1.png,a\n2.png,\x81\n", "neither in UTF-8 nor in cp1252"),
        (b"file,label\n1.png,a\0\n2.png,b\n", "label 'a.*expects normal, a, b"),
        ("", "expected a column `file`"),
    ],
)  # fmt: skip
def test_tables_that_say_too_little_or_too_much_are_refused(tmp_path, table, words):
    with pytest.raises(InvalidInput, match=words):
        read_labelled(classified(tmp_path, table), CLASSIFIER)


def segmented(root: Path) -> Path:
    picture(root / "images" / "1.png")
    picture(root / "labels" / "1.png", np.eye(8))
    return root


def test_images_in_folders_of_their_own_have_labels_in_the_same(tmp_path):
    root = segmented(tmp_path)
    picture(root / "images" / "p" / "1.png")
    picture(root / "labels" / "p" / "1.png", 1)
    assert [int(case.truth.sum()) for case in read_labelled(root, SEGMENTER)] == [8, 64]
    (root / "labels" / "p" / "1.png").unlink()
    with pytest.raises(InvalidInput, match=r"images/p/1\.png has no label: expected labels/p/1\.png"):
        read_labelled(root, SEGMENTER)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("labels/2.png", "labels/2.png is a label without an image"),
        ("labels/other/1.png", "labels/other/1.png is a label without an image"),
        ("images/2.mha", r"2.mha is an image of a kind that is not read here \(1 such"),
        ("images/2.ima", "images/2.ima has no label"),
        ("images/2.dicom", "images/2.dicom has no label"),
    ],
)
def test_files_that_would_be_passed_over_are_named(tmp_path, name, words):
    picture(segmented(tmp_path) / "made.png").rename(tmp_path / "file")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "file").rename(tmp_path / name)
    with pytest.raises(InvalidInput, match=words):
        read_labelled(tmp_path, SEGMENTER)


def test_what_is_no_image_or_lies_elsewhere_does_no_harm(tmp_path):
    """Notes, thumbnails, test images of the Decathlon."""
    root = segmented(tmp_path)
    (root / "images" / "notes.txt").write_text("x")
    (root / "images" / "Thumbs.db").write_text("x")
    picture(root / "images" / ".thumbnails" / "1.png")
    picture(root / "imagesTs" / "9.png")
    assert len(read_labelled(root, SEGMENTER)) == 1


THREE = contract(Task.SEGMENTATION, ("background", "a", "b"))
MAP = np.arange(64).reshape(8, 8) % 3


def palette(path: Path, colours: list[tuple[int, int, int]], alpha: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(MAP.astype(np.uint8), "P")
    image.putpalette([part for colour in colours for part in colour])
    image.save(path, **({} if alpha is None else {"transparency": alpha}))


@pytest.mark.parametrize("alpha", [None, 0])
@pytest.mark.parametrize(
    "colours",
    [[(0, 0, 0), (128, 0, 0), (0, 128, 0)], [(0,) * 3, (127,) * 3, (255,) * 3], [(0,) * 3, (1,) * 3, (2,) * 3]],
    ids=["Pascal VOC", "greys", "greys that say the same"],
)
def test_the_entries_of_a_palette_are_the_classes(tmp_path, colours, alpha):
    """Its colours are for the eye; the background is often transparent."""
    picture(tmp_path / "images" / "1.png")
    palette(tmp_path / "labels" / "1.png", colours, alpha)
    (case,) = read_labelled(tmp_path, THREE)
    assert np.array_equal(case.truth, MAP)


def test_greys_of_a_palette_that_say_something_else_are_refused(tmp_path):
    """Which of the two was meant cannot be told: classes would change places."""
    picture(tmp_path / "images" / "1.png")
    palette(tmp_path / "labels" / "1.png", [(0, 0, 0), (2, 2, 2), (1, 1, 1)])
    with pytest.raises(InvalidInput, match="entries make other classes than their greys"):
        read_labelled(tmp_path, THREE)


def test_a_background_needs_no_mask_and_folders_are_found_by_plain_names(tmp_path):
    """labels/Lesion/ alone is enough where the background excludes it; several must not overlap."""
    picture(tmp_path / "images" / "1.png")
    picture(tmp_path / "labels" / "A" / "1.png", (MAP == 1) * 255)
    with pytest.raises(InvalidInput, match="has folders A; expected one for each of background, a, b"):
        read_labelled(tmp_path, THREE)
    picture(tmp_path / "labels" / "b" / "1_mask.png", (MAP == 2) * 255)
    (case,) = read_labelled(tmp_path, THREE)
    assert np.array_equal(case.truth, MAP)
    picture(tmp_path / "labels" / "b" / "1_mask.png", 255)
    with pytest.raises(InvalidInput, match="exactly one of background, a, b"):
        read_labelled(tmp_path, THREE)
    regions = contract(Task.SEGMENTATION, ("whole tumour", "b"), Activation.SIGMOID)
    (tmp_path / "labels" / "A").rename(tmp_path / "labels" / "Whole_Tumour")
    (case,) = read_labelled(tmp_path, regions)
    assert np.array_equal(case.truth, np.stack([MAP == 1, np.ones_like(MAP)]))


IMAGES = np.zeros((2, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"images": np.float32(1)}, r"shape \[\]; expected numbers \[n, \*S\]"),
        ({"images": np.array(["a", "b"])}, "expected numbers"),
        ({"images": np.zeros((2, 8, 8, 8, 8))}, r"takes \[n, 1, 8, 8\]"),
        ({"images": np.zeros((2, 8, 8, 3))}, r"takes \[n, 1, 8, 8\]"),
        ({"ids": ["a"]}, r"`ids` has the shape \[1\]; expected one for each of the 2"),
        ({"ids": ["a", "a"]}, "`ids` repeat"),
        ({"patients": "x"}, r"`patients` has the shape \[\]"),
        ({"groups": [["x", "y"]]}, r"`groups` has the shape \[1, 2\]"),
        ({"labels": 1}, "2 images and 1 labels"),
        ({"spacing": ["1", "1"]}, "expected numbers, mm per axis"),
    ],
)
def test_archives_that_do_not_fit_together_are_refused(tmp_path, entries, words):
    np.savez(tmp_path / "a.npz", **{"images": IMAGES, "labels": [0, 1], **entries})
    with pytest.raises(InvalidInput, match=words):
        read_labelled(tmp_path / "a.npz", CLASSIFIER)
