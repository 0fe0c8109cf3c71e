"""From a complete study to results in the outbox: select series, ask Triton, make and write the DICOM objects."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from time import monotonic, time

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
from equipoise_client.images.rejections import DamagedInstance, ImagesDeleted, NothingReadable
from equipoise_client.prediction import Estimate, number
from equipoise_core.decision import Route
from pydicom.uid import Comprehensive3DSRStorage

from ..audit import end
from ..dicom.archive import encoded
from ..dicom.identity import uid_of
from ..dicom.result_source import Predecessor
from ..dicom.rules import Rules
from ..dicom.series import dataset_of, patient_of
from ..dicom.study import Analysis, ChosenSeries, PartialAnswer, analyse, sorted_out
from .observe import Log, Metrics
from .picture import draw
from .settings import Settings, kind_of
from .spool import OutOfRoom, Spool
from .store import ORU, Kept, NewCase, NewObject, Store, Study, fingerprint_of

_AWAY = (ServerUnavailable, NotPermitted, UnknownModel, Cancelled)
"""The server is away, or was set up wrongly. The study is not the reason: it waits, and no attempt is counted."""

_SICK = (ServerFailure, DeadlineExceeded, ServerUnavailable)
"""Either the server or the study is the reason: an attempt is counted only if other studies succeed meanwhile."""


def _is_away(error: Exception) -> bool:
    return isinstance(error, _AWAY) and not (isinstance(error, ServerUnavailable) and error.failed)


ATTEMPTS = 5
"""Counted failures until a study is given up; answers that lack samples until one is taken as it is, for review."""


class AnalysisWorker:
    """Takes one study after another.

    Args:
        passed: called at each step's end with its name.
        closed: model → why it may accept nothing at present; empty: it may.
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
        closed: Callable[[str], str] = lambda model: "",
    ) -> None:
        self._settings, self._rules, self._client, self._closed = settings, rules, client, closed
        self._backoff = Backoff(settings.triton.first_seconds, settings.triton.longest_seconds)
        self._spool, self._store, self._log, self._metrics, self._passed = spool, store, log, metrics, passed
        self._failures = 0  # in a row, to get an answer from the server
        self._successes = 0
        self._done: set[tuple[str, int, str]] = set()  # study, revision, model: kept while others of the study wait
        self._partial: Counter[tuple[str, str]] = Counter()  # study, model → answers in a row that lack samples
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
        except OutOfRoom:
            raise
        except Exception as error:  # noqa: BLE001 (one study must not stop the others)
            (self._missed if _is_away(error) else self._failed)(study, error)
        else:
            self._metrics.analysis.observe(monotonic() - began)
        return 0.0

    def _missed(self, study: Study, error: Exception) -> None:
        self._metrics.reachable.labels("triton").set(0)
        pause = self._backoff.pause(self._failures)
        self._failures += 1
        if study.key in self._before:  # while away it does not fail: the hours begin anew
            self._before[study.key] = (self._before[study.key][0], monotonic())
        self._store.studies.postpone(study, pause, counted=False)
        self._log.warning("server unavailable, study waits", study=study.key, error=type(error).__name__, seconds=pause)

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
        """Every series by itself: one that cannot be used, or that a model is away for, stops no other."""
        files = [self._spool.instance(*each) for each in self._store.studies.instances(study.key)]
        try:
            selection = sorted_out(map(dataset_of, sorted(files)), self._rules)
        except NothingReadable:
            if damaged := self._store.studies.missing(study, ""):
                raise DamagedInstance("; ".join(damaged)) from None
            raise
        self._passed("analysis.selected")
        refused = {each.model: each.reason for each in selection.refused}
        trouble: Exception | None = None
        waits = 0.0
        for series in selection.chosen:
            task = (study.key, study.revision, series.model)
            try:
                missing = self._missing(study, series)
                if missing and (left := self._patience(study)) > 0.0:
                    self._log.info("incomplete series waits", study=study.key, model=series.model, why=list(missing))
                    waits = max(waits, left)
                elif task not in self._done:
                    self._one(study, series)
                    self._done.add(task)
            except StudyRejected as rejected:
                refused[series.model] = rejected
            except OutOfRoom:
                raise
            except Exception as error:  # noqa: BLE001 (raised again when the others have had their turn)
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        if waits:
            self._store.studies.postpone(study, waits, counted=False)
            return
        if refused and len(refused) == len(selection.chosen) + len(selection.refused):
            raise next(iter(refused.values()))
        reason = "; ".join(f"{model}: {rejected.reason}" for model, rejected in refused.items())
        if self._store.studies.end(study, "analysed", reason, refused.keys()):
            self._log.info("study analysed", study=study.key, series=len(selection.chosen), rejected=list(refused))
        self._done = {task for task in self._done if task[0] != study.key}
        self._passed("analysis.ended")

    def _missing(self, study: Study, series: ChosenSeries) -> tuple[str, ...]:
        """Why the series is known to be incomplete. Raises ImagesDeleted."""
        if self._store.studies.deleted(study, series.series.uid):
            raise ImagesDeleted
        return (*series.series.incomplete, *self._store.studies.missing(study, series.series.uid))

    def _patience(self, study: Study) -> float:
        """Seconds for which more of an incomplete series is waited for."""
        longest = self._settings.incomplete_seconds
        return min(study.heard + longest - time(), longest)

    def _one(self, study: Study, series: ChosenSeries) -> None:
        """Asks until the answer is kept, or more images have come: what was there before may be sent meanwhile."""
        while self._try(study, series) is Kept.STALE and self._store.studies.get(study.key).revision == study.revision:
            pass

    def _try(self, study: Study, series: ChosenSeries) -> Kept:
        """Asks, and keeps the answer: as a new version where something was sent of another result before it."""
        analysis = self._ask(study, series)
        pseudonym = self._pseudonym(series)
        result = _result(analysis, self._settings, pseudonym)
        before = self._store.cases.earlier(study, result.series, result.model, result.version)
        if before is not None:
            sent = before.late or self._store.cases.sent(before.key)
            for replaces in (before.replaces, before.key if sent else ""):
                if replaces and result.fingerprint != before.fingerprint:
                    analysis = self._ask(study, series, replaces)
                    result = _result(analysis, self._settings, pseudonym, replaces)
        return self._keep(study, analysis, result)

    def _pseudonym(self, series: ChosenSeries) -> str | None:
        """Of the patient; None where the images name none."""
        patient = patient_of(series.series.first)
        return self._spool.pseudonym(patient) if patient else None

    def _ask(self, study: Study, series: ChosenSeries, replaces: str = "") -> Analysis:
        report = self._store.cases.report(replaces, Comprehensive3DSRStorage) if replaces else None
        predecessor = None if report is None else Predecessor(*report)
        missing = self._store.studies.missing(study, series.series.uid)
        task = (study.key, series.model)
        try:
            analysis = analyse(
                series, self._client, missing=missing, predecessor=predecessor, closed=self._closed,
                whole=self._partial[task] < ATTEMPTS,
            )  # fmt: skip
        except PartialAnswer:
            self._partial[task] += 1
            raise
        self._partial.pop(task, None)
        self._failures = 0
        self._successes += 1
        self._before.pop(study.key, None)
        self._metrics.reachable.labels("triton").set(1)
        self._passed("analysis.answered")
        return analysis

    def _keep(self, study: Study, analysis: Analysis, result: NewCase) -> Kept:
        case = secrets.token_hex(8)
        files = {f"{index}.dcm": encoded(each) for index, each in enumerate(analysis.objects, start=1)}
        unused = case
        try:
            self._spool.write_folder(self._spool.outbox(case), files)
            self._passed("analysis.written")
            self._spool.write(self._spool.picture(case), draw(analysis.most_uncertain))
            self._passed("analysis.drawn")
            kept, replaced = self._store.cases.keep(study, case, result, end(self._settings.audit))
            unused = {Kept.NEW: "", Kept.LATE: "", Kept.REPLACED: replaced or ""}.get(kept, case)
            self._passed("analysis.recorded")
        finally:
            if unused:
                self._spool.remove(self._spool.outbox(unused))
                self._spool.remove(self._spool.picture(unused))
        self._metrics.results.labels(kept.value).inc()
        self._log.info(
            "analysis result", study=study.key, case=case, outcome=kept.value, route=result.route, model=result.model
        )
        if analysis.cleaned:
            self._log.warning("attributes corrected in the results", case=case, attributes=list(analysis.cleaned))
        return kept


def _result(analysis: Analysis, settings: Settings, patient: str | None, replaces: str = "") -> NewCase:
    prediction = analysis.prediction
    found: dict[str, Estimate] = dict(prediction.values or {})
    if prediction.volume is not None:
        found |= {**prediction.volume.classes, "total": prediction.volume.total}
    uids = tuple(str(each.SOPInstanceUID) for each in analysis.objects)
    if not uids:  # the decision itself
        uids = (prediction.route.value, prediction.reason, str(prediction.record.get("input_digest")))
    objects = tuple(
        NewObject(number, str(each.SOPClassUID), str(each.SeriesInstanceUID), str(each.SOPInstanceUID))
        for number, each in enumerate(analysis.objects, start=1)
        if kind_of(str(each.SOPClassUID)) in settings.deliver.objects
    )
    if settings.hl7 is not None and objects:  # the report is the last of them
        objects += (NewObject(len(analysis.objects) + 1, ORU, "", uid_of(objects[-1].uid, ORU)),)
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
        record={
            **prediction.record,
            "routed": {"route": prediction.route.value, "reason": prediction.reason},
            **({} if patient is None else {"patient": patient}),
        },
        objects=objects,
        replaces=replaces,
    )
