"""Results on their way into a real Orthanc, and what happens when it is away or does not want them."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import requests
from equipoise_clinic.audit import end
from equipoise_clinic.dicom import archive
from equipoise_clinic.dicom.archive import holds, send
from equipoise_clinic.gateway.delivery import (
    Away,
    CStore,
    DeliveryWorker,
    Refused,
    Sick,
    Stow,
    Unwanted,
    _reason,
    destination,
)
from equipoise_clinic.gateway.settings import Deliver
from msgspec.structs import replace
from pydicom import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    ParametricMapStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt

from ...support.orthanc import orthanc
from ...support.studies import PLANTED, read, report, study


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with orthanc(tmp_path_factory.mktemp("pacs")) as site:
        yield site


def settings_of(pacs, way: str) -> Deliver:
    patient = {"first_seconds": 0.001, "longest_seconds": 0.01, "timeout_seconds": 10.0}
    if way == "stow":
        return Deliver(stow_url=pacs.dicomweb_url, **patient)
    return Deliver(host=pacs.host, port=pacs.dicom_port, aet=pacs.aet, **patient)


def delivery_worker(desk, settings: Deliver, passed=lambda point: None) -> DeliveryWorker:
    return DeliveryWorker(settings, destination(settings), desk.spool, desk.store, desk.log, desk.metrics, passed)


def waiting(desk, case: str = "c" * 16, **changes):
    """A case that may leave; its objects."""
    objects = study(count=3)
    desk.decided(desk.received(), objects, case, route="accept", **changes)
    desk.dispatched()
    return objects


@pytest.mark.parametrize("way", ["stow", "c-store"])
def test_all_objects_arrive_as_they_were_and_once(desk, pacs, way):
    objects = waiting(desk)
    sender = delivery_worker(desk, settings_of(pacs, way))
    while desk.store.cases.all()[0].state == "delivering":
        desk.store.wait(desk.store.changes, sender.step())
    assert [case.state for case in desk.store.cases.all()] == ["delivered"]
    stored = pacs.instances()
    for each in map(read, objects):
        there = read(pacs.file(stored[str(each.SOPInstanceUID)]["ID"]))
        assert there.PixelData == each.PixelData and there.SOPInstanceUID == each.SOPInstanceUID


@pytest.mark.parametrize("way", ["stow", "c-store"])
def test_what_is_sent_again_after_a_crash_is_stored_once(desk, pacs, way):
    objects = waiting(desk)

    class Killed(BaseException):
        pass

    def die(point: str) -> None:
        raise Killed(point)

    before = len(pacs.instances())
    with pytest.raises(Killed):
        delivery_worker(desk, settings_of(pacs, way), die).step()
    sender = delivery_worker(desk, settings_of(pacs, way))
    while desk.store.cases.all()[0].state == "delivering":
        desk.store.wait(desk.store.changes, sender.step())
    assert len(pacs.instances()) == before + len(objects)


@pytest.mark.slow
@pytest.mark.pacs
@pytest.mark.root
@pytest.mark.parametrize("way", ["stow", "c-store"])
def test_an_archive_that_is_away_costs_no_attempt_and_gets_everything_later(desk, tmp_path, way):
    with orthanc(tmp_path / "pacs") as site:
        settings = settings_of(site, way)
        waiting(desk)
        sender = delivery_worker(desk, settings)
        site.stop()
        missed = 0
        while missed < settings.attempts + 3:
            item, pause = desk.store.outbox.next()
            if item is None:
                desk.store.wait(desk.store.changes, pause)
                continue
            assert (item.number, item.attempts) == (1, 0)
            sender.step()
            missed += 1
        assert [case.state for case in desk.store.cases.all()] == ["delivering"]
        site.start()
        while [case.state for case in desk.store.cases.all()] != ["delivered"]:
            desk.store.wait(desk.store.changes, sender.step())
        assert len(site.instances()) == 3


def test_an_archive_that_stays_away_leaves_dead_letters(desk, pacs):
    settings = replace(settings_of(pacs, "stow"), stow_url="http://127.0.0.1:9/dicom-web", away_hours=0.0)
    waiting(desk)
    sender = delivery_worker(desk, settings)
    while desk.store.cases.all()[0].state == "delivering":
        desk.store.wait(desk.store.changes, sender.step())
    (case,) = desk.store.cases.all()
    assert case.state == "dead" and "away for 0 hours" in case.reason


@pytest.fixture
def choosy():
    """A C-STORE receiver that refuses every second object with status 0xA900, and the UIDs that it took."""
    taken, seen = [], []

    def receive(event):
        seen.append(event.request.AffectedSOPInstanceUID)
        if seen.index(seen[-1]) % 2 or (seen and seen[-1] != seen[0]):
            return 0xA900
        taken.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    entity = AE(ae_title="CHOOSY")
    entity.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, receive)])
    yield server.socket.getsockname()[1], taken
    server.shutdown()


def test_what_is_refused_is_tried_so_often_and_then_a_dead_letter(desk, choosy):
    port, taken = choosy
    settings = Deliver(
        host="127.0.0.1", port=port, aet="CHOOSY", attempts=3, first_seconds=0.001, longest_seconds=0.002
    )
    objects = waiting(desk)
    sender = delivery_worker(desk, settings)
    while desk.store.cases.all()[0].state == "delivering":
        desk.store.wait(desk.store.changes, sender.step())
    (case,) = desk.store.cases.all()
    why = [f"object {number} was refused 3 times: status 0xa900" for number in (2, 3)]
    assert (case.state, case.reason) == ("dead", "; ".join(why))
    assert taken == [read(objects[0]).SOPInstanceUID]
    events = [line["event"] for line in desk.lines()]
    assert events.count("object refused by destination") == 4 and events.count("dead letter") == 2
    assert (desk.spool.outbox(case.key) / "2.dcm").exists()
    assert not any(value in desk.text.getvalue() for value in PLANTED.values())


@contextmanager
def answering(receive, attempts: int):
    """A C-STORE receiver with this handler, and the settings to send to it."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, receive)])
    patient = {"attempts": attempts, "first_seconds": 0.001, "longest_seconds": 0.002}
    try:
        yield Deliver(host="127.0.0.1", port=server.socket.getsockname()[1], aet="PACS", **patient)
    finally:
        server.shutdown()


@pytest.fixture
def full():
    """A C-STORE receiver without room for the UIDs in the first set; the second gets the others."""
    unwelcome, taken = set(), set()

    def receive(event):
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in unwelcome:
            return 0xA700
        taken.add(uid)
        return 0x0000

    with answering(receive, attempts=2) as settings:
        yield settings, unwelcome, taken


KINDS = (SegmentationStorage, ParametricMapStorage, Comprehensive3DSRStorage)


@pytest.fixture
def narrow():
    """A C-STORE receiver for a set of SOP classes, in implicit VR alone; its settings, and the classes that it took."""
    servers, taken = [], []

    def make(*kinds: str) -> Deliver:
        entity = AE(ae_title="NARROW")
        for kind in kinds:
            entity.add_supported_context(kind, ImplicitVRLittleEndian)
        receive = lambda event: taken.append(event.request.AffectedSOPClassUID) or 0x0000  # noqa: E731
        servers.append(entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, receive)]))
        patient = {"attempts": 3, "first_seconds": 0.001, "longest_seconds": 0.002}
        return Deliver(host="127.0.0.1", port=servers[-1].socket.getsockname()[1], aet="NARROW", **patient)

    yield make, taken
    for server in servers:
        server.shutdown()


def sent_all(desk, settings: Deliver) -> None:
    sender = delivery_worker(desk, settings)
    while "delivering" in [case.state for case in desk.store.cases.all()]:
        desk.store.wait(desk.store.changes, min(sender.step(), 1.0))


def of_kinds() -> list[bytes]:
    return [report("1.2.3", kind) for kind in KINDS]


@pytest.mark.parametrize("left_out", [SegmentationStorage, ParametricMapStorage])
def test_an_archive_that_refuses_a_kind_gets_the_others(desk, narrow, left_out):
    """The report above all; and what is refused is remembered, shown, and offered once for each later result."""
    make, taken = narrow
    settings = make(*(kind for kind in KINDS if kind != left_out))
    for case in ("a" * 16, "b" * 16):
        desk.decided(desk.received(study()), of_kinds(), case, route="accept")
    desk.dispatched()
    sent_all(desk, settings)
    assert taken == [kind for kind in KINDS if kind != left_out] * 2
    ((kind, (why, objects)),) = desk.store.outbox.refusals().items()
    assert (kind, objects) == (left_out, 2) and UID(left_out).name in why
    for case in desk.store.cases.all():
        assert case.state == "delivered" and UID(left_out).name in case.reason
    assert desk.store.cases.worklist() == [], "whoever runs such an archive must not judge each case for that"
    desk.decided(desk.received(study()), of_kinds(), "d" * 16, route="accept")
    desk.dispatched()
    sent_all(desk, make(*KINDS))
    assert desk.store.outbox.refusals() == {}, "the archive has learned it"


def test_a_result_whose_report_is_refused_calls_a_person(desk, narrow):
    make, taken = narrow
    desk.decided(desk.received(), of_kinds(), route="accept")
    desk.dispatched()
    sent_all(desk, make(SegmentationStorage))
    (case,) = desk.store.cases.worklist()
    assert case.state == "dead" and "Comprehensive 3D SR Storage" in case.reason and taken == [SegmentationStorage]
    assert desk.store.revive() == 1
    sent_all(desk, make(*KINDS))
    assert [case.state for case in desk.store.cases.all()] == ["delivered"] and len(taken) == 3


def test_a_refusal_over_stow_names_its_reason():
    """FailureReason 0x0122: the class; any other: the object."""
    answer = requests.Response()
    answer._content = b'{"00081198":{"vr":"SQ","Value":[{"00081197":{"vr":"US","Value":[290]}}]}}'
    assert _reason(answer) == 0x0122 and _reason(None) == 0


def uids(objects: list[bytes]) -> set[str]:
    return {str(read(each).SOPInstanceUID) for each in objects}


def test_an_archive_that_can_store_nothing_costs_no_result(desk, full):
    settings, unwelcome, taken = full
    unwelcome |= uids(waiting(desk, "a" * 16)) | uids(waiting(desk, "b" * 16))
    sender = delivery_worker(desk, settings)
    for _ in range(20):
        desk.store.wait(desk.store.changes, min(sender.step(), 1.0))
    assert {case.state for case in desk.store.cases.all()} == {"delivering"}
    wanted = set(unwelcome)
    unwelcome.clear()
    while "delivering" in [case.state for case in desk.store.cases.all()]:
        desk.store.wait(desk.store.changes, min(sender.step(), 1.0))
    assert {case.state for case in desk.store.cases.all()} == {"delivered"} and taken == wanted


def test_an_object_that_an_archive_cannot_store_does_not_hold_up_the_others(desk, full):
    """Others keep coming and arrive, and so it is known in the end that the fault is the object's."""
    settings, unwelcome, taken = full
    unwelcome |= uids(waiting(desk, "a" * 16))
    sender = delivery_worker(desk, settings)
    for number in range(10):
        other = uids(waiting(desk, f"{number:016x}"))
        while not other <= taken:
            desk.store.wait(desk.store.changes, min(sender.step(), 1.0))
        for _ in range(3):  # nothing else is left: its turn
            desk.store.wait(desk.store.changes, min(sender.step(), 0.01))
    assert "object 1 was refused 2 times: status 0xa700" in desk.store.cases.get("a" * 16).reason


class Particular:
    """A destination that raises what is said for a UID, and takes all others."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.troubles: dict[str, Exception] = {}

    def send(self, dataset) -> None:
        if trouble := self.troubles.get(str(dataset.SOPInstanceUID)):
            raise trouble
        self.taken.append(str(dataset.SOPInstanceUID))


@pytest.mark.parametrize("trouble", [Away("HTTP status 403"), Sick("no answer")])
def test_what_keeps_a_destination_away_is_tried_after_the_others(desk, trouble):
    """The first object of the oldest case, each time. Sick holds up nothing of its own case either, but the message."""
    settings, to = Deliver(host="x", attempts=9, first_seconds=0.001, longest_seconds=0.002), Particular()
    bad, *own = (str(read(each).SOPInstanceUID) for each in waiting(desk, "a" * 16, message="1.2.3.4"))
    others = uids(waiting(desk, "b" * 16)) | uids(waiting(desk, "c" * 16))
    to.troubles[bad] = trouble
    sender = DeliveryWorker(settings, to, desk.spool, desk.store, desk.log, desk.metrics, lambda point: None)
    for _ in range(40):
        desk.store.wait(desk.store.changes, min(sender.step(), 0.01))
    assert set(to.taken) == others | (set(own) if isinstance(trouble, Sick) else set())


def test_an_association_that_is_dropped_over_one_object_costs_the_others_nothing(desk):
    """It alone is given up, when others arrived in between. An archive that drops all costs none."""
    dropped, taken = set(), set()

    def receive(event):
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in dropped:
            event.assoc.abort()
        else:
            taken.add(uid)
        return 0x0000

    with answering(receive, attempts=1) as settings:
        sender = delivery_worker(desk, settings)
        bad, *own = (str(read(each).SOPInstanceUID) for each in waiting(desk, "a" * 16))
        dropped |= {bad, *own}
        for _ in range(6):
            desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
        assert desk.store.cases.get("a" * 16).reason == ""
        dropped.difference_update(own)
        while "delivering" in [case.state for case in desk.store.cases.all()]:
            desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
    assert desk.store.cases.get("a" * 16).reason == "object 1 was refused 1 times: no answer" and taken == set(own)


def test_a_connection_that_is_lost_may_be_the_objects_doing():
    """One that never came about is not."""
    with socket.socket() as frail:
        frail.bind(("127.0.0.1", 0))
        frail.listen()
        port = frail.getsockname()[1]

        def drop() -> None:
            connection, _ = frail.accept()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=drop)
        thread.start()
        with pytest.raises(Sick):
            Stow(Deliver(stow_url=f"http://127.0.0.1:{port}/dicom-web")).send(read(study(count=1)[0]))
        thread.join()
    for url in (f"http://127.0.0.1:{port}/dicom-web", "http://no-such-host.invalid/dicom-web"):
        with pytest.raises(Away) as raised:
            Stow(Deliver(stow_url=url)).send(read(study(count=1)[0]))
        assert not isinstance(raised.value, Sick)


def test_an_object_that_is_gone_or_damaged_stops_no_other(desk, pacs):
    settings = replace(settings_of(pacs, "stow"), attempts=2)
    waiting(desk, "a" * 16)
    waiting(desk, "b" * 16)
    objects = waiting(desk, "c" * 16)
    (desk.spool.outbox("a" * 16) / "1.dcm").unlink()
    (desk.spool.outbox("b" * 16) / "1.dcm").write_bytes(b"no DICOM")
    sender = delivery_worker(desk, settings)
    while "delivering" in [case.state for case in desk.store.cases.all()]:
        desk.store.wait(desk.store.changes, min(sender.step(), 1.0))
    ended = {case.key[0]: (case.state, case.reason) for case in desk.store.cases.all()}
    assert ended["a"] == ("dead", "object 1 is not in the outbox any more")
    assert ended["b"] == ("dead", "object 1 was refused 2 times: InvalidDicomError")
    assert ended["c"][0] == "delivered"
    assert {str(read(each).SOPInstanceUID) for each in objects} <= set(pacs.instances())


@pytest.mark.parametrize(("status", "arrives"), [(0x0000, True), (0x0111, True), (0xB000, True), (0xA900, False)])
def test_what_the_archive_holds_already_has_arrived(status, arrives):
    """Sent before a crash and not noted: a duplicate, and no refusal. A warning (0xB000) means stored.

    So says `equipoise send`, too.
    """
    entity = AE(ae_title="STRICT")
    entity.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: status)])
    sender = CStore(Deliver(host="127.0.0.1", port=server.socket.getsockname()[1], aet="STRICT"))
    try:
        with nullcontext() if arrives else pytest.raises(Refused):
            sender.send(read(study(count=1)[0]))
        (stored,) = send([read(study(count=1)[0])], f"dicom://STRICT@127.0.0.1:{server.socket.getsockname()[1]}")
        assert stored.done == arrives
    finally:
        server.shutdown()


def test_stow_knows_what_the_archive_holds(pacs):
    there, elsewhere = (read(each) for each in study(count=2))
    sender = Stow(Deliver(stow_url=pacs.dicomweb_url))
    sender.send(there)
    assert holds(sender._client, there) and not holds(sender._client, elsewhere)
    with pytest.raises(Refused, match="HTTP status 409"):
        sender._refused(elsewhere, "HTTP status 409")
    sender._refused(there, "HTTP status 409")


@pytest.mark.parametrize("answer", [requests.HTTPError(response=SimpleNamespace(status_code=409)), 0x0111])
@pytest.mark.parametrize("held", [True, False])
def test_what_an_archive_refuses_as_it_holds_it_is_stored(monkeypatch, answer, held):
    """For `equipoise send` as for the gateway."""
    (image,) = study(count=1)
    uid = str(read(image).SOPInstanceUID)

    def store_instances(_):
        if isinstance(answer, Exception):
            raise answer
        failed = Dataset()
        failed.FailureReason = answer
        whole = Dataset()
        whole.FailedSOPSequence = [failed]
        return whole

    found = [{"00080018": {"Value": [uid]}}] if held else []
    client = SimpleNamespace(store_instances=store_instances, search_for_instances=lambda *_, **__: found)
    monkeypatch.setattr(archive, "_client", lambda *_: client)
    (stored,) = send([read(image)], "https://pacs/dicom-web")
    assert stored.done == held


def test_a_silent_archive_is_waited_for_as_long_as_the_configuration_says():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web"
        sender, begun = Stow(Deliver(stow_url=url, timeout_seconds=0.2)), time.monotonic()
        with pytest.raises(Away, match="Timeout"):
            sender.send(read(study(count=1)[0]))
    assert time.monotonic() - begun < 10.0, "the library's own twenty seconds"


def test_an_unknown_object_class_is_a_refusal_and_no_absence(choosy):
    port, _ = choosy
    with pytest.raises(Unwanted):
        CStore(Deliver(host="127.0.0.1", port=port, aet="CHOOSY")).send(read(report("1.2.3")))


def test_an_address_that_is_no_dicomweb_root_is_an_absence(pacs):
    with pytest.raises(Away):
        Stow(Deliver(stow_url=f"{pacs.http_url}/nothing")).send(read(study(count=1)[0]))


class Kept:
    """A destination that takes everything."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def send(self, dataset) -> None:
        self.taken.append(str(dataset.SOPInstanceUID))


@pytest.mark.parametrize("sent_before", [0, 1])
def test_what_was_accepted_before_accept_was_closed_is_held(desk, sent_before):
    """All of it, or the rest: it waits in the worklist with the reason, and goes on only by an expert's verdict."""
    objects, to, why = waiting(desk), Kept(), {"tiny": ""}
    settings = Deliver(first_seconds=0.001, longest_seconds=0.002)
    shared = (desk.spool, desk.store, desk.log, desk.metrics, lambda point: None)
    sender = DeliveryWorker(settings, to, *shared, closed=why.get)
    for _ in range(sent_before):
        sender.step()
    why["tiny"] = "wrong more often"
    while sender.step() == 0.0:
        pass
    (case,) = desk.store.cases.worklist()
    assert len(to.taken) == sent_before and case.state == "review" and "wrong more often" in case.reason
    why["tiny"] = ""
    while sender.step() == 0.0:
        pass
    assert len(to.taken) == sent_before, "opening accept again releases nothing by itself"
    why["tiny"] = "wrong more often"
    assert desk.store.cases.judge(case.key, case.fingerprint, "accept", "dr.who", end(desk.audit))
    desk.dispatched()
    while sender.step() == 0.0:
        pass
    assert len(to.taken) == len(objects) and desk.store.cases.get(case.key).state == "delivered"


def test_closing_accept_holds_no_case_that_was_not_accepted(desk):
    """What goes out as `review` says so itself, and what an expert released is released."""
    objects, to = study(count=3), Kept()
    desk.decided(desk.received(), objects, route="review")
    desk.dispatched(review="send")
    shared = (desk.spool, desk.store, desk.log, desk.metrics, lambda point: None)
    sender = DeliveryWorker(Deliver(), to, *shared, closed=lambda model: "closed")
    while sender.step() == 0.0:
        pass
    assert len(to.taken) == len(objects)
