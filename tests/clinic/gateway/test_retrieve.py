"""Studies by C-FIND and C-MOVE, from a real Orthanc and from one that does not keep what it promises."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field

import pytest
from equipoise_client.cli.main import main
from equipoise_clinic.gateway.intake import Closed, Intake
from equipoise_clinic.gateway.receivers import Receiver, SourceAway
from equipoise_clinic.gateway.retrieve import Retrieve
from equipoise_clinic.gateway.settings import BadSettings, Receive, RetrieveSource, load_settings
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from ...support.orthanc import DICOM_PORT, orthanc
from ...support.studies import encoded, read, report, study


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with orthanc(tmp_path_factory.mktemp("pacs")) as site:
        yield site


@pytest.fixture
def receiving(desk):
    """A receiver of the gateway's; its port."""
    opened = []

    def make(host: str) -> int:
        opened.append(Receiver(Receive(host=host, port=0, quiet_seconds=0.0), desk.intake, desk.log))
        return opened[-1].start()

    yield make
    for receiver in opened:
        receiver.stop()


def source(desk, host: str, port: int, **settings) -> Retrieve:
    given = {"days": -1, "timeout_seconds": 30.0, **settings}
    return Retrieve(RetrieveSource(host=host, port=port, **given), "EQUIPOISE", desk.intake, desk.store, desk.log)


def missing(desk, image: bytes) -> tuple[str, ...]:
    """Why the series of an image is incomplete."""
    uid = str(read(image).StudyInstanceUID)
    return desk.store.studies.missing(
        desk.store.studies.get(desk.store.studies.key_of(uid)), str(read(image).SeriesInstanceUID)
    )


class TestOrthanc:
    def known(self, pacs, port: int) -> None:
        """Orthanc sends only to AE titles that it knows."""
        where = json.dumps(["EQUIPOISE", pacs.network.near, port]).encode()
        address = f"{pacs.http_url}/modalities/gateway"
        urllib.request.urlopen(urllib.request.Request(address, data=where, method="PUT"), timeout=30).close()

    @staticmethod
    def run(*words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        assert not ended.value.code

    def test_what_is_new_is_moved_once(self, desk, pacs, receiving) -> None:
        """Also an image that comes later; reports and the like are not asked for."""
        self.known(pacs, receiving(pacs.network.near))
        images = study(count=5)
        uid = str(read(images[0]).StudyInstanceUID)
        for each in (*images[:4], report(uid)):
            pacs.post("/instances", each)
        asked = source(desk, pacs.network.far, DICOM_PORT, query={"StudyInstanceUID": uid})
        assert asked.poll() == 4 and asked.poll() == 0
        assert desk.store.studies.known(uid).keys() == {str(read(each).SOPInstanceUID) for each in images[:4]}
        assert not missing(desk, images[0])
        pacs.post("/instances", images[4])
        assert asked.poll() == 1 and len(desk.store.studies.known(uid)) == 5

    def test_an_unknown_destination_is_named(self, desk, pacs) -> None:
        (image,) = study(count=1)
        pacs.post("/instances", image)
        asked = Retrieve(
            RetrieveSource(host=pacs.network.far, port=DICOM_PORT, days=-1, query={"Modality": ""}),
            "NOBODY",
            desk.intake,
            desk.store,
            desk.log,
        )
        with pytest.raises(SourceAway):
            asked.poll()

    def test_the_verb_lists_and_moves(self, desk, pacs, receiving, capsys) -> None:
        self.known(pacs, receiving(pacs.network.near))
        images = study(count=3)
        uid = str(read(images[0]).StudyInstanceUID)
        for each in images:
            pacs.post("/instances", each)
        address = f"dicom://ORTHANC@{pacs.network.far}:{DICOM_PORT}"
        self.run("fetch", address, "--query", f"StudyInstanceUID={uid}")
        assert capsys.readouterr().out.strip() == uid and not desk.store.studies.known(uid)
        self.run("fetch", address, "--study", uid, "--move-to", "EQUIPOISE", "--json")
        assert json.loads(capsys.readouterr().out) == [{"study_instance_uid": uid, "moved": 3, "failed": 0}]
        assert len(desk.store.studies.known(uid)) == 3


@dataclass
class Partial:
    """A PACS that lists some images and moves others.

    Attributes:
        to: port that it sends to, as the AE title is entered there.
        ends: series for which it ends the association when it has sent all, before it says so.
        closes: an intake that is closed when it is asked to send.
        moves: how often it was.
    """

    to: int
    port: int = 0
    listed: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    ends: str = ""
    closes: Intake | None = None
    moves: int = 0

    def find(self, event):
        level = event.identifier.QueryRetrieveLevel
        images = [read(each) for each in self.listed]
        if level != "IMAGE":
            images = list({str(each.SeriesInstanceUID): each for each in reversed(images)}.values())
        if level == "STUDY":
            images = images[:1]
        if level == "IMAGE":
            images = [each for each in images if each.SeriesInstanceUID == event.identifier.SeriesInstanceUID]
        for image in images:
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality"):
                setattr(answer, name, image.get(name))
            alike = [each for each in self.listed if read(each).SeriesInstanceUID == image.SeriesInstanceUID]
            answer.NumberOfSeriesRelatedInstances = len(alike)
            yield 0xFF00, answer

    def move(self, event):
        self.moves += 1
        if self.closes is not None:
            self.closes.close()
        images = [read(each) for each in self.sent]
        series = event.identifier.get("SeriesInstanceUID")
        images = [each for each in images if series in (None, each.SeriesInstanceUID)]
        yield "127.0.0.1", self.to
        yield len(images)
        for each in images:
            yield 0xFF00, each
        if series == self.ends:
            event.assoc.abort()


@pytest.fixture
def partial(receiving):
    made = Partial(receiving("127.0.0.1"))
    entity = AE(ae_title="PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    for kind in (MRImageStorage, SegmentationStorage):
        entity.add_requested_context(kind, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_C_FIND, made.find), (evt.EVT_C_MOVE, made.move)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    made.port = server.socket.getsockname()[1]
    yield made
    server.shutdown()


@pytest.fixture
def elsewhere():
    """The port of somebody else's receiver, which takes all."""
    entity = AE(ae_title="EQUIPOISE")
    entity.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
    yield server.socket.getsockname()[1]
    server.shutdown()


def test_what_is_listed_and_not_sent_makes_the_series_incomplete(desk, partial) -> None:
    """Although the PACS says that all went well; and when it has sent the rest, the series is complete."""
    images = study(count=3)
    partial.listed += images
    partial.sent += images[:2]
    asked = source(desk, "127.0.0.1", partial.port)
    assert asked.poll() == 2 and missing(desk, images[0])
    assert asked.poll() == 0, "it is not asked again and again for what it does not send"
    partial.sent.append(images[2])
    asked._asked.clear()  # as after a while
    assert asked.poll() == 1 and not missing(desk, images[0])


def test_what_is_sent_to_another_host_is_said_and_half_a_series_is_not_the_whole(desk, partial, elsewhere) -> None:
    """The PACS counts each image as sent; half of them came on another way."""
    images, here = study(count=4), partial.to
    for each in images[:2]:
        desk.intake.take(each, 0.0, "test")
    partial.listed += images
    partial.sent += images
    partial.to = elsewhere
    asked = source(desk, "127.0.0.1", partial.port)
    for _ in range(2):
        with pytest.raises(SourceAway, match="check host and port"):
            asked.poll()
    assert partial.moves == 1, "said again at each poll, and not sent again at each"
    assert missing(desk, images[0]) == ("its archive has 2 images more than it has given so far",)
    assert "images sent elsewhere" in [line["event"] for line in desk.lines()]
    asked._asked.clear()  # as after a while
    partial.to = here
    assert asked.poll() == 2 and not missing(desk, images[0])


def test_a_series_that_is_not_given_stops_no_other_of_its_study(desk, partial) -> None:
    images = study(count=2)
    other = read(study(count=1)[0])
    other.StudyInstanceUID = read(images[0]).StudyInstanceUID
    partial.listed += [*images, encoded(other)]
    partial.sent += [images[0], encoded(other)]
    partial.ends = str(read(images[0]).SeriesInstanceUID)
    with pytest.raises(SourceAway):
        source(desk, "127.0.0.1", partial.port).poll()
    assert not missing(desk, encoded(other)) and missing(desk, images[0])


def test_nothing_more_is_moved_while_the_gateway_stops(desk, partial) -> None:
    images = [study(count=1)[0] for _ in range(3)]
    uid = read(images[0]).StudyInstanceUID
    for each in images[1:]:
        other = read(each)
        other.StudyInstanceUID = uid
        images[images.index(each)] = encoded(other)
    partial.listed += images
    partial.closes = desk.intake
    with pytest.raises(Closed):
        source(desk, "127.0.0.1", partial.port).poll()
    assert partial.moves == 1


def test_a_series_that_came_whole_is_whole_though_the_move_failed(desk, partial) -> None:
    images = study(count=3)
    partial.listed += images
    partial.sent += images
    partial.ends = str(read(images[0]).SeriesInstanceUID)
    asked = source(desk, "127.0.0.1", partial.port)
    with pytest.raises(SourceAway, match="C-MOVE"):
        asked.poll()
    assert len(desk.store.studies.instances()) == 3
    assert asked.poll() == 0 and not missing(desk, images[0])


def test_what_came_and_is_no_image_or_damaged_is_not_absent(desk, partial) -> None:
    """The PACS does not say of what class an instance is. What is damaged is said to be that."""
    images = study(count=2)
    broken, other = read(images[1]), read(report(str(read(images[0]).StudyInstanceUID)))
    broken.PixelData, other.SeriesInstanceUID = b"\0\0", broken.SeriesInstanceUID
    partial.listed += [images[0], encoded(broken), encoded(other)]
    partial.sent += partial.listed
    asked = source(desk, "127.0.0.1", partial.port)
    assert asked.poll() == 2
    assert missing(desk, images[0]) == ("1 of its images came damaged or could not be taken",)
    assert asked.poll() == 0 and partial.moves == 1


@pytest.mark.parametrize("known", [True, False])
def test_the_verb_says_when_the_pacs_sends_nothing(partial, capsys, known) -> None:
    """For a study that it does not know it may answer success all the same."""
    partial.sent += study(count=1) if known else []
    uid = str(read((partial.sent or study(count=1))[0]).StudyInstanceUID)
    with pytest.raises(SystemExit) as ended:
        main(["fetch", f"dicom://PACS@127.0.0.1:{partial.port}", "--study", uid, "--move-to", "EQUIPOISE"])
    out = capsys.readouterr().out
    assert (not ended.value.code, "sent nothing" in out) == (known, not known)


def test_a_pacs_that_does_not_answer_is_away(desk) -> None:
    with pytest.raises(SourceAway, match="cannot be reached"):
        source(desk, "127.0.0.1", 1).poll()


def test_it_needs_a_receiver(tmp_path) -> None:
    (tmp_path / "gateway.toml").write_text(
        'directory = "d"\nrules = "r.toml"\n[orthanc]\nurl = "http://127.0.0.1:1"\n[retrieve]\nhost = "127.0.0.1"\n'
        '[deliver]\nstow_url = "http://127.0.0.1:1"\n'
    )
    with pytest.raises(BadSettings, match=r"\[retrieve\]: expected \[receive\]"):
        load_settings(tmp_path / "gateway.toml")
