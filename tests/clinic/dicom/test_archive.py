"""`equipoise send` and `fetch` against a real Orthanc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from equipoise_client import InvalidInput, ServerUnavailable
from equipoise_client.cli.main import main
from equipoise_clinic.dicom import archive

from ...support.orthanc import Site, orthanc
from ...support.phantom import NAME, PATIENT, SLICES, compressed, phantom
from ...support.result_sources import find, written

STUDY = "1.2.826.0.1.3680043.10.99.1"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with orthanc(tmp_path_factory.mktemp("orthanc")) as site:
        yield site


@pytest.fixture(autouse=True)
def empty(pacs: Site) -> None:
    for study in pacs.get("/studies"):
        pacs.delete(f"/studies/{study}")


@pytest.fixture(scope="module")
def files(head, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    written(find(phantom().datasets, head), folder)
    return folder


def run(capsys: Any, *words: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def address(pacs: Site, way: str) -> str:
    return pacs.dicomweb_url if way == "STOW" else f"dicom://{pacs.aet}@{pacs.host}:{pacs.dicom_port}"


@pytest.mark.parametrize("way", ["STOW", "C-STORE"])
def test_all_kinds_of_results_are_stored(capsys, pacs, files, way) -> None:
    """Segmentation, Parametric Maps and report, bit by bit; a repeat stores nothing twice."""
    for _ in range(2):
        code, out, err = run(capsys, "send", files, "--to", address(pacs, way), "--json")
        found = json.loads(out)
        assert code == 0 and not err and len(found) == 4 and all(each["stored"] for each in found), found
        assert NAME not in out and PATIENT not in out
    stored = pacs.instances()
    assert len(stored) == 4
    for file in files.iterdir():
        sent = pydicom.dcmread(file)
        kept = pydicom.dcmread(pydicom.filebase.DicomBytesIO(pacs.file(stored[sent.SOPInstanceUID]["ID"])))
        assert kept == sent


@pytest.mark.parametrize("way", ["STOW", "C-STORE"])
def test_compressed_instances_go_as_they_are(pacs, tmp_path, way) -> None:
    dataset = compressed(phantom().datasets[0], "JPEG2000Lossless", tmp_path)
    (stored,) = archive.send([dataset], address(pacs, way))
    assert stored.done, stored
    (kept,) = archive.fetch(pacs.dicomweb_url, STUDY)
    assert kept.file_meta.TransferSyntaxUID == pydicom.uid.JPEG2000Lossless
    assert kept.PixelData == dataset.PixelData


@pytest.mark.parametrize("way", ["STOW", "C-STORE"])
def test_one_that_is_refused_keeps_back_no_other(capsys, pacs, files, tmp_path, way) -> None:
    """A file that is none and a directory of a CD lie among good ones."""
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.FileSetID = "CD"
    directory.save_as(tmp_path / "a.dicomdir", enforce_file_format=True)
    for file in files.iterdir():
        (tmp_path / f"b-{file.name}").write_bytes(file.read_bytes())
    code, out, _ = run(capsys, "send", tmp_path, "--to", address(pacs, way), "--json")
    bad, listing, *good = json.loads(out)
    assert code == 1 and not bad["stored"] and "not a readable DICOM file" in bad["reason"]
    assert not listing["stored"] and "not an instance" in listing["reason"]
    assert len(good) == 4 and all(each["stored"] for each in good)


def test_a_study_comes_back(capsys, pacs, tmp_path) -> None:
    """By its UID, and by a query; the files are what was stored."""
    source = phantom()
    assert all(stored.done for stored in archive.send(source.datasets, pacs.dicomweb_url))
    for words in (("--study", STUDY), ("--query", "AccessionNumber=A1", "--query", "StudyDate=20240101-20241231")):
        out = tmp_path / words[0]
        code, text, _ = run(capsys, "fetch", pacs.dicomweb_url, *words, "--out", out, "--json")
        (study,) = json.loads(text)
        assert code == 0 and study["study_instance_uid"] == STUDY and len(study["files"]) == SLICES
        found = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file) for file in study["files"]}
        for dataset in source.datasets:
            assert found[dataset.SOPInstanceUID].PixelData == dataset.PixelData
        assert not list(out.rglob("*.part"))


def test_a_query_that_matches_nothing(capsys, pacs) -> None:
    code, out, err = run(capsys, "fetch", pacs.dicomweb_url, "--query", "PatientID=nobody")
    assert code == 1 and not out and "no study matches" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fetch", "URL"), "expected --study UID or --query"),
        (("fetch", "URL", "--query", "StudyDate"), "expected KEYWORD=VALUE"),
        (("fetch", "URL", "--query", "Study=1"), "not an attribute's keyword"),
        (("fetch", "URL", "--study", "1.2.3.4"), "expected --out FOLDER"),
        (("fetch", "URL", "--study", "1.2.3.4", "--out", "/tmp/none"), "no study of that UID"),
        (("fetch", "URL/none", "--study", "1.2.3.4", "--out", "/tmp/none"), "HTTP 404"),
        (("fetch", "nowhere", "--study", "1.2.3.4", "--out", "/tmp/none"), "not the address"),
        (("send", ".", "--to", "pacs:104"), "dicom://AET@host:port"),
        (("send", ".", "--to", "dicom://PACS@host:0"), "dicom://AET@host:port"),
    ],
)
def test_what_is_wrong_is_said(capsys, pacs, words, expected) -> None:
    code, _, err = run(capsys, *(word.replace("URL", pacs.dicomweb_url) for word in words))
    assert code in (1, 2) and expected in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("way", ["STOW", "C-STORE"])
def test_an_archive_that_is_away(pacs, way) -> None:
    """It is no fault of the instances: somebody tries again later."""
    to = address(pacs, way)
    pacs.stop()
    try:
        with pytest.raises(ServerUnavailable):
            list(archive.send(phantom().datasets, to))
        with pytest.raises(ServerUnavailable):
            list(archive.fetch(pacs.dicomweb_url, STUDY))
    finally:
        pacs.start()


def test_what_was_stored_before_is_told(capsys, files, pacs) -> None:
    """An archive that goes away in the middle: the error, and what became of each file."""
    pacs.stop()
    try:
        code, out, err = run(capsys, "send", files, "--to", pacs.dicomweb_url, "--json")
    finally:
        pacs.start()
    found = json.loads(out)
    assert code == 1 and "cannot be reached" in err and len(found) == 4
    assert not any(each["stored"] for each in found) and found[-1]["reason"] == "it was not sent"


def test_addresses() -> None:
    for to in ("ftp://a", "dicom://a", "dicom://a@b", "dicom://a@b:70000", ""):
        with pytest.raises(InvalidInput):
            archive.send([], to)
    for aet in ("", "   ", "A" * 17, "A\\B", "Ä"):
        with pytest.raises(InvalidInput, match="not an AE title"):
            archive.send([], "dicom://PACS@host:104", calling_aet=aet)


def test_help_has_examples(capsys) -> None:
    for verb in ("send", "fetch"):
        code, out, _ = run(capsys, verb, "--help")
        assert code == 0 and f"equipoise {verb} " in out and "Exit code" in out
