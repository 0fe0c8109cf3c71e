"""The gateway between a real Orthanc and a real Triton: studies go in, results come out, whatever happens."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from equipoise_clinic.audit import verify
from equipoise_clinic.gateway.analysis import ATTEMPTS
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair
from pydicom.uid import RLELossless, generate_uid

from ..support.asking import poll
from ..support.disks import small_disk
from ..support.gateways import KILLABLE, Running, configuration, gateway, rows, send
from ..support.killable_gateway import POINTS
from ..support.orthanc import Site, orthanc
from ..support.ports import free_port
from ..support.processes import descendants
from ..support.studies import PLANTED, encoded, read, study

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.pacs, pytest.mark.root]
needs_data = pytest.mark.skipif(not os.environ.get("EQUIPOISE_DATA"), reason="needs EQUIPOISE_DATA")

HIPPOCAMPUS = '[[series]]\nmodel = "hippocampus"\nmodality = "MR"\nminimum_slices = 20\n'
TINY = '[[series]]\nmodel = "tinyseg"\nmodality = "MR"\n'
TINY_CLASSIFIER = '[[series]]\nmodel = "tinycls"\nmodality = "MR"\n'
QUICK = {"first_seconds": 0.05, "longest_seconds": 0.2}
FAST = {"first_seconds": 0.05, "longest_seconds": 0.2, "review": "send", "reject": "send"}


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with orthanc(tmp_path_factory.mktemp("pacs")) as site:
        yield site


@pytest.fixture
def log(tmp_path: Path):
    """Where a gateway's log goes; whatever the test was about, it and the records hold no personal data."""
    yield tmp_path / "gateway.log"
    written = [tmp_path / "gateway.log", *tmp_path.glob("*/gateway/*")]
    written = [file for file in written if file.is_file()]
    assert any(file.name == "gateway.db" for file in written)
    for file in written:
        content = file.read_bytes()
        for value in (*PLANTED.values(), "Plantedname", "Plantedphysician"):
            assert value.encode() not in content, f"{value} in {file.name}"
        if file.suffix == ".log":
            assert not re.search(rb"\d+(\.\d+){4,}", content), "a DICOM UID leads back to a person"


def tiny_study(seed: int = 0) -> list[bytes]:
    """One image, which the tiny 2D segmentation takes."""
    return study(count=1, rows=16, columns=12, seed=seed)


def receiving(quiet: float = 0.2) -> dict:
    return {"port": 0, "quiet_seconds": quiet}


def stow(site: Site) -> dict:
    return {"stow_url": site.dicomweb_url, **FAST}


def found(site: Site, study_uid: str) -> dict[str, dict]:
    """What Orthanc holds of a study."""
    return {uid: tags for uid, tags in site.instances().items() if tags["StudyInstanceUID"] == study_uid}


def results(site: Site, study_uid: str) -> list[str]:
    """Modalities of the results in a study, in order."""
    return sorted(tags["Modality"] for tags in found(site, study_uid).values() if tags["Modality"] != "MR")


def uid_of(images: list[bytes]) -> str:
    return str(read(images[0]).StudyInstanceUID)


def nothing_left(running: Running) -> bool:
    """No temporary file, nothing in the outbox."""
    return not [*(running.directory / "temporary").iterdir(), *(running.directory / "outbox").iterdir()]


def settled(site: Site, running: Running, since: int = 0) -> bool:
    """All that came after a position is stable in Orthanc, and the gateway has read of all that happened."""
    stable = site.stable(since)
    ((position,),) = rows(running.directory, "SELECT position FROM cursors") or [(0,)]
    return stable and int(position) == site.position()


def crop() -> list[bytes]:
    folder = Path(os.environ["EQUIPOISE_DATA"]) / "dicom" / "study1-hippocampus-crop"
    return [file.read_bytes() for file in sorted(folder.glob("*.dcm"))]


def copied(images: list[bytes], compressed: bool = False, shuffled: bool = False) -> list[bytes]:
    """The same series as a study of its own, with planted personal data."""
    names = {str(read(each).StudyInstanceUID): generate_uid() for each in images}
    names |= {str(read(each).SeriesInstanceUID): generate_uid() for each in images}
    copies = []
    for image in images:
        dataset = read(image)
        dataset.StudyInstanceUID = names[str(dataset.StudyInstanceUID)]
        dataset.SeriesInstanceUID = names[str(dataset.SeriesInstanceUID)]
        dataset.SOPInstanceUID = generate_uid()
        for name, value in PLANTED.items():
            setattr(dataset, name, value)
        if compressed:
            dataset.compress(RLELossless, generate_instance_uid=False)
        copies.append(dataset)
    if shuffled:
        random.Random(7).shuffle(copies)
        for number, dataset in enumerate(copies, start=1):
            dataset.InstanceNumber = number
    return [encoded(each) for each in copies]


def upload(site: Site, images: list[bytes]) -> None:
    for image in images:
        site.post("/instances", image)


def segments(site: Site, study_uid: str) -> bytes:
    """Pixels of the segmentation in a study."""
    (tags,) = [tags for tags in found(site, study_uid).values() if tags["Modality"] == "SEG"]
    return bytes(read(site.file(tags["ID"])).pixel_array.tobytes())


@needs_data
@pytest.mark.timeout(600)
def test_a_study_comes_back_with_its_results_and_a_second_push_changes_nothing(server, tmp_path, log):
    """As it is, compressed, and re-ordered: the same answer; and results that come back set nothing off."""
    original = copied(crop())
    studies = [original, copied(crop(), compressed=True), copied(crop(), shuffled=True)]
    # As long as an upload may stand still: what is stable sooner would be analysed without its last slices.
    with orthanc(tmp_path / "pacs", StableAge=10) as site:
        settings = configuration(
            tmp_path / "a", server.grpc_url, HIPPOCAMPUS,
            orthanc={"url": site.http_url, "every_seconds": 0.1}, deliver={"stow_url": site.dicomweb_url},
        )  # fmt: skip
        with gateway(settings, log=log) as running:
            for each in studies:
                upload(site, each)
            complete = ["OT", "OT", "SEG", "SR"]
            poll(lambda: all(results(site, uid_of(each)) == complete for each in studies), "results", 240)
            assert len({segments(site, uid_of(each)) for each in studies}) == 1
            poll(lambda: settled(site, running), "everything is read")
            before = site.instances()
            audit = (running.directory / "decisions.jsonl").read_text()
            upload(site, original)
            upload(site, studies[1])
            poll(lambda: settled(site, running), "the second push is read")
            assert site.instances() == before
            assert (running.directory / "decisions.jsonl").read_text() == audit
            assert running.states("cases") == ["delivered"] * 3
            assert running.states("studies") == ["analysed"] * 3
            metrics = running.get("/metrics")
            assert 'equipoise_gateway_cases{state="delivered"} 3.0' in metrics
            assert not [value for value in PLANTED.values() if value in metrics + running.get("/health")]
            poll(lambda: nothing_left(running), "files are tidied away")
            running.stop()
            assert not list(verify(running.directory / "decisions.jsonl"))


@needs_data
@pytest.mark.timeout(900)
def test_killed_at_every_step_it_ends_with_what_was_sent_without_a_kill(server, tmp_path, log):
    """One study; the process dies at one point after another, is started again, and goes on."""
    images = copied(crop())
    outcomes = []
    for kills, name in ((True, "killed"), (False, "undisturbed")):
        with orthanc(tmp_path / f"pacs-{name}") as site:
            settings = configuration(
                tmp_path / name, server.grpc_url, HIPPOCAMPUS,
                orthanc={"url": site.http_url, "every_seconds": 0.1}, deliver=stow(site),
            )  # fmt: skip
            upload(site, images)
            if kills:
                with gateway(settings, log=log, script=KILLABLE) as doomed:
                    assert doomed.process.wait(600) == 0, doomed.lines[-3:]
                    doomed.reader.join()  # its last lines
                passed = [line["text"].split()[-1] for line in doomed.logged("noise")]
                assert passed == list(POINTS)
            with gateway(settings, log=log) as running:
                poll(lambda site=site: len(results(site, uid_of(images))) == 4, "results")
                poll(lambda running=running: running.states("cases") == ["delivered"], "delivered")
                poll(lambda site=site, running=running: settled(site, running), "everything is read")
                poll(lambda running=running: nothing_left(running), "files are tidied away")
                assert running.states("studies") == ["analysed"]
                running.stop()
            audit = running.directory / "decisions.jsonl"
            assert not list(verify(audit)) and len(audit.read_text().splitlines()) == 1
            outcomes.append(set(found(site, uid_of(images))))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == len(images) + 4


def test_two_senders_at_once_give_one_result(server, pacs, tmp_path, log):
    images = study(count=1, rows=16, columns=12, seed=3)
    settings = configuration(
        tmp_path / "a", server.grpc_url, TINY, receive=receiving(1.0),
        orthanc={"url": pacs.http_url, "every_seconds": 0.1}, deliver=stow(pacs),
    )  # fmt: skip
    before = pacs.position()
    with gateway(settings, log=log) as running:
        senders = [
            threading.Thread(target=send, args=(running.ports["receive"], images)),
            threading.Thread(target=send, args=(running.ports["receive"], images)),
            threading.Thread(target=upload, args=(pacs, images)),
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        poll(lambda: results(pacs, uid_of(images)) == ["OT", "OT", "SEG", "SR"], "results")
        poll(lambda: settled(pacs, running, before), "everything is read")
        poll(lambda: running.states("cases") == ["delivered"], "delivered")
        assert rows(running.directory, "SELECT COUNT(*) FROM instances") == [(1,)]
        running.stop()


def test_while_triton_is_away_a_study_waits_and_nothing_is_sent(pacs, tmp_path, log, tiny_segmentation):
    port, images = free_port(), tiny_study(4)
    publish_pair(tiny_segmentation, tmp_path / "models")
    settings = configuration(
        tmp_path / "a", f"127.0.0.1:{port}", TINY, receive=receiving(), deliver=stow(pacs),
        triton={**QUICK, "url": f"127.0.0.1:{port}", "timeout_seconds": 5.0},
    )  # fmt: skip
    with gateway(settings, log=log) as running:
        assert send(running.ports["receive"], images) == [0]
        poll(lambda: len(running.logged("server unavailable, study waits")) >= 2, "it tries again")
        assert running.states("studies") == ["receiving"] and running.states("cases") == []
        assert 'equipoise_gateway_reachable{peer="triton"} 0.0' in running.get("/metrics")
        with TritonServer(tmp_path / "models", ports=Ports(port, 0, 0)) as triton:
            check_readiness(triton.grpc_url, triton.models)
            poll(lambda: results(pacs, uid_of(images)) == ["OT", "OT", "SEG", "SR"], "results")
        running.stop()


@pytest.mark.timeout(600)
def test_a_server_that_fails_on_everything_gives_up_no_study(pacs, tmp_path, log, tiny_segmentation):
    """A dead backend process: the server says that it is ready, and fails every request until it is started anew."""
    port, studies = free_port(), [tiny_study(seed) for seed in (40, 41)]
    publish_pair(tiny_segmentation, tmp_path / "models")
    settings = configuration(
        tmp_path / "a", "", TINY, receive=receiving(), deliver=stow(pacs),
        triton={**QUICK, "url": f"127.0.0.1:{port}", "timeout_seconds": 5.0},
    )  # fmt: skip
    with gateway(settings, log=log) as running:
        with TritonServer(tmp_path / "models", ports=Ports(port, 0, 0)) as triton:
            check_readiness(triton.grpc_url, triton.models)
            server = {each for each in descendants(triton._guardian.pid) if each.pid != triton._guardian.pid}
            stubs = {each for each in server if each.name().endswith("_backend_stub")}
            for stub in stubs:
                stub.kill()
            for each in studies:
                send(running.ports["receive"], each)
            poll(lambda: len(running.logged("analysis failed")) > 2 * ATTEMPTS, "it tries again and again", 180)
            assert running.states("studies") == ["receiving"] * 2
            for process in server - stubs:
                process.kill()  # a stop in good order takes it half a minute without its stubs
        with TritonServer(tmp_path / "models", ports=Ports(port, 0, 0)) as triton:
            check_readiness(triton.grpc_url, triton.models)
            poll(lambda: running.states("cases") == ["delivered"] * 2, "both are delivered")
        running.stop()


def test_while_the_archive_is_away_a_result_waits(server, tmp_path, log):
    images = tiny_study(5)
    with orthanc(tmp_path / "pacs") as site:
        settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=stow(site))
        site.stop()
        with gateway(settings, log=log) as running:
            send(running.ports["receive"], images)
            poll(lambda: len(running.logged("destination unavailable")) > FAST["longest_seconds"] + 8, "it tries again")
            assert running.states("cases") == ["delivering"]
            site.start()
            poll(lambda: running.states("cases") == ["delivered"], "delivered")
            assert results(site, uid_of(images)) == ["OT", "OT", "SEG", "SR"]
            running.stop()


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path: Path):
    with small_disk(tmp_path / "a", megabytes=6) as folder:
        yield folder


def test_a_full_disk_refuses_new_studies_loses_none_and_recovers(server, pacs, small_disk, tmp_path, log):
    settings = configuration(
        small_disk, server.grpc_url, TINY, receive=receiving(), deliver=stow(pacs), settings={"reserve_megabytes": 1.0}
    )
    studies = [tiny_study(seed) for seed in range(10, 14)]
    with gateway(settings, log=log) as running:
        port = running.ports["receive"]
        assert send(port, studies[0]) == [0]
        poll(lambda: running.states("cases") == ["delivered"], "the first is delivered")
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            free = os.statvfs(small_disk)
            file.write(bytes(free.f_bavail * free.f_frsize - 200_000))
        assert [send(port, each) for each in studies[1:]] == [[0xA700]] * 3
        assert running.states("studies").count("analysed") == 1
        assert "503" in _status(running, "/ready")
        ballast.unlink()
        assert [send(port, each) for each in studies[1:]] == [[0]] * 3
        poll(lambda: running.states("cases") == ["delivered"] * 4, "all are delivered")
        for each in studies:
            assert results(pacs, uid_of(each)) == ["OT", "OT", "SEG", "SR"]
        poll(lambda: nothing_left(running), "files are tidied away")
        running.stop()


def test_a_disk_that_fills_up_before_the_analysis_only_delays_it(server, pacs, small_disk, tmp_path, log):
    """No reserve: not a byte is left when the study is due."""
    images = tiny_study(16)
    settings = configuration(small_disk, server.grpc_url, TINY, receive=receiving(10.0), deliver=stow(pacs))
    with gateway(settings, log=log) as running:
        assert send(running.ports["receive"], images) == [0]
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        poll(lambda: [each for each in running.logged("part waits") if each["why"] == "no room"], "it finds no room")
        assert results(pacs, uid_of(images)) == [] and "delivered" not in running.states("cases")
        ballast.unlink()
        poll(lambda: running.states("cases") == ["delivered"], "delivered")
        assert results(pacs, uid_of(images)) == ["OT", "OT", "SEG", "SR"]
        poll(lambda: nothing_left(running), "files are tidied away")
        running.stop()


def _status(running: Running, path: str) -> str:
    with socket.create_connection(("127.0.0.1", running.ports["health"])) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return connection.recv(64).decode()


def test_a_malformed_object_among_good_ones_is_set_aside(server, pacs, tmp_path, log):
    images = tiny_study(6)
    broken = read(images[0])
    broken.SOPInstanceUID, broken.PixelData = generate_uid(), b"\0\0"
    settings = configuration(
        tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=stow(pacs),
        settings={"incomplete_seconds": 0.5},
    )  # fmt: skip
    with gateway(settings, log=log) as running:
        assert send(running.ports["receive"], [encoded(broken), *images]) == [0xC000, 0]
        poll(lambda: running.states("cases") == ["delivered"], "delivered")
        assert rows(running.directory, "SELECT route FROM cases") == [("review",)], "its series is incomplete"
        (aside,) = running.logged("object set aside")
        assert "bytes of pixels" in aside["reason"]
        assert (running.directory / "aside" / f"{aside['object']}.dcm").exists()
        running.stop()


def test_what_cannot_be_analysed_ends_with_a_reason(server, pacs, tmp_path, log):
    gap = study(count=6)
    del gap[2]
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=stow(pacs))
    with gateway(settings, log=log) as running:
        send(running.ports["receive"], gap)
        send(running.ports["receive"], study(count=1, Modality="CT"))
        poll(lambda: running.states("studies") == ["rejected"] * 2, "both are rejected")
        reasons = {row[0] for row in rows(running.directory, "SELECT reason FROM studies")}
        assert "slices are missing" in reasons and len(reasons) == 2
        running.stop()


@pytest.mark.parametrize("sent", [True, False])
def test_late_images_never_make_a_second_result(server, pacs, tmp_path, log, sent):
    """A series of one image becomes one of two, which the 2D model cannot take."""
    first, second = study(count=2, rows=16, columns=12, seed=8)
    deliver = stow(pacs) if sent else {**stow(pacs), "review": "hold"}
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=deliver)
    with gateway(settings, log=log) as running:
        send(running.ports["receive"], [first])
        poll(lambda: running.states("cases") == ["delivered" if sent else "review"], "a result")
        send(running.ports["receive"], [second])
        poll(lambda: running.states("studies") == ["rejected"], "it is looked at again")
        ((state, late),) = rows(running.directory, "SELECT state, late FROM cases")
        assert (state, late) == (("delivered", 1) if sent else ("rejected", 0))
        assert len(results(pacs, uid_of([first]))) == (4 if sent else 0)
        running.stop()


def test_other_pixels_under_a_known_uid_make_a_new_version(server, pacs, tmp_path, log):
    """It is sent, names the report that it replaces, and a person is called about the first one."""
    (image,) = tiny_study(50)
    corrected = read(image)
    corrected.PixelData = read(tiny_study(51)[0]).PixelData
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=stow(pacs))
    with gateway(settings, log=log) as running:
        send(running.ports["receive"], [image])
        poll(lambda: running.states("cases") == ["delivered"], "a result")
        assert send(running.ports["receive"], [encoded(corrected)]) == [0]
        poll(lambda: running.states("cases") == ["delivered"] * 2, "a new version")
        assert send(running.ports["receive"], [encoded(corrected)]) == [0]
        assert results(pacs, uid_of([image])) == ["OT"] * 4 + ["SEG"] * 2 + ["SR"] * 2
        first, second = rows(running.directory, "SELECT key, late, replaces, why FROM cases ORDER BY created")
        assert (first[1:3], second[1:3]) == ((1, ""), (0, first[0])) and "incomplete" in second[3]
        reports = [
            read(pacs.file(tags["ID"])) for tags in found(pacs, uid_of([image])).values() if tags["Modality"] == "SR"
        ]
        replaced = [each for each in reports if "PredecessorDocumentsSequence" in each]
        ((named,),) = [
            each.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence for each in replaced
        ]
        assert named.ReferencedSOPInstanceUID in {each.SOPInstanceUID for each in reports} - {
            replaced[0].SOPInstanceUID
        }
        running.stop()
        assert not list(verify(running.directory / "decisions.jsonl"))


def test_an_incomplete_series_waits_goes_to_review_and_says_so(server, pacs, tmp_path, log):
    images = study(count=1, rows=16, columns=12, seed=52, ImagesInAcquisition=2)
    settings = configuration(
        tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver={**stow(pacs), "review": "hold"},
        settings={"incomplete_seconds": 1.0},
    )  # fmt: skip
    with gateway(settings, log=log) as running:
        send(running.ports["receive"], images)
        poll(lambda: running.states("cases") == ["review"], "it is for review")
        assert running.logged("incomplete series waits")
        ((why,),) = rows(running.directory, "SELECT why FROM cases")
        assert "the series is incomplete: 1 of 2 images (Images in Acquisition)" in why
        assert results(pacs, uid_of(images)) == []
        running.stop()


def test_a_dicomweb_archive_is_asked_for_studies(server, pacs, tmp_path, log):
    images = tiny_study(9)
    upload(pacs, images)
    asked = {
        "url": pacs.dicomweb_url, "days": -1, "every_seconds": 0.2, "quiet_seconds": 0.5,
        "query": {"StudyInstanceUID": uid_of(images)},
    }  # fmt: skip
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, dicomweb=asked, deliver=stow(pacs))
    with gateway(settings, log=log) as running:
        poll(lambda: results(pacs, uid_of(images)) == ["OT", "OT", "SEG", "SR"], "results")
        running.stop()


def test_results_go_by_c_store_as_well(server, pacs, tmp_path, log):
    images = tiny_study(15)
    deliver = {"host": pacs.host, "port": pacs.dicom_port, "aet": pacs.aet, **FAST}
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=deliver)
    with gateway(settings, log=log) as running:
        send(running.ports["receive"], images)
        poll(lambda: results(pacs, uid_of(images)) == ["OT", "OT", "SEG", "SR"], "results")
        running.stop()


def test_a_second_gateway_in_the_same_directory_does_not_start(server, pacs, tmp_path, log):
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(), deliver=stow(pacs))
    with gateway(settings, log=log):
        command = [sys.executable, "-m", "equipoise_client.cli.main", "gateway", str(settings)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and "another gateway works in" in second.stderr


def test_on_sigterm_it_finishes_its_step_and_leaves_no_temporary_file(server, pacs, tmp_path, log):
    settings = configuration(tmp_path / "a", server.grpc_url, TINY, receive=receiving(0.0), deliver=stow(pacs))
    studies = [tiny_study(seed) for seed in range(20, 30)]
    with gateway(settings, log=log) as running:
        for each in studies:
            send(running.ports["receive"], each)
        poll(lambda: running.logged("analysis result"), "it is at work")
        running.stop()
        assert not list((running.directory / "temporary").iterdir())
        assert [line["event"] for line in running.lines[-1:]] == ["stopped"]
    with gateway(settings, log=log) as running:
        poll(lambda: running.states("cases") == ["delivered"] * len(studies), "the rest is done")
        running.stop()


@pytest.mark.timeout(900)
def test_five_hundred_studies_in_a_row(server, pacs, tmp_path, log):
    settings = configuration(tmp_path / "a", server.grpc_url, TINY_CLASSIFIER, receive=receiving(), deliver=stow(pacs))
    studies = [study(count=1, rows=4, columns=4, seed=seed) for seed in range(500)]
    with gateway(settings, log=log) as running:
        port = running.ports["receive"]
        assert send(port, [image for each in studies for image in each]) == [0] * len(studies)
        poll(lambda: running.states("cases").count("delivered") == len(studies), "all are delivered", 800)
        there = [tags for tags in pacs.instances().values() if tags["Modality"] == "SR"]
        ours = {uid_of(each) for each in studies}
        assert sorted(tags["StudyInstanceUID"] for tags in there if tags["StudyInstanceUID"] in ours) == sorted(ours)
        poll(lambda: nothing_left(running), "files are tidied away")
        running.stop()
        audit = running.directory / "decisions.jsonl"
        assert not list(verify(audit)) and len(audit.read_text().splitlines()) == len(studies)
