"""What may come in, and what a full disk does."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from time import time

import pytest
from equipoise_clinic.audit import Kind, append, verify
from equipoise_clinic.gateway.intake import Intake, Outcome
from equipoise_clinic.gateway.spool import OutOfRoom
from pydicom.uid import (
    Comprehensive3DSRStorage,
    DeflatedExplicitVRLittleEndian,
    ParametricMapStorage,
    SegmentationStorage,
)

from ...support.desk import Desk
from ...support.disks import small_disk
from ...support.studies import PLANTED, encoded, read, report, study


def test_an_image_lies_in_the_spool_as_it_was_sent(desk):
    (image,) = study(count=1)
    assert desk.intake.take(image, 0.0, "test") is Outcome.TAKEN
    (file,) = (desk.directory / "incoming").glob("*/*")
    assert file.read_bytes() == image


@pytest.mark.parametrize("sop_class", [SegmentationStorage, ParametricMapStorage, Comprehensive3DSRStorage])
def test_results_that_come_back_set_nothing_off(desk, sop_class):
    images = study()
    received = desk.received(images)
    desk.store.studies.end(received, "analysed")
    assert desk.intake.take(report(received.uid, sop_class), 0.0, "test") is Outcome.IGNORED
    assert desk.store.studies.get(received.key).state == "analysed"


def _cut(image: bytes) -> bytes:
    return image[:-10]


def _without(name: str):
    def change(image: bytes) -> bytes:
        dataset = read(image)
        del dataset[name]
        return encoded(dataset)

    change.__name__ = f"without_{name}"
    return change


def _unknown_class(image: bytes) -> bytes:
    """One digit of the class is wrong: still an image, and nobody else's to keep."""
    dataset = read(image)
    dataset.SOPClassUID = f"{dataset.SOPClassUID}.9"
    return encoded(dataset)


def _foreign_path(image: bytes) -> bytes:
    dataset = read(image)
    dataset.StudyInstanceUID = "../../etc/1.2"
    return encoded(dataset)


@pytest.mark.parametrize(
    "spoil",
    [_cut, lambda image: b"no DICOM at all", lambda image: image[:200], lambda image: b"", _foreign_path,
     _unknown_class, _without("PixelData"), _without("StudyInstanceUID"), _without("SeriesInstanceUID"),
     _without("Rows")],
)  # fmt: skip
def test_a_malformed_object_is_set_aside_with_a_reason_and_the_others_go_on(desk, spoil):
    good = study(count=3)
    assert desk.intake.take(good[0], 0.0, "test") is Outcome.TAKEN
    assert desk.intake.take(spoil(good[1]), 0.0, "test") is Outcome.ASIDE
    assert desk.intake.take(good[2], 0.0, "test") is Outcome.TAKEN
    (reason,) = desk.store.studies.aside().values()
    assert reason and not any(value in reason for value in PLANTED.values())
    assert len(list((desk.directory / "aside").iterdir())) == 1
    assert desk.intake.take(good[1], 0.0, "test") is Outcome.TAKEN, "a whole copy must be able to follow"
    (received,) = [each for each in desk.store.studies.all() if each.uid == str(read(good[0]).StudyInstanceUID)]
    assert len(desk.store.studies.instances(received.key)) == 3


@pytest.mark.parametrize("stated", [True, False], ids=["by its own UIDs", "by its neighbours"])
def test_a_malformed_object_marks_its_series(desk, stated):
    """Also one that does not say what it is of: whoever sent it knows the study."""
    good = study(count=3)
    (uid, series) = (str(read(good[0])[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID"))
    received = desk.received(good[:2])
    broken = _cut(good[2]) if stated else good[2][:200]
    assert desk.intake.take(broken, 0.0, "test", "" if stated else uid) is Outcome.ASIDE
    marked = desk.store.studies.get(received.key)
    assert desk.store.studies.missing(marked, series) == ("1 of its images came damaged or could not be taken",)
    assert marked.revision == received.revision + 1, "an analysis under way saw too little"


def test_a_study_of_damaged_images_alone_is_seen(desk):
    desk.intake.take(_cut(study(count=1)[0]), 0.0, "test")
    assert [each.state for each in desk.store.studies.all()] == ["receiving"]


def test_the_same_uid_with_other_pixels_takes_the_place_of_the_image_before(desk):
    """An image is known by its content; the good one after a damaged one is not thrown away."""
    images = study(count=2)
    received = desk.received(images)
    desk.store.studies.end(received, "analysed")
    corrected = read(images[1])
    corrected.PixelData = bytes(len(corrected.PixelData))
    assert desk.intake.take(encoded(corrected), 0.0, "test") is Outcome.TAKEN
    after = desk.store.studies.get(received.key)
    assert (after.state, after.revision) == ("receiving", received.revision + 1)
    files = {desk.spool.instance(*each).read_bytes() for each in desk.store.studies.instances(received.key)}
    assert files == {images[0], encoded(corrected)}
    assert len(list(desk.spool.incoming(received.key).iterdir())) == 2, "the one before is gone"
    assert [line["event"] for line in desk.lines()] == ["image replaced"]


def test_the_same_image_from_another_sender_is_the_same(desk):
    """What stands before the data set is the sender's: who it is, and with which software it sends."""
    (image,) = study(count=1)
    received = desk.received([image])
    other = read(image)
    other.file_meta.ImplementationVersionName, other.file_meta.SourceApplicationEntityTitle = "OTHER", "PACS"
    assert encoded(other) != image and desk.intake.take(encoded(other), 0.0, "test") is Outcome.KNOWN
    assert desk.store.studies.get(received.key) == received


def _deflated(megabytes: int) -> bytes:
    dataset = read(study(count=1)[0])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.Rows, dataset.Columns = 1000, 500 * megabytes
    dataset.PixelData = bytes(megabytes * 1_000_000)
    return encoded(dataset)


@pytest.mark.parametrize(("megabytes", "outcome"), [(1, Outcome.TAKEN), (64, Outcome.ASIDE)])
def test_a_deflated_object_is_not_unpacked_beyond_the_limit(tmp_path, megabytes, outcome):
    desk = Desk(tmp_path / "gateway")
    intake = Intake(desk.spool, desk.store, desk.log, desk.metrics, lambda point: None, largest=4_000_000)
    content = _deflated(megabytes)
    assert len(content) < 1_000_000
    tracemalloc.start()
    try:
        assert intake.take(content, 0.0, "test") is outcome
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
        desk.store.close()


def test_a_study_of_which_an_image_was_refused_is_incomplete_until_it_is_sent_again(desk):
    """A full disk, or a stop, in the middle of it: the sender keeps the image, and may never send it again."""
    images = study(count=3)
    series = str(read(images[0]).SeriesInstanceUID)
    received = desk.received(images[:2])
    desk.spool.reserve = 1 << 62
    with pytest.raises(OutOfRoom):
        desk.intake.take(images[2], 0.0, "test")
    assert desk.store.studies.missing(received, series)
    desk.spool.reserve = 0
    assert desk.intake.take(images[2], 0.0, "test") is Outcome.TAKEN
    assert not desk.store.studies.missing(received, series)


def test_a_study_of_which_the_first_image_was_refused_is_incomplete_likewise(desk):
    """An end slice: without it the others would pass for the whole series."""
    images = study(count=12)
    series = str(read(images[0]).SeriesInstanceUID)
    desk.spool.reserve = 1 << 62
    with pytest.raises(OutOfRoom):
        desk.intake.take(images[-1], 0.0, "test")
    desk.spool.reserve = 0
    received = desk.received(images[:-1])
    assert desk.store.studies.missing(received, series) == ("1 of its images came damaged or could not be taken",)
    whole = desk.received(images[-1:])
    assert desk.store.studies.missing(whole, series) == ()


def test_an_object_that_is_too_large_is_set_aside(desk):
    intake = Intake(desk.spool, desk.store, desk.log, desk.metrics, lambda point: None, largest=500)
    assert intake.take(study(count=1)[0], 0.0, "test") is Outcome.ASIDE
    assert "largest_megabytes" in next(iter(desk.store.studies.aside().values()))


def test_a_malformed_object_that_comes_again_and_again_is_kept_once_and_not_for_ever(desk):
    broken = _cut(study(count=1)[0])
    assert {desk.intake.take(broken, 0.0, "test") for _ in range(3)} == {Outcome.ASIDE}
    assert len(desk.store.studies.aside()) == len(list((desk.directory / "aside").iterdir())) == 1
    desk.intake.forget_aside(before=time() + 1)
    assert not desk.store.studies.aside() and not list((desk.directory / "aside").iterdir())


def test_the_reserve_is_left_alone(tmp_path):
    desk = Desk(tmp_path / "gateway", reserve=1 << 62)
    with pytest.raises(OutOfRoom):
        desk.intake.take(study(count=1)[0], 0.0, "test")
    assert desk.store.studies.instances() == [] and not list((desk.directory / "incoming").iterdir())
    desk.store.close()


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path):
    with small_disk(tmp_path / "disk", megabytes=1) as folder:
        yield folder


def test_a_full_disk_refuses_loses_nothing_and_recovers(small_disk):
    desk = Desk(small_disk / "gateway")
    images = study(count=60, rows=128, columns=128)
    taken = []
    with pytest.raises(OutOfRoom):
        for image in images:
            desk.intake.take(image, 0.0, "test")
            taken.append(image)
    assert 0 < len(taken) < len(images)
    assert not list((desk.directory / "temporary").iterdir())
    files = {file.read_bytes() for file in (desk.directory / "incoming").glob("*/*")}
    assert files == set(taken)
    (received,) = desk.store.studies.all()
    assert len(desk.store.studies.known(received.uid)) == len(taken)
    desk.spool.remove(desk.spool.incoming(received.key))  # stands for: somebody made room
    assert desk.intake.take(images[len(taken)], 0.0, "test") is Outcome.TAKEN
    desk.store.close()


def test_files_that_the_store_does_not_know_are_removed(desk):
    received = desk.received()
    desk.decided(received)
    known = {desk.spool.instance(*each) for each in desk.store.studies.instances()}
    orphans = [
        desk.spool.root / name for name in ("incoming/x/1.dcm", "outbox/y/1.dcm", "pictures/z.png", "temporary/t")
    ]
    for orphan in orphans:
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"left by a crash")
    assert desk.spool.sweep(known, {case.key for case in desk.store.cases.all()}, set()) == len(orphans)
    assert not any(orphan.exists() for orphan in orphans)
    assert all(file.exists() for file in known) and (desk.spool.outbox("c" * 16) / "3.dcm").exists()


def test_a_full_disk_leaves_the_audit_log_whole(small_disk):
    """A part of a line at its end would stop the log until somebody repairs it."""
    log = small_disk / "decisions.jsonl"
    append(log, Kind.DECISION, {"format": "test/1"})
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - 4096)  # room for a part of the line
    with pytest.raises(OSError, match="No space"):
        append(log, Kind.DECISION, {"format": "x" * 9000})
    ballast.unlink()
    append(log, Kind.DECISION, {"format": "test/2"})
    assert not list(verify(log)) and len(log.read_text().splitlines()) == 2


def test_what_comes_while_the_gateway_stops_is_refused(desk):
    desk.intake.close()
    with pytest.raises(OutOfRoom):
        desk.intake.take(study(count=1)[0], 0.0, "test")
    assert desk.store.studies.instances() == []
