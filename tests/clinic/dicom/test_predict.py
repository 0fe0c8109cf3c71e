"""`equipoise predict` on folders with DICOM series."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from equipoise_client.cli.main import main
from equipoise_client.cli.predict import free_place

from ...support.phantom import NAME, PATIENT, phantom


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "study"
    place.mkdir()
    for number, dataset in enumerate(phantom().datasets):
        dataset.save_as(place / f"{number}.dcm", enforce_file_format=True)
    return place


@pytest.fixture(autouse=True)
def served(triton, head) -> None:
    triton.contracts["head"] = head


def run(capsys: Any, *words: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_folder_gives_the_objects(capsys, triton, folder, tmp_path) -> None:
    """A picture, and one file for each object that a PACS would store; the JSON names them and nobody."""
    code, out, err = run(capsys, "predict", "head", folder, "--url", triton.url, "--json", "--out", tmp_path / "out")
    (found,) = json.loads(out)
    assert code == 0 and not err and found["route"] == "accept" and found["file"] == str(folder)
    ends = ("png", "seg.dcm", "epistemic.dcm", "aleatoric.dcm", "sr.dcm")
    assert [Path(path).name for path in found["written"]] == [f"study.head.{end}" for end in ends]
    assert [pydicom.dcmread(path).Modality for path in found["written"][1:]] == ["SEG", "OT", "OT", "SR"]
    assert NAME not in out and PATIENT not in out


def test_a_folder_that_is_rejected_goes_to_review(capsys, triton, folder) -> None:
    """With the reason, without the patient, and the others go on."""
    (folder / "3.dcm").unlink()
    good = folder.parent / "good"
    good.mkdir()
    for number, dataset in enumerate(phantom().datasets):
        dataset.save_as(good / f"{number}.dcm", enforce_file_format=True)
    code, out, _ = run(capsys, "predict", "head", folder, good, "--url", triton.url, "--json")
    bad, fine = json.loads(out)
    assert code == 1 and bad["route"] == "review" and bad["error"].startswith("slices are missing")
    assert fine["route"] == "accept" and "error" not in fine


def test_rules_choose(capsys, triton, folder, tmp_path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[series]]\nmodel = "head"\nplane = "coronal"\n')
    words = ("predict", "head", folder, "--url", triton.url, "--json", "--rules", rules)
    code, out, _ = run(capsys, *words)
    assert code == 1 and "no series is cut in the plane" in json.loads(out)[0]["error"]
    rules.write_text('[[series]]\nmodel = "head"\nplane = "axial"\n')
    assert run(capsys, *words)[0] == 0
    rules.write_text('[[series]]\nmodel = "other"\n')
    code, _, err = run(capsys, *words)
    assert code == 2 and "no rule for head" in err


def test_a_table_for_people(capsys, monkeypatch, triton, folder, tmp_path) -> None:
    monkeypatch.chdir(folder.parent)  # a long path is wrapped
    code, out, _ = run(capsys, "predict", "head", folder.name, "--url", triton.url, "--out", tmp_path / "out")
    assert code == 0 and all(word in out for word in ("study", "accept", "4 mL (3.7 to 4.3)")), out


def test_results_of_this_very_folder_go_into_the_one_that_is_named(monkeypatch, tmp_path) -> None:
    """`.` and `..` have no name of their own; beside the folder that was named is somewhere else."""
    study = tmp_path / "study"
    study.mkdir()
    monkeypatch.chdir(study)
    out, taken = tmp_path / "results", set()
    assert free_place(out, Path(), taken) == out / "study"
    assert free_place(out, study, taken) == out / "study-2"
    assert free_place(out, Path("/"), taken).parent == out
