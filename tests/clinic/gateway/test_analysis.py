"""Who gives up a study, and when: a server that is away is no fault of the study, whatever else happened to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from equipoise_client import ModelDied, ServerUnavailable
from equipoise_client.images.rejections import ImagesDeleted
from equipoise_clinic.dicom.rules import Rules
from equipoise_clinic.gateway import analysis as analysis_module
from equipoise_clinic.gateway.analysis import ATTEMPTS, AnalysisWorker
from equipoise_clinic.gateway.settings import Triton

from ...support.studies import read, study

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


def test_what_is_left_of_a_series_is_not_analysed_as_if_it_were_whole(desk, monkeypatch):
    """Its earlier images were deleted, and one more came; once all are there again, it is asked for."""
    images = study()
    received = desk.received(images[:-1])
    desk.store.studies.end(received, "analysed")
    assert desk.intake.forget(desk.store.studies.get(received.key))
    partial = desk.received(images[-1:])
    asked = []
    monkeypatch.setattr(AnalysisWorker, "_one", lambda self, study, series: asked.append(series.series.uid))
    settings = SimpleNamespace(triton=Triton())
    worker = AnalysisWorker(
        settings, Rules.for_model("tiny"), None, desk.spool, desk.store, desk.log, desk.metrics, lambda _: None
    )
    worker.step()
    assert asked == [] and desk.store.studies.get(partial.key).reason == ImagesDeleted.reason
    desk.received(images)
    worker.step()
    assert asked == [str(read(images[0]).SeriesInstanceUID)] and state(desk, received) == "analysed"
