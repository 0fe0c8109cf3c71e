"""The running gateway: the parts wired up, a thread for each, and an orderly end."""

from __future__ import annotations

import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http import HTTPStatus
from time import time
from typing import Any, TypeVar

from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import EquipoiseError
from prometheus_client import generate_latest
from pydicom.uid import UID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..audit import AuditError
from ..dicom.rules import Rules
from ..http_server import http_server, listen
from .analysis import AnalysisWorker
from .audit_log import AuditWatch, forget, write_out
from .delivery import DeliveryWorker, destination
from .intake import Closed, Intake
from .observe import Log, Metrics, silence_libraries
from .receivers import Orthanc, Receiver, Source, SourceAway, Web
from .retrieve import Retrieve
from .settings import Settings, check_files
from .spool import OutOfRoom, Spool
from .store import FINISHED, Store

T = TypeVar("T")

_FOREIGN = 1.0  # seconds between checks for changes by another process, as the review page
_LONGEST = 60.0  # seconds of one wait; the clock may be set meanwhile
_FULL = 2.0  # seconds until a part tries again after a full disk
_TROUBLE = 5.0  # seconds until a part tries again after an unexpected error
_TIDY = 3.0  # seconds between checks for files that are no longer needed
_PURGE = 3600.0  # seconds between checks for studies that are to be forgotten
_AUDIT = 300.0  # seconds between checks of what is new in the audit log


class Gateway:
    """One process, one directory.

    Args:
        passed: called at the end of every step with its name. The process may die there and loses nothing, which
            tests try at each in turn; the service itself does nothing there.
    """

    def __init__(
        self, settings: Settings, log: Log | None = None, passed: Callable[[str], None] = lambda point: None
    ) -> None:
        self._settings = settings
        self._log = log or Log()
        self._passed = passed
        self._stop = threading.Event()
        self._troubles: dict[str, str] = {}
        self._tidied = -1  # changes of the store when the folders were tidied last

    def stop(self) -> None:
        """Ends `run` after the steps that are under way."""
        self._stop.set()

    def run(self, ready: Callable[[dict[str, int]], None] = lambda ports: None) -> None:
        """Until `stop`. Raises EquipoiseError where it cannot start.

        Args:
            ready: called once with the ports listened on: `receive` (where configured), `health`.
        """
        silence_libraries()
        settings = self._settings
        check_files(settings)
        with ExitStack() as opened:
            self._spool = Spool(settings.directory, int(settings.reserve_megabytes * 1e6))
            opened.enter_context(_alone(settings))
            longest = max(settings.deliver.longest_seconds, settings.incomplete_seconds, 3600.0)
            self._store = Store(settings.directory / "gateway.db", patience=longest)
            opened.callback(self._store.close)
            self._sweep()
            self._metrics = Metrics()
            client = opened.enter_context(
                UncertaintyClient(settings.triton.url, timeout=settings.triton.timeout_seconds, tls=settings.triton.tls)
            )
            largest = int(settings.largest_megabytes * 1e6)
            intake = Intake(self._spool, self._store, self._log, self._metrics, self._passed, largest)
            self._intake = intake
            shared = (self._spool, self._store, self._log, self._metrics, self._passed)
            watch = self._watch = AuditWatch(settings.audit, self._log, self._metrics, settings.close_on_alarm)
            watch.look()
            analysis = AnalysisWorker(settings, Rules.load(settings.rules), client, *shared, watch.closed)
            delivery = DeliveryWorker(
                settings.deliver, destination(settings.deliver), *shared, settings.hl7, watch.closed
            )
            ports = {}
            receiver = Receiver(settings.receive, intake, self._log, largest) if settings.receive else None
            if receiver is not None:
                try:
                    ports["receive"] = receiver.start()
                except OSError as error:
                    raise EquipoiseError(f"[receive] cannot listen: {error.strerror}; is the port taken?") from None
                opened.callback(receiver.stop)
            ports["health"] = opened.enter_context(self._health())
            work = {"analysis": analysis.step, "dispatch": self._dispatch, "delivery": delivery.step}
            timed: dict[str, tuple[float, Callable[[], object]]] = {
                "tidying": (_TIDY, self._tidy),
                "purging": (_PURGE, self._purge),
                "audit": (_AUDIT, watch.look),
                **{source.name: (source.every, partial(self._poll, source)) for source in self._sources(intake)},
            }
            threads = [
                *(threading.Thread(target=self._work, args=each, name=each[0]) for each in work.items()),
                *(threading.Thread(target=self._repeat, args=(name, *each), name=name) for name, each in timed.items()),
            ]
            for thread in threads:
                self._metrics.failures.labels(thread.name)  # exists as 0: an alert does not see a counter's first value
                thread.start()
            self._log.info("ready", ports=ports)
            ready(ports)
            self._stop.wait()
            self._log.info("stopping")
            intake.close()
            if receiver is not None:
                receiver.stop()
            self._store.wake()
            for thread in threads:
                thread.join()
        self._log.info("stopped")

    def _sources(self, intake: Intake) -> Iterator[Source]:
        if self._settings.orthanc is not None:
            yield Orthanc(self._settings.orthanc, intake, self._store, self._log, self._passed)
        if self._settings.dicomweb is not None:
            yield Web(self._settings.dicomweb, intake, self._store)
        if self._settings.retrieve is not None and self._settings.receive is not None:
            yield Retrieve(self._settings.retrieve, self._settings.receive.aet, intake, self._store, self._log)

    def _poll(self, source: Source) -> None:
        source.poll()
        self._metrics.reachable.labels(source.name).set(1)

    def _sweep(self) -> None:
        """Removes files that a crash left without their row: no sender got an answer, and the analysis is repeated."""
        store, spool = self._store, self._spool
        instances = {spool.instance(*each) for each in store.studies.instances()}
        count = spool.sweep(instances, {case.key for case in store.cases.all()}, set(store.studies.aside()))
        if count:
            self._log.info("unfinished files removed", files=count)

    def _work(self, name: str, step: Callable[[], float]) -> None:
        """Takes steps while there is something to do; `step` returns seconds until there is, if nothing changes."""
        while not self._stop.is_set():
            seen = self._store.changes
            pause = self._attempt(name, step)
            if pause is not None and pause > 0 and not self._stop.is_set():
                self._store.wait(seen, min(pause, _LONGEST))

    def _repeat(self, name: str, seconds: float, step: Callable[[], object]) -> None:
        """Takes a step at intervals; after an error as soon as the part has paused."""
        while not self._stop.is_set():
            self._attempt(name, step)
            if name not in self._troubles:
                self._stop.wait(seconds)

    def _attempt(self, name: str, step: Callable[[], T]) -> T | None:
        """The result of a step. An error does not end the service: it is logged, and the part pauses; then None."""
        try:
            result = step()
        except Closed:
            pass
        except OutOfRoom:
            self._trouble(name, "no room", _FULL)
        except SourceAway as error:
            self._metrics.reachable.labels(name).set(0)
            self._trouble(name, type(error).__name__, _TROUBLE)
        except Exception as error:  # noqa: BLE001 (one part's error must not end the service)
            self._log.failure("unexpected error", error, part=name)
            self._metrics.failures.labels(name).inc()
            self._trouble(name, type(error).__name__, _TROUBLE)
        else:
            self._troubles.pop(name, None)
            return result
        return None

    def _trouble(self, name: str, what: str, pause: float) -> None:
        if self._troubles.get(name) != what:
            self._log.warning("part waits", part=name, why=what, seconds=pause)
        self._troubles[name] = what
        self._stop.wait(pause)

    def _dispatch(self) -> float:
        """Writes decisions and verdicts to the audit log, then sends logged decisions on their way."""
        self._store.notice()
        if write_out(self._store, self._settings.audit, self._passed) and self._settings.close_on_alarm:
            self._watch.look()
        deliver = self._settings.deliver
        handling = {"accept": deliver.accept.value, "review": deliver.review.value, "reject": deliver.reject.value}
        for case in self._store.cases.dispatch(handling):
            self._log.info("case dispatched", case=case.key, state=case.state)
            self._passed("dispatched")
        return _FOREIGN

    def _tidy(self) -> None:
        """Deletes files that are no longer needed."""
        changes = self._store.changes
        if changes != self._tidied:
            shown = {case.key for case in self._store.cases.worklist()}
            for folder in (self._settings.directory / "outbox").iterdir():
                awaited = self._settings.hl7 is not None and folder.name in shown  # its verdict becomes a message
                if self._finished(folder.name) and not awaited:
                    self._spool.remove(folder)
            for picture in (self._settings.directory / "pictures").iterdir():
                if self._finished(picture.stem) and picture.stem not in shown:
                    self._spool.remove(picture)
            self._tidied = changes
        expired = time() - self._settings.keep_input_hours * 3600.0
        for study in self._store.studies.expired(expired, given_up=self._forgotten):
            self._intake.forget(study)
        self._intake.forget_aside(expired)
        self._passed("tidied")

    @property
    def _forgotten(self) -> float:
        """Studies of which nothing came since then are forgotten."""
        return time() - self._settings.keep_results_days * 86400.0

    def _purge(self) -> None:
        count = self._store.purge(self._forgotten)
        if count:
            self._log.info("studies forgotten", studies=count)
        days = self._settings.keep_audit_days
        try:
            deleted = forget(self._store, self._settings.audit, days) if days else 0
        except AuditError as error:  # a damaged log has a metric of its own
            self._log.failure("audit contents cannot be deleted", error)
            return
        if deleted:
            self._log.info("audit contents deleted", contents=deleted)

    def _finished(self, key: str) -> bool:
        """False also where the store does not know the case yet: its files are written first."""
        case = self._store.cases.get(key)
        return case is not None and case.state in FINISHED

    def health(self) -> dict[str, Any]:
        """`accepting` says whether new studies are taken; `trouble` which parts wait, and for what."""
        room = self._spool.free >= self._spool.reserve
        return {
            "accepting": room and not self._stop.is_set(),
            "trouble": dict(self._troubles),
            "oldest_waiting_seconds": round(self._store.studies.oldest(), 1),
            **self._store.counts(),
            "worklist": len(self._store.cases.worklist()),
            "refused_kinds": {
                UID(kind).name: {"reason": reason, "objects": objects}
                for kind, (reason, objects) in self._store.outbox.refusals().items()
            },
        }

    def exposition(self) -> bytes:
        """Prometheus's text."""
        metrics = self._metrics
        for table, states in self._store.counts().items():
            gauge = metrics.studies if table == "studies" else metrics.cases
            for state, count in states.items():
                gauge.labels(state).set(count)
        metrics.unwanted.clear()
        for kind, (_, objects) in self._store.outbox.refusals().items():
            metrics.unwanted.labels(UID(kind).name).set(objects)
        metrics.oldest.set(self._store.studies.oldest())
        metrics.worklist.set(len(self._store.cases.worklist()))
        metrics.free.set(self._spool.free)
        return generate_latest(metrics.registry)

    @contextmanager
    def _health(self) -> Iterator[int]:
        """Serves health and metrics; the port."""
        usage = PlainTextResponse("expected /live, /ready, /health or /metrics\n", HTTPStatus.NOT_FOUND)
        application = Starlette(
            routes=[
                Route("/live", lambda _: PlainTextResponse("alive\n")),
                Route("/metrics", lambda _: Response(self.exposition(), media_type="text/plain; version=0.0.4")),
                Route("/health", self._answer),
                Route("/ready", self._answer),
            ],
            exception_handlers={HTTPStatus.NOT_FOUND: lambda *_: usage},
        )
        server = http_server(application)
        with listen("health", self._settings.health.host, self._settings.health.port) as listening:
            thread = threading.Thread(target=server.run, args=([listening],), name="health")
            thread.start()
            try:
                yield int(listening.getsockname()[1])
            finally:
                server.should_exit = True
                thread.join()

    def _answer(self, request: Request) -> Response:
        health = self.health()
        return JSONResponse(health, HTTPStatus.OK if health["accepting"] else HTTPStatus.SERVICE_UNAVAILABLE)


def until_signalled(gateway: Gateway) -> None:
    """SIGTERM and SIGINT end `gateway.run` in an orderly way."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: gateway.stop())


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    with (settings.directory / "gateway.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EquipoiseError(f"another gateway works in {settings.directory}; stop it first") from None
        yield
