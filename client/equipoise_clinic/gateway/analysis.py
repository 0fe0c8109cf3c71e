"""From a complete study to results in the outbox: select series, ask Triton, make and write the DICOM objects."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from time import monotonic

from equipoise_client.backoff import Backoff
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import (
    Cancelled,
    DeadlineExceeded,
    NotPermitted,
    ServerFailure,
    ServerUnavailable,
    StudyRejected,
    UnknownModel,
)
from equipoise_client.images.rejections import ImagesDeleted
from equipoise_client.prediction import number
from equipoise_core.decision import Route

from ..audit import end
from ..dicom.archive import encoded
from ..dicom.rules import Rules
from ..dicom.study import Analysis, ChosenSeries, analyse, select
from .observe import Log, Metrics
from .picture import draw
from .settings import Settings
from .spool import OutOfRoom, Spool
from .store import Kept, NewCase, Store, Study, fingerprint_of

_AWAY = (ServerUnavailable, NotPermitted, UnknownModel, Cancelled)
"""The server is away, or was set up wrongly. The study is not the reason: it waits, and no attempt is counted."""

_SICK = (ServerFailure, DeadlineExceeded)
"""Either the server or the study is the reason: an attempt is counted only if other studies succeed meanwhile."""

ATTEMPTS = 5
"""Counted failures until a study is given up."""


class AnalysisWorker:
    """Takes one study after another.

    Args:
        passed: called at each step's end with its name.
    """

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        client: UncertaintyClient,
        spool: Spool,
        store: Store,
        log: Log,
        metrics: Metrics,
        passed: Callable[[str], None],
    ) -> None:
        self._settings, self._rules, self._client = settings, rules, client
        self._backoff = Backoff(settings.triton.first_seconds, settings.triton.longest_seconds)
        self._spool, self._store, self._log, self._metrics, self._passed = spool, store, log, metrics, passed
        self._failures = 0  # in a row, to get an answer from the server
        self._successes = 0
        self._before: dict[str, tuple[int, float]] = {}  # study → successes when it last failed, when it first failed

    def step(self) -> float:
        """Analyses the study that is due longest; returns seconds until there is something to do again."""
        study, waits = self._store.studies.next()
        if study is None:
            return waits
        began = monotonic()
        try:
            self._analyse(study)
        except StudyRejected as rejected:
            if self._store.studies.end(study, "rejected", rejected.reason):
                self._log.warning("study rejected", study=study.key, reason=rejected.reason)
        except _AWAY as error:
            self._metrics.reachable.labels("triton").set(0)
            pause = self._backoff.pause(self._failures)
            self._failures += 1
            if study.key in self._before:  # while away it does not fail: the hours begin anew
                self._before[study.key] = (self._before[study.key][0], monotonic())
            self._store.studies.postpone(study, pause, counted=False)
            self._log.warning(
                "server unavailable, study waits", study=study.key, error=type(error).__name__, seconds=pause
            )
        except OutOfRoom:
            raise
        except Exception as error:  # noqa: BLE001 (one study must not stop the others)
            self._failed(study, error)
        else:
            self._metrics.analysis.observe(monotonic() - began)
        return 0.0

    def _failed(self, study: Study, error: Exception) -> None:
        self._log.failure("analysis failed", error, study=study.key)
        self._metrics.failures.labels("analysis").inc()
        kind = type(error).__name__  # a message may have file names and numbers
        counted, pause, lasted = True, self._backoff.pause(study.attempts), 0.0
        if isinstance(error, _SICK):
            successes, since = self._before.get(study.key, (self._successes, monotonic()))
            self._before[study.key] = (self._successes, since)
            counted = self._successes > successes
            lasted = monotonic() - since
            pause = self._backoff.pause(self._failures)
            self._failures += 1
        hours = self._settings.triton.give_up_hours
        if counted and study.attempts + 1 >= ATTEMPTS:
            self._store.studies.end(study, "dead", f"analysis failed {ATTEMPTS} times: {kind}")
        elif lasted > hours * 3600.0:
            self._store.studies.end(study, "dead", f"analysis failed for {hours:g} hours: {kind}")
        else:
            self._store.studies.postpone(study, pause, counted)

    def _analyse(self, study: Study) -> None:
        chosen = select(self._spool.incoming(study.key), self._rules)
        self._passed("analysis.selected")
        for series in chosen:
            if self._store.studies.deleted(study, series.series.uid):
                raise ImagesDeleted
        for series in chosen:
            self._one(study, series)
        if self._store.studies.end(study, "analysed"):
            self._log.info("study analysed", study=study.key, series=len(chosen))
        self._passed("analysis.ended")

    def _one(self, study: Study, series: ChosenSeries) -> None:
        analysis = analyse(series, self._client)
        self._failures = 0
        self._successes += 1
        self._before.pop(study.key, None)
        self._metrics.reachable.labels("triton").set(1)
        self._passed("analysis.answered")
        case = secrets.token_hex(8)
        result = _result(analysis)
        files = {f"{index}.dcm": encoded(each) for index, each in enumerate(analysis.objects, start=1)}
        unused = case
        try:
            self._spool.write_folder(self._spool.outbox(case), files)
            self._passed("analysis.written")
            self._spool.write(self._spool.picture(case), draw(analysis.most_uncertain))
            self._passed("analysis.drawn")
            kept, replaced = self._store.cases.keep(study, case, result, end(self._settings.audit))
            unused = {Kept.NEW: "", Kept.REPLACED: replaced or ""}.get(kept, case)
            self._passed("analysis.recorded")
        finally:
            if unused:
                self._spool.remove(self._spool.outbox(unused))
                self._spool.remove(self._spool.picture(unused))
        self._metrics.results.labels(kept.value).inc()
        self._log.info(
            "analysis result", study=study.key, case=case, outcome=kept.value, route=result.route, model=result.model
        )


def _result(analysis: Analysis) -> NewCase:
    prediction = analysis.prediction
    found = {} if prediction.volume is None else {**prediction.volume.classes, "total": prediction.volume.total}
    uids = tuple(str(each.SOPInstanceUID) for each in analysis.objects)
    return NewCase(
        series=analysis.series_uid,
        model=analysis.contract.name,
        version=analysis.model_digest,
        fingerprint=fingerprint_of(uids),
        route=prediction.route.value,
        why=prediction.reason,
        score=number(prediction.case_score),
        volume={name: estimate.document() for name, estimate in found.items()},
        marked=bool(prediction.record.get("audit")) and prediction.route is Route.ACCEPT,
        record={**prediction.record, "routed": {"route": prediction.route.value, "reason": prediction.reason}},
        objects=uids,
    )
