"""The `equipoise` command as it is typed, in a process of its own where imports or exit codes count."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
from equipoise_client.cli.main import main
from equipoise_client.cli.verbs import registered
from equipoise_client.figure import epistemic_limit
from equipoise_client.prediction import in_words
from PIL import Image
from scipy.ndimage import distance_transform_edt

HEAVY = ("torch", "onnx", "onnxruntime", "matplotlib", "scipy", "PIL", "nibabel", "pydicom")


@pytest.fixture
def brain_file(tmp_path: Path) -> Path:
    volume = np.random.default_rng(0).random((12, 14, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, 1.0, 1.05, 1.0])), tmp_path / "brain.nii.gz")
    return tmp_path / "brain.nii.gz"


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `equipoise …`."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after `code`."""
    show = f"\nimport sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    ran = subprocess.run([sys.executable, "-c", code + show], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    """`import equipoise_client` loads neither a framework nor a reader of files."""
    assert loaded_by("import equipoise_client") == set()


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["--version"]], ids=" ".join)
def test_command_loads_only_what_was_called(words: list[str]) -> None:
    """Help and version of the command, and help of predict, load neither torch nor a reader."""
    code = f"from equipoise_client.cli.main import main\ntry: main({words})\nexcept SystemExit as e: assert not e.code"
    assert loaded_by(code) == set()


def test_help_lists_the_verbs(capsys: Any) -> None:
    """`equipoise --help` names every verb below its package, and `predict --help` shows how it is used."""
    _, text, _ = run(capsys, "--help")
    panels = text.split("╭─ ")
    for name, verb in registered().items():
        (panel,) = (each for each in panels if each.lower().startswith(f"{verb.package} "))
        assert f"│ {name} " in panel
    _, text, _ = run(capsys, "predict", "--help")
    assert "equipoise predict hippocampus brain.nii.gz" in text


def test_missing_extra_is_named() -> None:
    """Where an optional package is missing, the message says what to install."""
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from equipoise_client.images import read_image\n"
        "from equipoise_client import MissingExtra\n"
        "try: read_image(sys.argv[1])\n"
        "except MissingExtra as error: print(error)"
    )
    source = pydicom.data.get_testdata_file("CT_small.dcm")
    ran = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, timeout=60)
    assert "pip install 'equipoise[clinic]'" in ran.stdout, ran.stderr


def test_json_is_one_list_and_a_bad_file_stops_nobody(capsys: Any, triton: Any, brain_file: Path) -> None:
    """Every file has its object; the bad one is at review with an error, and the exit code says that there was one."""
    bad = brain_file.with_name("broken.png")
    bad.write_text("not a picture")
    code, out, _ = run(capsys, "predict", "brain", bad, brain_file, "--url", triton.url, "--json")
    first, second = json.loads(out)
    assert code == 1
    assert first["route"] == "review" and "looks like text" in first["error"] and first["volume"] is None
    assert second["route"] == "accept" and "error" not in second
    assert {"file", "model", "route", "reason", "case_score", "samples_used", "volume", "record"} <= set(first)
    assert set(first) - {"error"} == set(second)
    assert second["volume"]["anterior"] == pytest.approx({"mean": 2.0, "sd": 0.1, "low": 1.8, "high": 2.2})


def test_all_good_is_exit_zero(capsys: Any, triton: Any, brain_file: Path, monkeypatch: Any) -> None:
    """The table shows file, route, score, volume with interval, samples and reason."""
    monkeypatch.chdir(brain_file.parent)
    code, out, _ = run(capsys, "predict", "brain", brain_file.name, "--url", triton.url, "--samples", "7")
    assert code == 0
    assert all(word in out for word in ("brain.nii.gz", "accept", "0.1250", "4 mL (3.7 to 4.3)", "7", "at most 0.2"))


@pytest.mark.parametrize(
    "words",
    [
        ["predict"],
        ["predict", "brain"],
        ["predict", "brain", "a.png", "--samples", "0"],
        ["predict", "brain", "a.png", "--seed", "-1"],
        ["predict", "brain", "a.png", "--spacing", "1,zero"],
        ["predict", "brain", "a.png", "--spacing", "1,0,1"],
        ["predict", "brain", "a.png", "--url", "http://localhost"],
        ["predict", "brain", "a.png", "--tls-root", "/nowhere.pem"],
        ["predict", "brain", "a.png", "--priority", "now"],
        ["predicts"],
        ["--verbose"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_two(capsys: Any, words: list[str]) -> None:
    """A call that makes no sense ends with 2 and says why on stderr, before anything is sent."""
    code, out, err = run(capsys, *words)
    assert code == 2 and not out and err.strip()


def test_spacing_is_for_files_without_their_own(capsys: Any, triton: Any, brain_file: Path, tmp_path: Path) -> None:
    """--spacing fills a gap and never overrides what a file states."""
    np.save(tmp_path / "a.npy", np.ones((4, 4, 4)))
    run(capsys, "predict", "brain", tmp_path / "a.npy", brain_file, "--url", triton.url, "--spacing", "1,1.1,0.9")
    assert triton.tensors[0]["spacing"][0].tolist() == pytest.approx([1.0, 1.1, 0.9])
    assert triton.tensors[1]["spacing"][0].tolist() == pytest.approx([1.0, 1.0, 1.05])


def test_no_server_sends_all_to_review(capsys: Any, triton: Any, brain_file: Path) -> None:
    """Without a server, or with one that knows no such model, every file is at review with the reason."""
    with socket.socket() as silent:
        silent.bind(("localhost", 0))  # bound but not listening: nobody else gets the port, and nobody answers
        nowhere = f"localhost:{silent.getsockname()[1]}"
        for name, url in (("nobody", triton.url), ("brain", nowhere)):
            words = ["predict", name, brain_file, brain_file, "--url", url, "--json", "--timeout", "2"]
            code, out, _ = run(capsys, *words)
            cases = json.loads(out)
            assert code == 1 and len(cases) == 2
            assert all(case["route"] == "review" and case["error"] for case in cases)


def test_results_in_the_files_own_grid(capsys: Any, triton: Any, brain_file: Path, tmp_path: Path) -> None:
    """--out writes a picture, and labels and uncertainty as NIfTI with the source's affine, voxel by voxel."""
    code, out, _ = run(
        capsys, "predict", "brain", brain_file, brain_file, "--url", triton.url, "--out", tmp_path / "o", "--json"
    )
    assert code == 0
    first, second = json.loads(out)
    assert len(first["written"]) == 3 and not set(first["written"]) & set(second["written"])
    with Image.open(first["written"][0]) as picture:
        assert min(picture.size) > 500
    source: Any = nibabel.load(brain_file)
    values = np.asarray(source.dataobj)
    for path, expected in zip(
        first["written"][1:], ((values > values.mean()) * 2, 0.05 + 0.4 * (values > values.mean())), strict=True
    ):
        written: Any = nibabel.load(path)
        np.testing.assert_allclose(np.asarray(written.dataobj), expected, atol=1e-6)
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-6)


@pytest.mark.parametrize("model", ["chest", "cells"])
def test_pictures_of_plane_images(capsys: Any, triton: Any, tmp_path: Path, model: str) -> None:
    """Classifications and 2D segmentations get a picture too."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ["predict", model, tmp_path / "a.png", "--url", triton.url, "--out", tmp_path / "o"]
    code, out, _ = run(capsys, *words)
    assert code == 0 and (tmp_path / "o" / f"a.{model}.png").stat().st_size > 5_000
    assert model == "cells" or re.search(r"pneumonia 0\.\d{3} \(mean 0\.500 ± 0\.100\)", out)


def test_the_probability_that_is_shown_is_the_recalibrated_one(capsys: Any, triton: Any, tmp_path: Path) -> None:
    """The samples' own mean is there by its name, and alone where the policy does not recalibrate."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(tmp_path / "a.png")
    _, out, _ = run(capsys, "predict", "chest", tmp_path / "a.png", "--url", triton.url, "--json")
    (found,) = json.loads(out)
    assert set(found["probability"]["pneumonia"]) == {"calibrated", "mean", "sd"}
    assert found["probability"]["pneumonia"]["calibrated"] != found["probability"]["pneumonia"]["mean"] == 0.5
    assert in_words({"calibrated": 0.5, "mean": 0.5, "sd": 0.1}) == "0.500 ± 0.100"
    assert in_words({"calibrated": 0.9, "mean": 0.5, "sd": None}) == "0.900 (mean 0.500)"
    assert in_words({"calibrated": None, "mean": None, "sd": None}) == "–"


def test_masks_and_maps_of_pictures_are_files_in_their_grid(capsys: Any, triton: Any, tmp_path: Path) -> None:
    """A folder of pictures is answered one by one; the mask is 0 and 255, as people and our own reader expect."""
    values = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.tif"):
        Image.fromarray(values).save(tmp_path / "in" / name)
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "in" / name).write_bytes(b"no picture")
    triton.overrides["labels"] = (values > 99).astype(np.uint8)[None, None]
    words = ["predict", "cells", tmp_path / "in", "--url", triton.url, "--out", tmp_path / "o", "--json"]
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert code == 0 and [Path(each["file"]).name for each in found] == ["a.png", "b.tif"]
    names = [Path(path).name for path in found[0]["written"]]
    assert names == ["a.cells.png", "a.cells.labels.png", "a.cells.epistemic.tif"]
    mask, heat = (np.asarray(Image.open(path)) for path in found[0]["written"][1:])
    assert mask.shape == heat.shape == values.shape and heat.dtype == np.float32
    np.testing.assert_array_equal(mask, np.where(values > 99, 255, 0))
    assert found[0]["share"]["nucleus"] == pytest.approx(np.mean(values > 99))


def test_the_band_of_the_outline_is_a_file_where_the_policy_promises_one(
    capsys: Any, triton: Any, tmp_path: Path
) -> None:
    """0 outside, 127 between, 254 inside: the mask grown by 3 and shrunken by 2 pixels."""
    values = np.zeros((40, 50), np.uint8)
    values[10:30, 10:40] = 200
    Image.fromarray(values).save(tmp_path / "a.png")
    triton.overrides["labels"] = (values > 99).astype(np.uint8)[None, None]
    stated = {"level": 0.9, "inner": 2.0, "outer": 3.0}
    triton.overrides["record"] = np.array([[json.dumps({"outline": stated}).encode()]], object)
    _, out, _ = run(
        capsys, "predict", "cells", tmp_path / "a.png", "--url", triton.url, "--out", tmp_path / "o", "--json"
    )
    (found,) = json.loads(out)
    assert [Path(path).name for path in found["written"]][-1] == "a.cells.outline.png"
    band = np.asarray(Image.open(found["written"][-1]))
    inside, outside = distance_transform_edt(values > 99), distance_transform_edt(values <= 99)
    np.testing.assert_array_equal(band, 127 * ((outside <= 3.0).astype(np.uint8) + (inside > 2.0)))


def test_a_picture_beside_a_dicom_study_is_not_taken_for_it(capsys: Any, triton: Any, tmp_path: Path) -> None:
    """The folder is the study, wherever in it the instances lie."""
    (tmp_path / "study" / "series").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "study" / "thumbnail.png")
    pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm")).save_as(tmp_path / "study" / "series" / "1.dcm")
    _, out, _ = run(capsys, "predict", "cells", tmp_path / "study", "--url", triton.url, "--json")
    assert [Path(each["file"]).name for each in json.loads(out)] == ["study"]


def test_a_wrong_name_lists_what_is_served(capsys: Any, triton: Any, brain_file: Path) -> None:
    """The public models alone: samplers are nobody's to ask."""
    code, out, _ = run(capsys, "predict", "brian", brain_file, "--url", triton.url, "--json")
    assert code == 1 and json.loads(out)[0]["error"].endswith("; it serves brain, cells, chest")


def test_results_that_cannot_be_written_are_not_accepted(
    capsys: Any, triton: Any, brain_file: Path, tmp_path: Path
) -> None:
    """A decision whose results are lost goes to review."""
    (tmp_path / "o" / "brain.brain.png").mkdir(parents=True)
    words = ["predict", "brain", brain_file, "--url", triton.url, "--out", tmp_path / "o", "--json"]
    code, out, _ = run(capsys, *words)
    assert code == 1 and json.loads(out)[0]["route"] == "review"


def test_heat_has_one_scale_for_all_cases(brain: Any, cells: Any) -> None:
    """The colour scale ends at the largest mutual information there can be: ln K, or ln 2 for a sigmoid."""
    assert epistemic_limit(brain) == pytest.approx(np.log(3))
    assert epistemic_limit(cells) == pytest.approx(np.log(2))


def test_patient_fields_stay_in_the_file(capsys: Any, triton: Any, tmp_path: Path) -> None:
    """No value of a DICOM file's patient fields is printed or sent, for good and for damaged files."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.PatientName = dataset.PatientID = dataset.StudyDescription = "PLANTED"
    dataset.save_as(tmp_path / "a.dcm")
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[:-9000])
    (tmp_path / "c.dcm").write_bytes(whole.replace(b"0.661468", b"PLANTED!"))
    triton.failures = [(grpc.StatusCode.INTERNAL, "no")]
    for words in ([], ["--json", "--out", tmp_path / "o"]):
        _, out, err = run(
            capsys, "predict", "chest", *(tmp_path / f"{n}.dcm" for n in "abc"), "--url", triton.url, *words
        )
        assert "PLANTED" not in out + err
    assert triton.requests and not any(b"PLANTED" in request.SerializeToString() for request in triton.requests)
    assert json.loads(out)[0]["route"] == "reject" and "modality CT given" in json.loads(out)[0]["reason"]


def test_installed_command(triton: Any, brain_file: Path) -> None:
    """The command works as a process, and its stdout with --json is nothing but JSON."""
    words = ["-m", "equipoise_client.cli.main", "predict", "brain", str(brain_file), "--url", triton.url, "--json"]
    ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and json.loads(ran.stdout)[0]["route"] == "accept"
    assert not ran.stderr
