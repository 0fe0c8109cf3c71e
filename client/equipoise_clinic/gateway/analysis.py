"""From a complete study to results in the outbox: select, ask Triton, make the objects, write them, tell the store."""

from __future__ import annotations

import io
import math
import secrets
from collections.abc import Callable
from time import monotonic
from typing import Any

import pydicom
from equipoise_client.backoff import Backoff
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import (
    Cancelled,
    DeadlineExceeded,
    NotPermitted,
    ServerFailure,
    ServerUnavailable,
    UnknownModel,
)
from equipoise_client.images.rejections import ImagesDeleted
from equipoise_client.prediction import Estimate, number
from equipoise_core.decision import Route

from ..dicom.study import Analysis, Chosen, Rules, StudyRejected, analyse, select
from . import journal
from .observe import Log, Metrics
from .picture import draw
from .settings import Settings
from .spool import OutOfRoom, Spool
from .store import Kept, Result, Store, Study, fingerprint_of

_AWAY = (ServerUnavailable, NotPermitted, UnknownModel, Cancelled)
"""The server, or the way to it, is not as it should be. That is no property of the study: it waits, uncounted."""

_SICK = (ServerFailure, DeadlineExceeded)
"""The server, or the study? A server whose backend died fails on everything: counted only once others succeed."""

ATTEMPTS = 5
"""Counted failures until a study is given up."""


class Analyst:
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
        study, waits = self._store.next_study()
        if study is None:
            return waits
        began = monotonic()
        try:
            self._analyse(study)
        except StudyRejected as rejected:
            if self._store.end_study(study, "rejected", rejected.reason):
                self._log.warning("rejected", study=study.key, reason=rejected.reason)
        except _AWAY as error:
            self._metrics.reachable.labels("triton").set(0)
            pause = self._backoff.pause(self._failures)
            self._failures += 1
            if study.key in self._before:  # who is away does not fail: the hours begin anew, what it failed at stays
                self._before[study.key] = (self._before[study.key][0], monotonic())
            self._store.postpone(study, pause, counted=False)
            self._log.warning("waits for the server", study=study.key, error=type(error).__name__, seconds=pause)
        except OutOfRoom:
            raise
        except Exception as error:  # noqa: BLE001 (a study that breaks us must not take the others along)
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
            self._store.end_study(study, "dead", f"analysis failed {ATTEMPTS} times: {kind}")
        elif lasted > hours * 3600.0:
            self._store.end_study(study, "dead", f"analysis failed for {hours:g} hours: {kind}")
        else:
            self._store.postpone(study, pause, counted)

    def _analyse(self, study: Study) -> None:
        chosen = select(self._spool.incoming(study.key), self._rules)
        self._passed("analysis.selected")
        for series in chosen:
            if self._store.deleted(study, series.series.uid):
                raise ImagesDeleted
        for series in chosen:
            self._one(study, series)
        if self._store.end_study(study, "analysed"):
            self._log.info("analysed", study=study.key, series=len(chosen))
        self._passed("analysis.ended")

    def _one(self, study: Study, series: Chosen) -> None:
        analysis = analyse(series, self._client)
        self._failures = 0
        self._successes += 1
        self._before.pop(study.key, None)
        self._metrics.reachable.labels("triton").set(1)
        self._passed("analysis.answered")
        case = secrets.token_hex(8)
        result = _result(analysis)
        files = {f"{number}.dcm": _encoded(each) for number, each in enumerate(analysis.objects, start=1)}
        unused = case
        try:
            self._spool.write_folder(self._spool.outbox(case), files)
            self._passed("analysis.written")
            self._spool.write(self._spool.picture(case), draw(analysis.most_uncertain))
            self._passed("analysis.drawn")
            kept, replaced = self._store.keep(study, case, result, journal.size(self._settings.audit))
            unused = {Kept.NEW: "", Kept.REPLACED: replaced or ""}.get(kept, case)
            self._passed("analysis.recorded")
        finally:
            if unused:
                self._spool.remove(self._spool.outbox(unused))
                self._spool.remove(self._spool.picture(unused))
        self._metrics.results.labels(kept.value).inc()
        self._log.info("result", study=study.key, case=case, outcome=kept.value, route=result.route, model=result.model)


def _result(analysis: Analysis) -> Result:
    prediction = analysis.prediction
    volume = {} if analysis.volume is None else {n: _numbers(each) for n, each in analysis.volume.classes.items()}
    if analysis.volume is not None:
        volume["total"] = _numbers(analysis.volume.total)
    uids = tuple(str(each.SOPInstanceUID) for each in analysis.objects)
    score = float(analysis.case_score)
    return Result(
        series=analysis.series_uid,
        model=analysis.model,
        version=analysis.model_digest,
        fingerprint=fingerprint_of(uids),
        route=analysis.route.value,
        why=analysis.reason,
        score=score if math.isfinite(score) else None,
        volume=volume,
        marked=bool(prediction.record.get("audit")) and analysis.route is Route.ACCEPT,
        record={**prediction.record, "routed": {"route": analysis.route.value, "reason": analysis.reason}},
        objects=uids,
    )


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    return {name: number(getattr(estimate, name)) for name in ("mean", "sd", "low", "high")}


def _encoded(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
