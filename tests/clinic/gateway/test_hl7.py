"""Decisions as HL7 messages, to a real MLLP receiver: python-hl7's own server."""

from __future__ import annotations

import asyncio
import io
import ssl
import threading
from datetime import datetime, timezone

import hl7
import pydicom
import pytest
from equipoise_clinic.dicom.identity import uid_of
from equipoise_clinic.gateway.delivery import Away, DeliveryWorker, Refused
from equipoise_clinic.gateway.oru import Mllp, control_id, message
from equipoise_clinic.gateway.service import Gateway
from equipoise_clinic.gateway.settings import Deliver, Hl7, Settings
from equipoise_clinic.gateway.store import ORU
from equipoise_deploy.certs import make_certificates
from hl7.mllp import start_hl7_server
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from ...support.studies import PLANTED, encoded, read, report, study

QUICK = {"attempts": 2, "first_seconds": 0.001, "longest_seconds": 0.002}


class Receiver:
    """Takes messages and answers each with the next of `codes`, at last with AA; "" ends the connection instead.

    Attributes:
        unwelcome: Message Control ID of one that ends the connection each time.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.taken: list[hl7.Message] = []
        self.codes: list[str] = []
        self.unwelcome = ""
        self._loop, self._context, ready = asyncio.new_event_loop(), context, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        serving = start_hl7_server(self._take, "127.0.0.1", 0, encoding="utf-8", ssl=self._context)
        server = self._loop.run_until_complete(serving)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _take(self, reader, writer) -> None:
        try:
            given = await reader.readmessage()
            code = self.codes.pop(0) if self.codes else "AA"
            code = "" if str(given.segment("MSH")[10]) == self.unwelcome else code
            if code in ("AA", "CA"):
                self.taken.append(given)
            if code == "other":
                writer.writemessage(str(given.create_ack("AA")).replace(str(given.segment("MSH")[10]), "another"))
            elif code:
                writer.writemessage(given.create_ack(code))
            await writer.drain()
        except (EOFError, OSError):
            pass
        writer.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.stop()


class Pacs:
    """A destination that takes all, or raises what it is told to."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.trouble: Exception | None = None

    def send(self, dataset: pydicom.Dataset) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.taken.append(str(dataset.SOPClassUID))


def decided(desk, case: str = "c" * 16, **changes) -> str:
    """A case with a segmentation, a report and a message that may leave; the message's UID."""
    objects = [report("1.2.3", SegmentationStorage), report("1.2.3", Comprehensive3DSRStorage)]
    uid = uid_of(str(read(objects[1]).SOPInstanceUID), ORU)
    why = "score 0.2 & below | 0.3"
    desk.decided(desk.received(study()), objects, case, uid, route="accept", why=why, **changes)
    desk.dispatched()
    return uid


def worker(desk, pacs: Pacs, port: int, **settings) -> DeliveryWorker:
    shared = (desk.spool, desk.store, desk.log, desk.metrics, lambda point: None)
    given = Hl7(host="127.0.0.1", port=port, timeout_seconds=10.0)
    return DeliveryWorker(Deliver(host="127.0.0.1", **{**QUICK, **settings}), pacs, *shared, hl7=given)


def run(desk, sender: DeliveryWorker) -> list[tuple[str, str]]:
    while "delivering" in [case.state for case in desk.store.cases.all()]:
        desk.store.wait(desk.store.changes, min(sender.step(), 1.0))
    return [(case.state, case.reason) for case in desk.store.cases.all()]


def test_route_score_and_volume_arrive_after_the_report(desk, receiver) -> None:
    """Whoever reads HL7 finds patient, order and each number with its unit; delimiters in a text stay text."""
    uid, pacs = decided(desk), Pacs()
    assert run(desk, worker(desk, pacs, receiver.port)) == [("delivered", "")]
    assert pacs.taken == [SegmentationStorage, Comprehensive3DSRStorage]
    (given,) = receiver.taken
    msh, pid, obr = (given.segment(name) for name in ("MSH", "PID", "OBR"))
    assert (str(msh[9]), str(msh[10]), str(msh[12])) == ("ORU^R01^ORU_R01", control_id(uid), "2.5.1")
    assert (str(pid[3]), str(pid[5]), str(pid[7])) == (
        PLANTED["PatientID"], PLANTED["PatientName"], PLANTED["PatientBirthDate"],
    )  # fmt: skip
    assert str(obr[3]) == PLANTED["AccessionNumber"] and str(obr[25]) == "P" and str(obr[7]) == "20190823120000"
    found = {}
    for each in given.segments("OBX"):
        code, value, unit = (str(each[field]).split("^")[0] for field in (3, 5, 6))
        found[code, str(each[4])] = (value, unit, str(each[11]))
    assert found["route", ""] == ("accept", "", "P")
    assert given.unescape(found["reason", ""][0]) == "score 0.2 & below | 0.3"
    assert found["case_score", ""] == ("0.25", "1", "P")
    volume = {name: found[name, "total"][:2] for name in ("118565006", "volume_sd", "volume_low", "volume_high")}
    assert list(volume.values()) == [(value, "mL") for value in ("1.5", "0.1", "1.2", "1.8")]
    assert found["110180", ""][0] == "1.2.3"


def test_the_numbers_of_a_regression_have_their_units(desk) -> None:
    """As the worklist shows them: not as volumes, and not in mL."""
    uid = decided(desk)
    (case,) = desk.store.cases.all()
    age = {"age": {"mean": 96.5, "sd": 4.0, "low": 88.0, "high": 105.0, "unit": "mo"}}
    object.__setattr__(case, "volume", age)
    given = hl7.parse(message(case, read(report("1.2.3", Comprehensive3DSRStorage)), uid, Hl7(host="x")))
    found = {}
    for each in given.segments("OBX"):
        code, value, unit = (str(each[field]).split("^")[0] for field in (3, 5, 6))
        if str(each[4]) == "age":
            found[code] = (value, unit)
    assert found == {
        "value": ("96.5", "mo"), "value_sd": ("4", "mo"), "value_low": ("88", "mo"), "value_high": ("105", "mo"),
    }  # fmt: skip


def test_names_beyond_ascii_arrive(desk, receiver) -> None:
    dataset = read(report("1.2.3", Comprehensive3DSRStorage))
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "Müller^Jörg^^Dr."
    decided(desk)
    (case,) = desk.store.cases.all()
    given = pydicom.dcmread(io.BytesIO(encoded(dataset)))
    Mllp(Hl7(host="127.0.0.1", port=receiver.port)).send(message(case, given, "1.2", Hl7(host="x")), control_id("1.2"))
    assert str(receiver.taken[0].segment("PID")[5]) == "Müller^Jörg^^^Dr."


def written(desk, report_: pydicom.Dataset, **changes) -> hl7.Message:
    """The message about a case; `changes` are of the case."""
    decided(desk)
    (case,) = desk.store.cases.all()
    for name, value in changes.items():
        object.__setattr__(case, name, value)
    return hl7.parse(message(case, report_, "1.2", Hl7(host="x")))


def test_numbers_have_no_exponent(desk) -> None:
    """HL7 forbids it in NM, and a receiver may read 8e-07 as 8. What is no number is left out."""
    volume = {"total": {"mean": 1234567.0, "sd": 0.0000008, "low": float("nan"), "high": 1e21}}
    given = written(desk, read(report("1.2.3", Comprehensive3DSRStorage)), score=1.25e-5, volume=volume)
    numbers = {str(each[3]).split("^")[0]: str(each[5]) for each in given.segments("OBX") if str(each[2]) == "NM"}
    assert numbers == {
        "case_score": "0.0000125", "118565006": "1234570", "volume_sd": "0.0000008", "volume_high": "1" + "0" * 21,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("=山田^太郎=やまだ^たろう", "山田^太郎"),
        ("Yamada^Tarou=山田^太郎", "Yamada^Tarou"),
        ("^^=山田", "山田"),
        ("", ""),
    ],
)
def test_a_name_without_an_alphabetic_group_is_there(desk, name: str, field: str) -> None:
    dataset = read(report("1.2.3", Comprehensive3DSRStorage))
    dataset.PatientName = name
    assert str(written(desk, dataset).segment("PID")[5]) == field


def test_a_control_character_ends_nothing(desk) -> None:
    """MLLP frames a message by 0x0B and 0x1C, HL7 ends a segment by 0x0D."""
    dataset = read(report("1.2.3", Comprehensive3DSRStorage))
    dataset.AccessionNumber, dataset.PatientSex = "A\x0b1|\x1cB", "M|"
    decided(desk)
    (case,) = desk.store.cases.all()
    object.__setattr__(case, "why", "one\r\ntwo\x00")
    text = message(case, dataset, "1.2", Hl7(host="x"))
    assert not set(text) & (set(map(chr, range(32))) - {"\r"}) and text.count("\r") == text.count("\rOBX|") + 3
    given = hl7.parse(text)
    assert str(given.segment("OBR")[3]) == "A\\X0B\\1\\F\\\\X1C\\B" and str(given.segment("PID")[8]) == "U"


def judged(desk, verdict: str, case: str = "c" * 16) -> None:
    found = desk.store.cases.get(case)
    assert desk.store.cases.judge(case, found.fingerprint, verdict, "dr.who", 0)
    desk.dispatched()


def statuses(given: hl7.Message) -> tuple[str, set[str], str | None]:
    """OBR-25, all OBX-11, and the expert's verdict."""
    verdict = [str(each[5]).split("^")[0] for each in given.segments("OBX") if str(each[3]).startswith("verdict^")]
    observed = {str(each[11]) for each in given.segments("OBX")}
    return str(given.segment("OBR")[25]), observed, verdict[0] if verdict else None


def test_what_an_expert_released_is_final_and_says_so(desk, receiver) -> None:
    """But not who it was: that stands in the audit log."""
    decided(desk, marked=False)
    desk.store.execute("UPDATE cases SET state = 'review'")
    judged(desk, "accept")
    run(desk, worker(desk, Pacs(), receiver.port))
    (given,) = receiver.taken
    assert statuses(given) == ("F", {"F"}, "accept") and "dr.who" not in str(given)


@pytest.mark.parametrize(
    ("verdict", "status"), [("accept", ("F", {"F"})), ("reject", ("C", {"W"})), ("correct", ("C", {"W"}))]
)
@pytest.mark.parametrize("late", [0, 1])
def test_a_verdict_about_what_was_sent_goes_out_as_one_more_message(desk, receiver, verdict, status, late) -> None:
    """Under another control ID; no object is sent again."""
    pacs = Pacs()
    decided(desk)
    sender = worker(desk, pacs, receiver.port)
    run(desk, sender)
    desk.store.execute("UPDATE cases SET late = ?", late)
    judged(desk, verdict)
    assert [state for state, _ in run(desk, sender)] == ["delivered"] and len(pacs.taken) == 2
    first, second = receiver.taken
    assert statuses(first) == ("P", {"P"}, None) and statuses(second) == (*status, verdict)
    assert str(first.segment("MSH")[10]) != str(second.segment("MSH")[10])
    assert str(first.segment("PID")) == str(second.segment("PID"))


def test_what_an_expert_calls_wrong_before_it_is_sent_is_no_message(desk, receiver) -> None:
    decided(desk)
    judged(desk, "reject")
    sender = worker(desk, Pacs(), receiver.port)
    assert sender.step() > 0 and run(desk, sender) == [("withheld", "")] and receiver.taken == []


def test_what_may_have_arrived_is_taken_back_and_not_sent_again(desk, receiver) -> None:
    """The receiver hung up; a repeat under the same control ID would say something else."""
    receiver.codes.append("")
    pacs = Pacs()
    decided(desk)
    sender = worker(desk, pacs, receiver.port)
    while "destination unavailable" not in [line["event"] for line in desk.lines()]:
        desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
    judged(desk, "reject")
    run(desk, sender)
    assert [statuses(each) for each in receiver.taken] == [("C", {"W"}, "reject")]
    desk.store.execute("UPDATE cases SET state = 'dead'")
    desk.store.revive()
    assert desk.store.outbox.next()[0] is None, "nothing of it is sent any more"


def test_a_report_is_kept_until_the_verdict_that_a_message_is_made_of(desk, tmp_path) -> None:
    decided(desk, marked=True)
    desk.store.execute("UPDATE cases SET state = 'delivered'")
    given = Settings(tmp_path / "gateway", tmp_path / "rules.toml", tmp_path / "log", hl7=Hl7(host="x"))
    service = Gateway(given, desk.log)
    service._store, service._spool, service._intake = desk.store, desk.spool, desk.intake
    service._tidy()
    assert (desk.spool.outbox("c" * 16) / "2.dcm").exists()
    desk.store.execute("UPDATE cases SET verdict = 'accept'")
    service._tidy()
    assert not desk.spool.outbox("c" * 16).exists()


def test_a_repeat_has_the_same_control_id_and_a_new_version_says_so(desk) -> None:
    uid = decided(desk)
    (case,) = desk.store.cases.all()
    given = read(report("1.2.3", Comprehensive3DSRStorage))
    one = message(case, given, uid, Hl7(host="x"), datetime(2026, 1, 2, tzinfo=timezone.utc))
    assert one == message(case, given, uid, Hl7(host="x"), datetime(2026, 1, 2, tzinfo=timezone.utc))
    object.__setattr__(case, "replaces", "d" * 16)
    again = hl7.parse(message(case, given, uid, Hl7(host="x")))
    assert str(again.segment("OBR")[25]) == "C" and str(again.segment("OBX")[11]) == "C"


@pytest.mark.parametrize("code", ["AE", "AR"])
def test_what_is_refused_too_often_calls_a_person(desk, receiver, code: str) -> None:
    """The objects have arrived; the message can be sent again. No text of the receiver's is repeated."""
    receiver.codes += [code] * 2
    pacs = Pacs()
    decided(desk)
    sender = worker(desk, pacs, receiver.port)
    ((state, reason),) = run(desk, sender)
    assert state == "dead" and reason == f"object 3 was refused 2 times: acknowledged with {code}"
    assert len(pacs.taken) == 2 and not receiver.taken
    assert desk.store.revive() == 1 and run(desk, sender) == [("delivered", "")] and len(receiver.taken) == 1


def test_a_receiver_that_is_away_holds_up_no_object(desk, receiver) -> None:
    """Without an acknowledgement, or with that of another message, it is sent again, and no attempt is counted."""
    receiver.codes += ["", "other", "", ""]
    pacs = Pacs()
    for case in ("a" * 16, "b" * 16):
        decided(desk, case)
    assert run(desk, worker(desk, pacs, receiver.port)) == [("delivered", "")] * 2
    assert len(pacs.taken) == 4 and len(receiver.taken) == 2


def test_a_message_that_a_receiver_hangs_up_on_does_not_hold_up_the_others(desk, receiver) -> None:
    """What arrives at the archive says nothing about it; what arrives at the same receiver does."""
    receiver.unwelcome = control_id(decided(desk, "a" * 16))
    pacs = Pacs()
    sender = worker(desk, pacs, receiver.port)
    for number in range(3):
        while [line["event"] for line in desk.lines()].count("destination unavailable") <= number:
            desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
        desk.decided(desk.received(study()), [report("1.2.3")], f"{number:016x}", route="accept")
        desk.dispatched()
        while len(pacs.taken) < number + 3:
            desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
    assert desk.store.cases.get("a" * 16).state == "delivering"
    for case in "bcdef":
        decided(desk, case * 16)
        while desk.store.cases.get(case * 16).state == "delivering":
            desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
        desk.store.wait(desk.store.changes, 0.01)
        sender.step()  # its turn
    assert desk.store.cases.get("a" * 16).reason.startswith("object 3 was refused 2 times") and len(receiver.taken) == 5


def test_an_archive_that_is_away_holds_up_no_message(desk, receiver) -> None:
    pacs = Pacs()
    decided(desk)
    sender = worker(desk, pacs, receiver.port)
    sender.step(), sender.step()
    decided(desk, "b" * 16)
    pacs.trouble = Away("gone")
    while not receiver.taken:
        desk.store.wait(desk.store.changes, min(sender.step(), 0.1))
    assert len(pacs.taken) == 2


def test_a_result_whose_report_is_refused_is_dead_whatever_the_message(desk, receiver) -> None:
    pacs = Pacs()
    pacs.trouble = Refused("status 0xa900")
    decided(desk)
    ((state, _),) = run(desk, worker(desk, pacs, receiver.port))
    assert state == "dead" and len(receiver.taken) == 1


def test_over_tls_with_client_certificates(tmp_path) -> None:
    make_certificates(tmp_path, ["127.0.0.1"], ["gateway"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    receiver = Receiver(context)
    pair = {
        "tls_cert": tmp_path / "clients" / "gateway.pem", "tls_key": tmp_path / "clients" / "gateway.key",
    }  # fmt: skip
    text = "MSH|^~\\&|A||B||20260101||ORU^R01^ORU_R01|one|P|2.5.1\r"
    try:
        Mllp(Hl7(host="127.0.0.1", port=receiver.port, tls_root=tmp_path / "ca.pem", **pair)).send(text, "one")
        for tls in ({}, {"tls_root": tmp_path / "ca.pem"}):
            with pytest.raises(Away):
                Mllp(Hl7(host="127.0.0.1", port=receiver.port, timeout_seconds=10.0, **tls)).send(text, "one")
    finally:
        receiver.stop()
    assert len(receiver.taken) == 1
