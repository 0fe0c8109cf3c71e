"""Where studies come from, without anybody who analyses them."""

from __future__ import annotations

import io
import socket
import threading
import tracemalloc
from functools import partial
from types import SimpleNamespace

import pydicom
import pytest
import requests
from equipoise_clinic.gateway.intake import Closed, Intake
from equipoise_clinic.gateway.observe import Log
from equipoise_clinic.gateway.receivers import Listed, ListedSeries, Orthanc, Puller, Receiver, SourceAway, Web
from equipoise_clinic.gateway.service import Gateway
from equipoise_clinic.gateway.settings import OrthancSource, Receive, WebSource, load_settings
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import MRImageStorage, Verification

from ...support.asking import poll
from ...support.gateways import configuration
from ...support.orthanc import orthanc
from ...support.studies import encoded, read, report, study


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with orthanc(tmp_path_factory.mktemp("pacs")) as site:
        yield site


def source(desk, site) -> Orthanc:
    return Orthanc(OrthancSource(site.http_url), desk.intake, desk.store, desk.log, lambda point: None)


def stable(site, images: list[bytes]) -> str:
    """Stores a study and waits until it is stable, as a receiver reads it; its UID."""
    before = site.position()
    for image in images:
        site.post("/instances", image)
    poll(lambda: site.stable(before), "stable")
    return str(read(images[0]).StudyInstanceUID)


@pytest.mark.slow
def test_a_stable_study_is_taken_whole_once_and_at_once(desk, pacs):
    images = study(count=4)
    uid = stable(pacs, [*images, report(str(read(images[0]).StudyInstanceUID))])
    assert source(desk, pacs).poll() >= 4
    assert desk.store.studies.known(uid).keys() == {str(read(each).SOPInstanceUID) for each in images}
    assert desk.store.studies.next()[0] is not None, "it is complete: nothing more to wait for"
    assert source(desk, pacs).poll() == 0, "the position is durable"


@pytest.mark.slow
@pytest.mark.parametrize("position", ["0", "100000000"])
def test_an_orthanc_that_was_set_up_anew_is_read_from_its_start(desk, pacs, position):
    uid = stable(pacs, study(count=1))
    reader = source(desk, pacs)
    desk.store.remember(f"orthanc {pacs.http_url}", position)
    reader.poll()
    assert desk.store.studies.key_of(uid) is not None
    assert int(desk.store.cursor(f"orthanc {pacs.http_url}")) == pacs.get("/changes?last")["Last"]


@pytest.mark.slow
@pytest.mark.pacs
@pytest.mark.root
def test_an_image_that_the_archive_has_lost_ends_its_study_and_stops_no_other(desk, tmp_path):
    with orthanc(tmp_path / "pacs", MaximumStorageCacheSize=0) as site:
        images = study(count=3)
        lost = stable(site, images)
        (identifier,) = [each["ID"] for each in list(site.instances().values())[:1]]
        content = site.file(identifier)
        files = [file for file in (site.directory / "storage").glob("??/??/*") if file.read_bytes() == content]
        files[0].unlink()
        other = stable(site, study(count=2))
        reader = source(desk, site)
        reader.poll()
        states = {each.uid: (each.state, each.reason) for each in desk.store.studies.all()}
        assert states[lost] == ("rejected", "an image cannot be fetched from the archive")
        assert states[other][0] == "receiving"


@pytest.mark.slow
def test_what_is_no_use_is_fetched_once(desk, pacs):
    """An archive that is asked at intervals is not asked for the same malformed image for ever."""
    broken = read(study(count=1)[0])
    broken.PixelData = b"\0\0"
    uid = stable(pacs, [encoded(broken)])
    reader = Web(WebSource(pacs.dicomweb_url, {"StudyInstanceUID": uid}, days=-1), desk.intake, desk.store)
    assert [reader.poll() for _ in range(3)] == [0, 0, 0]
    assert [line["event"] for line in desk.lines()] == ["object set aside"]


@pytest.mark.slow
def test_dicomweb_takes_what_a_query_finds_and_nothing_else(desk, pacs):
    wanted, other = study(count=2), study(count=2)
    stable(pacs, wanted)
    stable(pacs, other)
    uid = str(read(wanted[0]).StudyInstanceUID)
    settings = WebSource(pacs.dicomweb_url, {"StudyInstanceUID": uid}, days=-1)
    assert [Web(settings, desk.intake, desk.store).poll() for _ in range(2)] == [2, 0]
    assert [each.uid for each in desk.store.studies.all()] == [uid]


def test_an_archive_that_is_not_there_is_said_to_be_away(desk):
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(SourceAway):
        Orthanc(OrthancSource(nowhere), desk.intake, desk.store, desk.log, lambda point: None).poll()
    with pytest.raises(SourceAway):
        Web(WebSource(nowhere), desk.intake, desk.store).poll()


@pytest.fixture
def receiver(desk):
    made = Receiver(Receive(port=0, callers=("MODALITY",), quiet_seconds=5.0), desk.intake, desk.log)
    yield made.start()
    made.stop()


def associated(port: int, aet: str = "EQUIPOISE", caller: str = "MODALITY"):
    entity = AE(ae_title=caller)
    entity.requested_contexts = []
    entity.add_requested_context(Verification)
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    return entity.associate("127.0.0.1", port, ae_title=aet)


def test_the_receiver_answers_success_for_what_is_on_disk(desk, receiver):
    images = study(count=2)
    association = associated(receiver)
    assert association.send_c_echo().Status == 0x0000
    datasets = [read(each) for each in images]
    assert [association.send_c_store(each).Status for each in datasets] == [0, 0]
    assert len(list((desk.directory / "incoming").glob("*/*.dcm"))) == 2
    datasets[0].SOPInstanceUID, datasets[0].PixelData = "1.2.3", b"\0\0"
    assert association.send_c_store(datasets[0]).Status == 0xC000
    association.release()
    assert len(desk.store.studies.aside()) == 1


def test_who_falls_silent_in_the_middle_of_a_message_is_put_out(desk):
    """Else it would keep one of the associations for ever."""
    made = Receiver(Receive(port=0), desk.intake, desk.log)
    made._entity.network_timeout = 0.1
    port = made.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60.0) as silent:
            silent.sendall(b"\x01\x00\x00")
            assert silent.recv(1) == b""
    finally:
        made.stop()


@pytest.mark.parametrize(("aet", "caller"), [("OTHER", "MODALITY"), ("EQUIPOISE", "STRANGER")])
def test_who_is_not_expected_is_not_let_in(receiver, aet, caller):
    assert not associated(receiver, aet, caller).is_established


@pytest.mark.parametrize(
    ("syntax", "taken"),
    [("1.2.840.10008.1.2", True), ("1.2.840.10008.1.2.5", True), ("1.2.840.10008.1.2.4.70", True),
     ("1.2.840.10008.1.2.1.99", False), ("1.2.840.10008.1.2.4.92", False), ("1.2.840.10008.1.2.4.102", False)],
)  # fmt: skip
def test_what_cannot_be_unpacked_is_refused_before_it_is_sent(receiver, syntax, taken):
    """So that the sender transcodes: JPEG 2000 part 2 and MPEG-4 have no decoder here; deflated data is not offered."""
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(MRImageStorage, syntax)
    association = entity.associate("127.0.0.1", receiver, ae_title="EQUIPOISE")
    assert association.is_established == taken
    association.abort()


def test_an_object_that_would_fill_the_memory_ends_its_association(desk):
    made = Receiver(Receive(port=0), desk.intake, desk.log, largest=1_000_000)
    port = made.start()
    try:
        (small,), (large,) = study(count=1), study(count=1, rows=1024, columns=1024)
        named = read(large)
        association = associated(port)
        assert association.send_c_store(read(small)).Status == 0x0000
        assert "Status" not in association.send_c_store(read(large))
        named.PixelData = bytes(128)
        named.Rows = named.Columns = 8
        named.SOPInstanceUID = "1.2.3.4"
        assert associated(port).send_c_store(named).Status == 0x0000, "the receiver lives on"
    finally:
        made.stop()
    assert len(desk.store.studies.instances()) == 2
    assert "association aborted" in [line["event"] for line in desk.lines()]
    received = desk.store.studies.get(desk.store.studies.key_of(str(named.StudyInstanceUID)))
    assert desk.store.studies.missing(received, str(named.SeriesInstanceUID)), "what is left of it is not the whole"
    (first,) = [each for each in desk.store.studies.all() if each.uid == str(read(small).StudyInstanceUID)]
    assert not desk.store.studies.missing(first, ""), "another study is whole without it"


def test_an_object_is_in_memory_twice_at_most_while_it_is_taken(desk):
    """As a file, and as its pixels; what was received is let go. The study is known without reading all of it again."""
    image = study(count=1, rows=2048, columns=4096)[0]
    dataset = read(image)
    received = io.BytesIO(encode(dataset, False, True))
    request = SimpleNamespace(AffectedSOPInstanceUID=dataset.SOPInstanceUID, DataSet=received)
    event = SimpleNamespace(request=request, encoded_dataset=lambda: b"".join((image[:200], image[200:])), assoc=AE())
    made = Receiver(Receive(port=0), desk.intake, desk.log)
    tracemalloc.start()
    try:
        assert made._store(event) == 0x0000
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2.2 * len(image) and received.getbuffer().nbytes == 0
    assert made._studies[event.assoc] == dataset.StudyInstanceUID


def test_an_object_without_a_study_is_of_the_study_that_its_sender_was_at(desk, receiver):
    images = [read(each) for each in study(count=3)]
    association = associated(receiver)
    assert association.send_c_store(images[0]).Status == 0x0000
    del images[1].StudyInstanceUID
    assert association.send_c_store(images[1]).Status == 0xC000
    association.release()
    (received,) = desk.store.studies.all()
    assert desk.store.studies.missing(received, str(images[0].SeriesInstanceUID))


def test_a_good_copy_completes_a_study_though_the_damaged_one_did_not_say_which_it_was(desk, receiver):
    images = [read(each) for each in study(count=2)]
    series, uid = str(images[0].SeriesInstanceUID), images[1].SOPInstanceUID
    association = associated(receiver)
    assert association.send_c_store(images[0]).Status == 0x0000
    del images[1].SOPInstanceUID
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MRImageStorage, uid
    request.DataSet = io.BytesIO(encode(images[1], False, True))
    (context,) = [each for each in association.accepted_contexts if each.abstract_syntax == MRImageStorage]
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    assert association.dimse.get_msg(block=True)[1].Status == 0xC000
    association._reactor_checkpoint.set()
    (received,) = desk.store.studies.all()
    assert desk.store.studies.missing(received, series)
    images[1].SOPInstanceUID = uid
    assert association.send_c_store(images[1]).Status == 0x0000
    association.release()
    assert desk.store.studies.missing(received, series) == ()


def test_a_good_copy_in_an_archive_completes_a_study_though_the_damaged_one_did_not_say_which_it_was(desk):
    (image,) = study(count=1)
    uid, series, study_uid = (str(read(image)[name].value) for name in _NAMES)

    def listing(content: bytes):
        return lambda: [ListedSeries(series, (Listed(uid, lambda: content),))]

    Puller(desk.intake, desk.store).take(study_uid, listing(image[:200]), 0.0, "test")
    (received,) = desk.store.studies.all()
    assert desk.store.studies.missing(received, series)
    Puller(desk.intake, desk.store).take(study_uid, listing(image), 0.0, "test")
    assert desk.store.studies.missing(received, series) == ()


_NAMES = "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"


def test_an_archive_that_has_other_content_by_now_is_read_again(desk):
    """Orthanc's FileUuid changes when an instance is overwritten."""
    first, second = study(count=1)[0], None
    corrected = read(first)
    corrected.PixelData = bytes(len(corrected.PixelData))
    second = encoded(corrected)
    uid, study_uid = str(corrected.SOPInstanceUID), str(corrected.StudyInstanceUID)
    fetched = []

    def listing(content: bytes, version: str):
        return lambda: [ListedSeries("1.2.3", (Listed(uid, lambda: fetched.append(version) or content, version),))]

    puller = Puller(desk.intake, desk.store)
    assert puller.take(study_uid, listing(first, "a"), 0.0, "test") == 1
    assert puller.take(study_uid, listing(first, "a"), 0.0, "test") == 0
    assert puller.take(study_uid, listing(second, "b"), 0.0, "test") == 1
    assert fetched == ["a", "b"]
    assert Puller(desk.intake, desk.store).take(study_uid, listing(second, "b"), 0.0, "test") == 0, "after a restart"


def test_a_series_is_incomplete_until_its_archive_has_given_all_of_it(desk):
    """It goes away in the middle of a study; a quiet time later what came of it would pass for the whole."""
    images = study(count=3)
    uid, series = (str(read(images[0])[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID"))
    away = [True]

    def fetch(number: int) -> bytes:
        if number == 2 and away[0]:
            raise SourceAway
        return images[number]

    def listing():
        names = [str(read(each).SOPInstanceUID) for each in images]
        listed = tuple(Listed(name, partial(fetch, number)) for number, name in enumerate(names))
        return [ListedSeries(series, listed, stated=4)]

    puller = Puller(desk.intake, desk.store)
    with pytest.raises(SourceAway):
        puller.take(uid, listing, 0.0, "test")
    (received,) = desk.store.studies.all()
    assert desk.store.studies.missing(received, series) == ("its archive has 4 images more than it has given so far",)
    away[0] = False
    assert puller.take(uid, listing, 0.0, "test") == 1
    assert desk.store.studies.missing(received, series) == ("its archive has 1 images more than it has given so far",)


def test_a_source_asks_for_no_more_while_the_gateway_stops(desk):
    """The image that it is at is refused, so its series stays incomplete; the next is not even listed."""
    images, listed = study(count=2), []

    def fetch(image: bytes) -> bytes:
        desk.intake.close()
        return image

    def listing():
        for number, image in enumerate(images):
            listed.append(number)
            yield ListedSeries(f"1.2.{number}", (Listed(_named(image)[2], partial(fetch, image)),))

    with pytest.raises(Closed):
        Puller(desk.intake, desk.store).take(_named(images[0])[0], listing, 0.0, "test")
    assert listed == [0] and desk.store.studies.instances() == []
    reader = Web(WebSource("http://archive"), desk.intake, desk.store)
    reader._client = SimpleNamespace(search_for_studies=lambda **_: [{"0020000D": {"Value": ["1.2"]}}])
    with pytest.raises(Closed):
        reader.poll()


def test_the_end_of_the_gateway_closes_the_intake_whatever_the_source(tmp_path, monkeypatch):
    """A source with a backlog would hold up the end otherwise."""
    closed = threading.Event()

    class Backlog:
        name, every = "backlog", 1.0

        def poll(self) -> int:
            assert closed.wait(60)
            return 0

    close = Intake.close
    monkeypatch.setattr(Intake, "close", lambda self: (close(self), closed.set()))
    monkeypatch.setattr(Gateway, "_sources", lambda self, intake: [Backlog()])
    url = "http://127.0.0.1:9"
    settings = configuration(
        tmp_path, "127.0.0.1:9", '[[series]]\nmodel = "tiny"\n', orthanc={"url": url}, deliver={"stow_url": url}
    )
    gateway = Gateway(load_settings(settings), Log(io.StringIO()))
    gateway.run(lambda ports: gateway.stop())
    assert closed.is_set()


def test_an_image_that_an_archive_does_not_give_stops_no_other_and_no_other_study(desk, monkeypatch):
    """It is asked for again at the next poll; until then its series is incomplete."""
    there = {_named(each): each for images in (study(count=3), study(count=2)) for each in images}
    first, *_, last = there
    answers: dict[tuple[str, ...], Exception] = {first: requests.HTTPError("500")}

    def listed(*within: str) -> list[dict]:
        tags = ("0020000D", "0020000E", "00080018")[: len(within) + 1]
        found = dict.fromkeys(name[: len(tags)] for name in there if name[: len(within)] == within)
        return [{tag: {"Value": [value]} for tag, value in zip(tags, name, strict=True)} for name in found]

    def retrieve_instance(*name: str, media_types: object) -> pydicom.Dataset:
        if name in answers:
            raise answers[name]
        return read(there[name])

    reader = Web(WebSource("http://archive"), desk.intake, desk.store)
    client = SimpleNamespace(
        search_for_studies=lambda **_: listed(), search_for_series=lambda *within, **_: listed(*within),
        search_for_instances=lambda *within, **_: listed(*within), retrieve_instance=retrieve_instance,
    )  # fmt: skip
    monkeypatch.setattr(reader, "_client", client)
    with pytest.raises(SourceAway):
        reader.poll()
    assert [len(desk.store.studies.known(name[0])) for name in (first, last)] == [2, 2]
    received = desk.store.studies.get(desk.store.studies.key_of(first[0]))
    assert desk.store.studies.missing(received, first[1]) == ("its archive has 1 images more than it has given so far",)
    answers.clear()
    assert reader.poll() == 1 and desk.store.studies.missing(received, first[1]) == ()


def test_an_archive_that_goes_away_is_not_asked_for_one_image_after_the_other(desk, monkeypatch):
    asked = []

    def fetch(study: str, series: str, instance: str, media_types: object) -> None:
        asked.append(instance)
        raise requests.Timeout

    reader = Web(WebSource("http://archive"), desk.intake, desk.store)
    client = SimpleNamespace(
        search_for_studies=lambda **_: [{"0020000D": {"Value": ["1.2"]}}],
        search_for_series=lambda *_, **__: [{"0020000E": {"Value": ["1.2.3"]}}],
        search_for_instances=lambda *_, **__: [{"00080018": {"Value": [f"1.2.3.{n}"]}} for n in range(3)],
        retrieve_instance=fetch,
    )
    monkeypatch.setattr(reader, "_client", client)
    with pytest.raises(SourceAway):
        reader.poll()
    assert asked == ["1.2.3.0"]


def _named(image: bytes) -> tuple[str, ...]:
    return tuple(str(read(image)[name].value) for name in reversed(_NAMES))
