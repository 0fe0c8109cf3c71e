"""Studies by C-FIND and C-MOVE, from a real Orthanc and from one that does not keep what it promises."""

from __future__ import annotations

import json
import urllib.request

import pytest
from equipoise_client.cli.main import main
from equipoise_clinic.gateway.receivers import Receiver, SourceAway
from equipoise_clinic.gateway.retrieve import Retrieve
from equipoise_clinic.gateway.settings import BadSettings, Receive, RetrieveSource, load_settings
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from ...support.orthanc import DICOM_PORT, orthanc
from ...support.studies import read, report, study


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
    return Retrieve(RetrieveSource(host=host, port=port, **given), "EQUIPOISE", desk.store)


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
            desk.store,
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


@pytest.fixture
def partial(receiving):
    """A PACS that lists all and moves what `sent` holds; its port, what it lists, and what it sends."""
    listed, sent = [], []
    port = receiving("127.0.0.1")

    def find(event):
        level = event.identifier.QueryRetrieveLevel
        images = [read(each) for each in listed]
        if level != "IMAGE":
            images = images[:1]
        for image in images:
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality"):
                setattr(answer, name, image.get(name))
            answer.NumberOfSeriesRelatedInstances = len(listed)
            yield 0xFF00, answer

    def move(event):
        yield "127.0.0.1", port
        yield len(sent)
        for each in sent:
            yield 0xFF00, read(each)

    entity = AE(ae_title="PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move)]
    )
    yield server.socket.getsockname()[1], listed, sent
    server.shutdown()


def test_what_is_listed_and_not_sent_makes_the_series_incomplete(desk, partial) -> None:
    """Although the PACS says that all went well; and when it has sent the rest, the series is complete."""
    port, listed, sent = partial
    images = study(count=3)
    listed += images
    sent += images[:2]
    asked = source(desk, "127.0.0.1", port)
    assert asked.poll() == 2 and missing(desk, images[0])
    assert asked.poll() == 0, "it is not asked again and again for what it does not send"
    sent.append(images[2])
    asked._asked.clear()  # as after a while
    assert asked.poll() == 1 and not missing(desk, images[0])


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
