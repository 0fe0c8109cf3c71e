"""`equipoise rank` as it is typed, against a server whose answers are known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equipoise_client import InvalidInput, UncertaintyClient
from equipoise_client.cli.main import main
from equipoise_core.scores import scores_of
from equipoise_lab.rank.command import COLUMNS
from equipoise_lab.rank.survey import FailedImage, SurveyedImage, SurveyRequest, image_files, known_score, survey


def run(capsys: Any, triton: Any, *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `equipoise rank …`."""
    with pytest.raises(SystemExit) as ended:
        main(["rank", *(str(word) for word in words), "--url", triton.url])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """a is the most uncertain (its maximum is the score), b and copy are one image, c is less uncertain."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for name, level, peak in (("a", 0.0, 9.0), ("b", 1.0, 8.0), ("copy", 1.0, 8.0), ("c", 50.0, 60.0 / 9)):
        image = np.full((28, 28), level, np.float32)
        image[:2, :2] = peak
        np.save(folder / f"{name}.npy", np.minimum(image, peak))
    return folder


def override(triton: Any, contract: Any, **changes: Any) -> None:
    """From now on every record says this."""
    record = {
        "model_digest": contract.model_digest,
        "policy_digest": "p" * 64,
        "samples": 20,
        "samples_planned": 20,
        "scores": {"mutual_information": 0.1, "predictive_entropy": 0.2},
        "statistics": {"level": 1.0},
        "alpha": 0.1,
        "delta": 0.05,
    }
    triton.overrides["record"] = np.array([[json.dumps({**record, **changes}).encode()]], object)


def test_the_csv_says_who_comes_first_and_why(capsys, triton, pool, tmp_path):
    """Ranks from 1; copies are proposed once; whatever is left follows by score."""
    code, out, _ = run(capsys, triton, "chest", pool, "--count", "3", "--out", tmp_path / "new" / "ranking.csv")
    assert code == 0 and "3 of 4 images to label first" in out
    with (tmp_path / "new" / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [Path(row["file"]).stem for row in rows] == ["a", "c", "b", "copy"]
    assert [row["proposed"] for row in rows] == ["yes", "yes", "yes", "no"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["distance"] == "" and float(rows[3]["distance"]) == 0.0
    assert {row["route"] for row in rows} == {"accept"} and "at most 0.2" in rows[0]["reason"]
    assert float(rows[0]["score"]) == pytest.approx(9.0)


def test_the_order_of_the_arguments_changes_nothing(capsys, triton, pool, tmp_path):
    files = sorted(pool.iterdir())
    for name, given in (("one", files), ("other", [files[0], *files[::-1]])):
        assert run(capsys, triton, "chest", *given, "--count", "2", "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_json_is_one_object(capsys, triton, chest, pool):
    code, out, err = run(capsys, triton, "chest", pool, "--count", "1", "--json")
    said = json.loads(out)
    assert code == 0 and not err
    assert said["score"] == "mutual_information" and said["model_digest"] == chest.model_digest
    assert said["pseudo_labels"] is None and said["errors"] == [] and said["labelled"] == 0
    assert [row["proposed"] for row in said["ranking"]] == [True, False, False, False]
    assert set(said["ranking"][0]) == set(COLUMNS)


def test_a_segmentation_goes_by_its_rim(capsys, triton, tmp_path):
    np.save(tmp_path / "a.npy", np.eye(8))
    assert json.loads(run(capsys, triton, "cells", tmp_path / "a.npy", "--json")[1])["score"] == "rim_epistemic"


@pytest.mark.parametrize(
    ("name", "change", "score"),
    [
        ("chest", {}, "mutual_information"),
        ("chest", {"sites": ()}, "lack_of_confidence"),
        ("cells", {"sites": ()}, "lack_of_soft_dice_confidence"),
        ("cells", {"sites": (), "states_moments": True}, "rim_epistemic"),
    ],
)
def test_a_model_is_ranked_by_a_score_that_it_has(request, name, change, score):
    """A single pass has no epistemic score unless the network states it; then it has a ranking of its own too."""
    contract = replace(request.getfixturevalue(name), **change)
    assert known_score(contract, None) == score in scores_of(contract)
    for other in scores_of(contract):
        assert known_score(contract, other) == other
    with pytest.raises(InvalidInput, match=f"no score 'epistemic_deviation'; it has .*{score}"):
        known_score(contract, "epistemic_deviation")


def test_a_file_without_an_answer_stops_nobody(capsys, triton, pool):
    """It is listed at review with its error and is not proposed; the exit code says that there was one."""
    (pool / "broken.png").write_text("not a picture")
    code, out, _ = run(capsys, triton, "chest", pool, pool / "absent.npy", "--json")
    said = json.loads(out)
    failed = [row for row in said["ranking"] if "error" in row]
    assert code == 1 and len(said["errors"]) == 2
    assert {Path(row["file"]).name for row in failed} == {"broken.png", "absent.npy"}
    assert all(row["route"] == "review" and row["rank"] is None and not row["proposed"] for row in failed)
    assert sum(row["proposed"] for row in said["ranking"]) == 3


def test_rejected_images_are_listed_apart(capsys, triton, pool):
    """They may be asked for."""
    triton.overrides["route"] = np.array([[b"reject"]], object)
    code, out, _ = run(capsys, triton, "chest", pool)
    assert code == 0 and "4 rejected as unsuitable" in out
    rows = json.loads(run(capsys, triton, "chest", pool, "--json")[1])["ranking"]
    assert len(rows) == 4 and not any(row["proposed"] or row["rank"] for row in rows)
    rows = json.loads(run(capsys, triton, "chest", pool, "--json", "--include-rejected")[1])["ranking"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]


def test_what_is_labelled_is_not_proposed(capsys, triton, pool, tmp_path):
    """By what the image is, not by its name; of a folder with images and labels, the images count."""
    for name in ("images", "labels"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
    np.save(tmp_path / "labelled" / "images" / "known.npy", np.load(pool / "a.npy"))
    (tmp_path / "labelled" / "labels" / "known.npy").write_text("never read")
    said = json.loads(run(capsys, triton, "chest", pool, "--labelled", tmp_path / "labelled", "--json")[1])
    assert said["labelled"] == 1 and not said["errors"]
    proposed = [Path(row["file"]).stem for row in said["ranking"] if row["proposed"]]
    assert sorted(proposed) == ["b", "c"]


def test_what_stopped_early_is_asked_again(capsys, triton, chest, pool):
    """Scores of fewer samples are too low; the route is that of the first answer."""
    override(triton, chest, samples=8)
    assert run(capsys, triton, "chest", pool / "a.npy")[0] == 0
    assert ["samples" in given for given in triton.tensors] == [False, True]
    assert triton.tensors[1]["samples"].tolist() == [[20]]


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"mutual_information": None}},
        {"scores": {}},
        {"statistics": None},
        {"statistics": {"level": None}},
    ],
)
def test_a_record_without_numbers_is_no_ranking(capsys, triton, chest, pool, changes):
    override(triton, chest, **changes)
    code, out, _ = run(capsys, triton, "chest", pool / "a.npy", "--json")
    assert code == 1 and "cannot be ranked" in json.loads(out)["errors"][0]["error"]


def test_scores_of_two_models_are_never_mixed(triton, chest, pool):
    """A policy that is replaced in the middle: what comes after has no place."""
    files = image_files([pool])
    with UncertaintyClient(triton.url) as client:
        answers = survey(client, chest, files[:3], SurveyRequest("mutual_information"))
        assert isinstance(next(answers), SurveyedImage)
        override(triton, chest, policy_digest="another")
        later = list(answers)
    assert [type(each) for each in later] == [FailedImage, FailedImage]
    assert "replaced" in later[0].error


@pytest.mark.parametrize(
    "words",
    [
        ["chest"],
        ["chest", "POOL", "--count", "0"],
        ["chest", "POOL", "--count", "5", "--candidates", "4"],
        ["chest", "POOL", "--score", "rim_epistemic"],
        ["chest", "POOL", "--confidence", "0.4"],
        ["chest", "POOL", "--pseudo-labels", "POOL"],
        ["chest", "EMPTY"],
        ["chest", "POOL", "--spacing", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_two(capsys, triton, pool, tmp_path, words):
    (tmp_path / "empty").mkdir()
    places = {"POOL": str(pool), "EMPTY": str(tmp_path / "empty")}
    code, out, err = run(capsys, triton, *(places.get(word, word) for word in words))
    assert code == 2 and not out and err.strip()
    assert not triton.tensors


def test_no_server_is_said_once(capsys, triton, pool):
    code, out, err = run(capsys, triton, "nobody", pool)
    assert code == 1 and not out and "nobody" in err


def test_folders_are_searched_for_images(tmp_path):
    """At any depth and by ending; neither hidden files nor pseudo-labels; a file that is named twice counts once."""
    for name in ("b/x.NII.GZ", "a.png", ".a.png", ".hidden/c.png", "notes.txt", "a.pseudo-label.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = image_files([tmp_path, tmp_path / "a.png", tmp_path / "b" / ".." / "a.png", tmp_path / "none.png"])
    assert sorted(path.name for path in found) == ["a.png", "none.png", "x.NII.GZ"]
    (tmp_path / "void").mkdir()
    with pytest.raises(InvalidInput, match=r"void holds no image files; expected names that end in .*\.dcm"):
        image_files([tmp_path / "void"])


def test_data_as_calibrate_takes_it(capsys, triton, pool, tmp_path):
    """Folders with labels beside the images, nnU-Net's, and archives: the same images, by name."""
    images = [np.load(file) for file in sorted(pool.glob("*.npy"))]
    for layout in ("images", "imagesTr"):
        (tmp_path / layout / layout).mkdir(parents=True)
        (tmp_path / layout / "labels").mkdir()
        for number, image in enumerate(images):
            np.save(tmp_path / layout / layout / f"{number}.npy", image)
            np.save(tmp_path / layout / "labels" / f"{number}.npy", image)
    np.savez(tmp_path / "cases.npz", images=images, labels=np.zeros(4, np.uint8), ids=["w", "x", "y", "z"])
    rankings = {}
    for name in ("images", "imagesTr", "cases.npz"):
        code, out, _ = run(capsys, triton, "chest", "--data", tmp_path / name, "--json")
        assert code == 0
        rankings[name] = [(Path(row["file"]).name, row["score"]) for row in json.loads(out)["ranking"]]
    numbers = dict(zip(("w", "x", "y", "z"), ("0.npy", "1.npy", "2.npy", "3.npy"), strict=True))
    assert rankings["images"] == rankings["imagesTr"]
    assert [(numbers[name], score) for name, score in rankings["cases.npz"]] == rankings["images"]


@pytest.mark.parametrize(
    "entries",
    [
        {"images": np.zeros((2, 4, 4)), "ids": ["a", "a"]},
        {"images": np.array(["a", "b"])},
        {"images": np.zeros(2, object)},
    ],
)
def test_an_archive_that_cannot_be_read_is_said(tmp_path, entries):
    """Two images of one name could not be told apart in a ranking."""
    np.savez(tmp_path / "cases.npz", **entries)
    with pytest.raises(InvalidInput, match=r"cases\.npz"):
        image_files([tmp_path / "cases.npz"])
