"""Who gives up a study, and when: a server that is away is no fault of the study, whatever else happened to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from equipoise_client import ModelDied, ServerUnavailable
from equipoise_client.images.rejections import ImagesDeleted
from equipoise_client.prediction import Route
from equipoise_clinic.dicom.rules import Rule, Rules
from equipoise_clinic.dicom.study import PartialAnswer
from equipoise_clinic.gateway import analysis as analysis_module
from equipoise_clinic.gateway.analysis import ATTEMPTS, AnalysisWorker
from equipoise_clinic.gateway.settings import Deliver, Triton
from equipoise_clinic.gateway.spool import Spool
from pydicom.uid import Comprehensive3DSRStorage

from ...support.studies import encoded, read, report, study

HOUR = 3600.0


class Failing(AnalysisWorker):
    """Its server fails with the next of `errors`."""

    def __init__(self, desk) -> None:
        settings = SimpleNamespace(triton=Triton(first_seconds=1e-6, longest_seconds=1e-6, give_up_hours=24.0))
        super().__init__(settings, None, None, desk.spool, desk.store, desk.log, desk.metrics, lambda step: None)
        self.errors: list[Exception] = []

    def _analyse(self, study) -> None:
        raise self.errors.pop(0)

    def meets(self, error: Exception) -> None:
        self.errors.append(error)
        while self.errors:
            self.step()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(analysis_module, "monotonic", lambda: now[0])
    return now


def state(desk, received) -> str:
    return desk.store.studies.get(received.key).state


def test_an_outage_between_two_failures_does_not_count_as_failing(desk, clock):
    """Lost under way on Friday, away all the weekend, lost once more: two failures are no reason to give up."""
    received = desk.received()
    worker = Failing(desk)
    worker.meets(ModelDied())
    for _ in range(60):
        clock[0] += HOUR
        worker.meets(ServerUnavailable())
    worker.meets(ModelDied())
    assert state(desk, received) not in ("dead", "rejected")


def test_a_server_that_is_there_and_fails_for_a_day_gives_the_study_up(desk, clock):
    received = desk.received()
    worker = Failing(desk)
    worker.meets(ModelDied())
    clock[0] += 25 * HOUR
    worker.meets(ModelDied())
    assert state(desk, received) == "dead"


def test_what_kills_again_and_again_while_others_succeed_is_given_up(desk, clock):
    """Though the server is away after each time."""
    received = desk.received()
    worker = Failing(desk)
    worker.meets(ModelDied())
    for _ in range(ATTEMPTS):
        worker.meets(ServerUnavailable())
        worker._successes += 1  # of another study
        worker.meets(ModelDied())
    assert state(desk, received) == "dead"


def test_what_no_sample_can_be_drawn_of_is_given_up_while_others_succeed(desk, clock):
    """The server says that it is unavailable, as the model could answer nothing; it is there all the same."""
    received, worker, error = desk.received(), Failing(desk), ServerUnavailable()
    error.failed = True
    worker.meets(error)
    for _ in range(ATTEMPTS):
        worker._successes += 1  # of another study
        worker.meets(error)
    assert state(desk, received) == "dead"


def worker_of(desk, rules: Rules | None = None, incomplete_seconds: float = 0.0) -> AnalysisWorker:
    settings = SimpleNamespace(triton=Triton(), incomplete_seconds=incomplete_seconds)
    rules = rules or Rules.for_model("tiny")
    return AnalysisWorker(settings, rules, None, desk.spool, desk.store, desk.log, desk.metrics, lambda _: None)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, tuple[str, ...]]]:
    """(model, why its series is incomplete) of every series that the server would be asked about."""
    found: list[tuple[str, tuple[str, ...]]] = []

    def one(self, study, series) -> None:
        found.append((series.model, self._missing(study, series)))

    monkeypatch.setattr(AnalysisWorker, "_one", one)
    return found


def two_series(**changes) -> list[bytes]:
    """MR and CT of one study; `changes` are of the MR."""
    uid = str(read(study(count=1)[0]).StudyInstanceUID)
    return [*study(StudyInstanceUID=uid, **changes), *study(StudyInstanceUID=uid, Modality="CT")]


TWO = Rules((Rule("mr", modality="MR"), Rule("ct", modality="CT")))


def test_a_series_that_says_it_is_incomplete_waits_longer_and_is_asked_about_as_such(desk, asked):
    """The others of its study do not wait for it. A quiet time alone makes no series whole."""
    received = desk.received(two_series(ImagesInAcquisition=40))
    worker = worker_of(desk, TWO, incomplete_seconds=1000.0)
    for _ in range(2):
        worker.step()
        desk.store.execute("UPDATE studies SET due = 0")
    assert asked == [("ct", ())] and state(desk, received) == "receiving"
    desk.store.execute("UPDATE studies SET heard = heard - 1000")
    worker.step()
    assert asked == [("ct", ()), ("mr", ("6 of 40 images (Images in Acquisition)",))]
    assert state(desk, received) == "analysed"


def test_what_an_incomplete_series_waited_for_ends_the_wait(desk, asked):
    images = study(count=6, ImagesInAcquisition=6)
    desk.received(images[:-1])
    worker = worker_of(desk, incomplete_seconds=1000.0)
    worker.step()
    assert asked == []
    desk.received(images[-1:])
    worker.step()
    assert asked == [("tiny", ())]


def test_a_damaged_image_marks_its_series_and_no_other(desk, asked):
    images = two_series()
    uid = str(read(images[0]).StudyInstanceUID)
    desk.received([*images[:5], *images[6:]])
    desk.intake.take(images[5][:-10], 0.0, "test", uid)
    worker_of(desk, TWO).step()
    assert asked == [("mr", ("1 of its images came damaged or could not be taken",)), ("ct", ())]


def test_one_bad_series_stops_no_other(desk, asked):
    """Its reason is on the worklist; an earlier result of its model goes with it."""
    images = two_series()
    received = desk.received([*images[:2], *images[3:]])
    worker_of(desk, TWO).step()
    after = desk.store.studies.get(received.key)
    assert asked == [("ct", ())]
    assert (after.state, after.reason) == ("analysed", "mr: slices are missing")


def test_a_model_that_is_away_stops_no_other(desk, monkeypatch):
    received, done = desk.received(two_series()), []

    def one(self, study, series) -> None:
        if series.model == "mr":
            raise ServerUnavailable
        done.append(series.model)

    monkeypatch.setattr(AnalysisWorker, "_one", one)
    worker = worker_of(desk, TWO)
    for _ in range(3):
        worker.step()
        desk.store.execute("UPDATE studies SET due = 0")
    assert done == ["ct"] and state(desk, received) == "receiving"


def test_a_study_for_which_not_all_samples_can_be_drawn_reaches_a_person(desk, monkeypatch):
    """A few times a whole answer is asked for; then what was drawn is taken. The server counts as there."""
    received, asked = desk.received(), []

    def analyse(series, client, whole, **_):
        asked.append(whole)
        if whole:
            raise PartialAnswer
        return SimpleNamespace()

    monkeypatch.setattr(analysis_module, "analyse", analyse)
    monkeypatch.setattr(AnalysisWorker, "_one", lambda self, study, series: self._ask(study, series))
    worker = worker_of(desk)
    while state(desk, received) == "receiving":
        worker.step()
        desk.store.execute("UPDATE studies SET due = 0")
    assert state(desk, received) == "analysed" and asked == [True] * ATTEMPTS + [False]
    assert desk.metrics.registry.get_sample_value("equipoise_gateway_reachable", {"peer": "triton"}) == 1.0


@pytest.fixture
def answers(desk, monkeypatch):
    """A worker whose server answers with the next of some objects, and what it was told that they replace."""
    prediction = SimpleNamespace(volume=None, values=None, route=Route.ACCEPT, reason="sure", case_score=0.1, record={})
    objects: list[list[bytes]] = []
    asked: list[str] = []

    def ask(self, received, series, replaces=""):
        asked.append(replaces)
        made = [read(each) for each in objects[0]]
        if replaces:
            made[0].SOPInstanceUID += ".1"
        return SimpleNamespace(
            prediction=prediction, objects=made, series_uid="1.2.3", model_digest="f" * 64, cleaned=(),
            contract=SimpleNamespace(name="tiny"), most_uncertain=None,
        )  # fmt: skip

    monkeypatch.setattr(AnalysisWorker, "_ask", ask)
    monkeypatch.setattr(AnalysisWorker, "_pseudonym", lambda self, series: None)
    monkeypatch.setattr(analysis_module, "draw", lambda _: b"a picture")
    worker = worker_of(desk)
    worker._settings = SimpleNamespace(**vars(worker._settings), audit=desk.audit, deliver=Deliver(), hl7=None)
    return worker, objects, asked


def test_a_result_that_is_sent_while_the_next_is_made_is_named_by_it(desk, answers):
    """Else the new one would be lost: it does not fit what was there when it was asked for."""
    worker, objects, asked = answers
    received = desk.received()
    objects[:] = [[report("1.2.3", Comprehensive3DSRStorage)]]
    worker._one(received, None)
    objects[:] = [[report("1.2.3", Comprehensive3DSRStorage)]]
    keep = desk.store.cases.keep

    def sent_meanwhile(*arguments):
        desk.dispatched()
        return keep(*arguments)

    desk.store.cases.keep = sent_meanwhile
    worker._one(received, None)
    first, second = desk.store.cases.all()
    assert asked == ["", "", "", first.key], "a first, a second, and the second again"
    assert (first.late, second.late, second.replaces) == (True, False, first.key)
    worker._one(received, None)
    assert len(desk.store.cases.all()) == 2, "the same images again: the same result"


def test_a_study_of_which_all_came_damaged_says_so(desk, asked):
    for image in study(count=2):
        desk.intake.take(image[:-10], 0.0, "test")
    worker_of(desk).step()
    (received,) = desk.store.studies.all()
    assert (received.state, received.reason) == ("rejected", "an instance is damaged or cut off") and asked == []


def test_what_is_left_of_a_series_is_not_analysed_as_if_it_were_whole(desk, monkeypatch):
    """Its earlier images were deleted, and one more came; once all are there again, it is asked for."""
    images = study()
    received = desk.received(images[:-1])
    desk.store.studies.end(received, "analysed")
    assert desk.intake.forget(desk.store.studies.get(received.key))
    partial = desk.received(images[-1:])
    asked = []
    monkeypatch.setattr(AnalysisWorker, "_one", lambda self, study, series: asked.append(series.series.uid))
    worker = worker_of(desk)
    worker.step()
    assert asked == [] and desk.store.studies.get(partial.key).reason == ImagesDeleted.reason
    desk.received(images)
    worker.step()
    assert asked == [str(read(images[0]).SeriesInstanceUID)] and state(desk, received) == "analysed"


def test_a_result_of_a_model_that_gets_no_series_any_more_holds_no_longer(desk, asked):
    """The series came again as another modality: the rule for MR refuses nothing, and has nothing to choose."""
    images = two_series()
    received = desk.received(images)
    desk.decided(received, model="mr", route="accept")
    desk.store.studies.end(received, "analysed")
    for image in images[:6]:
        again = read(image)
        again.Modality = "XA"
        desk.intake.take(encoded(again), 0.0, "test")
    worker_of(desk, TWO).step()
    assert asked == [("ct", ())] and state(desk, received) == "analysed"
    assert desk.store.cases.get("c" * 16).state == "rejected"


def test_the_audit_log_knows_a_patient_again_by_a_keyed_digest_alone(desk, tmp_path):
    """The same ID in another spelling is the same patient, also after a restart; the key is this gateway's own."""

    def pseudonym(spool, **names):
        image = read(study(count=1, **names)[0])
        worker = worker_of(SimpleNamespace(spool=spool, store=desk.store, log=desk.log, metrics=desk.metrics))
        return worker._pseudonym(SimpleNamespace(series=SimpleNamespace(first=image)))

    known = pseudonym(desk.spool, PatientID="Pat 17")
    assert known == pseudonym(Spool(desk.spool.root), PatientID="pat  17") != pseudonym(desk.spool, PatientID="Pat 18")
    assert known != pseudonym(Spool(tmp_path / "elsewhere"), PatientID="Pat 17")
    assert pseudonym(desk.spool, PatientID="", PatientName="") is None
    assert len(known) == 32 and int(known, 16) >= 0
    prediction = SimpleNamespace(
        values=None, volume=None, route=Route.ACCEPT, reason="", case_score=0.1, record={"input_digest": "ab"}
    )
    found = SimpleNamespace(
        prediction=prediction, objects=(), series_uid="1.2", model_digest="cd", contract=SimpleNamespace(name="tiny")
    )
    settings = SimpleNamespace(hl7=None)
    assert analysis_module._result(found, settings, known).record["patient"] == known
    assert "patient" not in analysis_module._result(found, settings, None).record
