"""Pseudo-labels: only of what a policy with a guarantee accepted, and never to be taken for truth."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from equipoise_client.errors import InvalidInput
from equipoise_client.images.labelled import read_labelled
from equipoise_lab.rank.pseudo import IGNORE
from PIL import Image

from .test_command import override, run


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pseudo-labels.json").read_text())


def expected(image: np.ndarray, label: int) -> np.ndarray:
    """What the fake server says: brighter than the mean is `label`; within half a deviation of it, it guesses."""
    near = np.abs(image - image.mean()) <= image.std() / 2
    return np.where(near, IGNORE, np.where(image > image.mean(), label, 0))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_nifti_labels_lie_in_the_images_own_grid(capsys, triton, brain, tmp_path):
    """Voxel by voxel and with the same affine, though the file is stored mirrored; the unsure are ignored."""
    values = np.random.default_rng(0).random((12, 14, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 1.05, 1.0])), tmp_path / "scan.nii.gz")
    code, out, _ = run(capsys, triton, "brain", tmp_path / "scan.nii.gz", "--pseudo-labels", tmp_path / "guessed")
    assert code == 0 and "1 pseudo-labels" in out and "not truth" in out
    written: Any = nibabel.load(tmp_path / "guessed" / "scan.pseudo-label.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected(values, 2))
    np.testing.assert_allclose(written.affine, np.diag([-1.0, 1.0, 1.05, 1.0]), atol=1e-6)
    assert written.get_data_dtype() == np.uint8
    said = manifest(tmp_path / "guessed")
    assert said["model_digest"] == brain.model_digest and said["policy_digest"] == "p" * 64
    assert (said["alpha"], said["delta"], said["confidence"], said["ignore"]) == (0.1, 0.05, 0.9, 255)
    assert "10.0%" in said["guarantee"] and "95.0%" in said["guarantee"] and "not truth" in said["warning"]
    (entry,) = said["pseudo_labels"]
    assert entry["label"] == "scan.pseudo-label.nii.gz" and len(entry["input_digest"]) == 64
    assert entry["ignored"] == pytest.approx((expected(values, 2) == IGNORE).mean())


def test_a_picture_gets_a_picture_and_an_array_an_array(capsys, triton, cells, picture, tmp_path):
    """Two files of one stem keep a label each."""
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((20, 24)))
    code, _, _ = run(capsys, triton, "cells", picture, tmp_path / "x.npy", "--pseudo-labels", tmp_path / "g")
    assert code == 0
    assert {path.name for path in (tmp_path / "g").iterdir()} == {
        "x.pseudo-label.npy", "x-2.pseudo-label.png", "pseudo-labels.json",
    }  # fmt: skip
    pixels = np.asarray(Image.open(picture)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "g" / "x-2.pseudo-label.png")), expected(pixels, 0))
    assert np.load(tmp_path / "g" / "x.pseudo-label.npy").shape == (20, 24)


def test_confidence_is_the_callers(capsys, triton, picture, tmp_path):
    """The fake server is .97 sure at most and .6 at least."""
    for confidence, share in (("0.98", 1.0), ("0.5", 0.0)):
        folder = tmp_path / confidence
        run(capsys, triton, "cells", picture, "--pseudo-labels", folder, "--confidence", confidence)
        assert manifest(folder)["pseudo_labels"][0]["ignored"] == share


def test_a_classification_is_a_table(capsys, triton, picture, tmp_path):
    """What is not confident enough is counted and left out."""
    run(capsys, triton, "chest", picture, "--pseudo-labels", tmp_path / "g")
    with (tmp_path / "g" / "pseudo-labels.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"file": str(picture), "pseudo_label": "normal", "probability": "0.970000"}
    words = ["chest", picture, "--pseudo-labels", tmp_path / "h", "--confidence", "0.99", "--json"]
    said = json.loads(run(capsys, triton, *words)[1])["pseudo_labels"]
    assert (said["written"], said["unsure"]) == (0, 1)
    assert (tmp_path / "h" / "pseudo-labels.csv").read_text().split() == ["file,pseudo_label,probability"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy_digest": None, "alpha": None, "delta": None}, "equipoise calibrate"),
        ({"alpha": None, "delta": None}, "guarantees nothing"),
    ],
)
def test_without_a_guarantee_there_are_none(capsys, triton, chest, picture, tmp_path, changes, says):
    """Even where a server says `accept`."""
    override(triton, chest, **changes)
    code, out, _ = run(capsys, triton, "chest", picture, "--pseudo-labels", tmp_path / "g", "--json")
    said = json.loads(out)["pseudo_labels"]
    assert code == 0 and said["written"] == 0 and says in said["why"] and not list((tmp_path / "g").iterdir())


@pytest.mark.parametrize("route", ["review", "reject"])
def test_only_accepted_images_get_one(capsys, triton, picture, tmp_path, route):
    triton.overrides["route"] = np.array([[route.encode()]], object)
    code, out, _ = run(capsys, triton, "cells", picture, "--pseudo-labels", tmp_path / "g")
    assert code == 0 and "none of 1 images was accepted" in out and not list((tmp_path / "g").iterdir())


def test_a_doubtful_file_gets_none(capsys, triton, tmp_path):
    """The server accepts, but the file itself raises doubts: colour for a model that expects grey."""
    colours = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "x.png")
    said = json.loads(run(capsys, triton, "chest", tmp_path / "x.png", "--pseudo-labels", tmp_path / "g", "--json")[1])
    assert said["ranking"][0]["route"] == "review" and said["pseudo_labels"]["written"] == 0


def test_what_is_labelled_gets_none(capsys, triton, picture, tmp_path):
    """An expert has spoken already."""
    np.save(tmp_path / "y.npy", np.random.default_rng(1).random((28, 28)))
    words = ["cells", tmp_path / "y.npy", "--labelled", picture, "--pseudo-labels", tmp_path / "g"]
    assert run(capsys, triton, *words)[0] == 0
    assert [Path(entry["file"]).name for entry in manifest(tmp_path / "g")["pseudo_labels"]] == ["y.npy"]
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"y.pseudo-label.npy", "pseudo-labels.json"}


def test_half_a_label_is_none(capsys, triton, tmp_path, monkeypatch):
    """A full disk: the image has no place, the others go on, and nothing that looks like a label is left."""
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).random((20, 24)))
    save = np.save

    def full(path, values):
        path.write_bytes(b"half")
        if path.name.startswith("x"):
            raise OSError("no space left on device")
        save(path, values)

    monkeypatch.setattr("equipoise_lab.rank.pseudo.np.save", full)
    words = ["cells", tmp_path / "x.npy", tmp_path / "y.npy", "--pseudo-labels", tmp_path / "g", "--json"]
    code, out, _ = run(capsys, triton, *words)
    assert code == 1 and "no space left" in json.loads(out)["errors"][0]["error"]
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"y.pseudo-label.npy", "pseudo-labels.json"}


def test_calibration_refuses_them(capsys, triton, cells, picture, tmp_path):
    """A folder of images with their pseudo-labels is not a labelled folder."""
    run(capsys, triton, "cells", picture, "--pseudo-labels", tmp_path / "data" / "labels")
    (tmp_path / "data" / "images").mkdir()
    picture.rename(tmp_path / "data" / "images" / "x.png")
    with pytest.raises(InvalidInput, match=r"x\.pseudo-label\.png is a model's own answer"):
        read_labelled(tmp_path / "data", cells)
