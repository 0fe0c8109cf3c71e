"""What may come in, and what a full disk does."""

from __future__ import annotations

import os
from pathlib import Path
from time import time

import pytest
from equipoise_clinic.audit import Kind, append, verify
from equipoise_clinic.gateway.intake import Outcome
from equipoise_clinic.gateway.spool import OutOfRoom
from pydicom.uid import Comprehensive3DSRStorage, ParametricMapStorage, SegmentationStorage

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
    (received,) = desk.store.studies.all()
    assert received.revision == 3


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
    assert desk.store.studies.all() == [] and not list((desk.directory / "incoming").iterdir())
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
    assert desk.store.studies.all() == []
