"""Sends results, one object at a time, by STOW-RS, C-STORE or HL7, until the object has arrived or is given up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from time import time
from typing import Protocol

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from equipoise_client.backoff import Backoff
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from ..dicom.archive import holds, is_stored
from ..dicom.tls import client_context
from .faults import Away, Refused, Sick, Unwanted
from .http_session import session_of
from .observe import Log, Metrics
from .oru import Mllp, control_id, message
from .settings import Deliver, Hl7
from .spool import Spool
from .store import ORU, OutboxItem, Store

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""pynetdicom converts between the two; more than one archive takes the second alone."""

NO_KIND = (0x0122, 0xC122)
"""SOP class not supported (PS3.7 C.5.6); of STOW-RS also its transfer syntax (PS3.18 table I.2-2)."""


class Destination(Protocol):
    """Where objects are sent. To send twice what has the same UID must store it once, as DICOM archives do."""

    def send(self, dataset: pydicom.Dataset) -> None:
        """Returns when the object was stored. Raises Away, Sick, Refused, Unwanted."""


class Stow:
    """STOW-RS."""

    _LATER = (401, 403, 404, 407, 408, 425, 429)  # about access, address or load, not about the object

    def __init__(self, settings: Deliver) -> None:
        self._client = DICOMwebClient(settings.stow_url, session=session_of(settings), timeout=settings.timeout_seconds)
        self._client.set_http_retry_params(retry=False)

    def send(self, dataset: pydicom.Dataset) -> None:
        try:
            answer = self._client.store_instances([dataset])
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Sick(f"HTTP status {status}") from None
            if status in self._LATER:
                raise Away(f"HTTP status {status}") from None
            self._refused(dataset, f"HTTP status {status}", _reason(error.response))
        except (requests.RequestException, OSError) as error:
            raise (Away if _unreached(error) else Sick)(type(error).__name__) from None
        else:
            for failed in answer.get("FailedSOPSequence") or []:
                code = int(failed.get("FailureReason", 0))
                self._refused(dataset, f"failure reason {code:#06x}", code)

    def _refused(self, dataset: pydicom.Dataset, why: str, code: int = 0) -> None:
        """Some archives refuse what they hold already, sent before a crash: equal UIDs are equal objects here."""
        try:
            if holds(self._client, dataset):
                return
        except (requests.RequestException, OSError) as error:
            raise Away(type(error).__name__) from None
        if code in NO_KIND:
            raise Unwanted(f"failure reason {code:#06x}")
        raise Refused(why)


def _unreached(error: Exception) -> bool:
    """Whether no connection came about, which says nothing about the object. One that is lost may be its doing."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    kinds = (requests.ConnectTimeout, requests.exceptions.SSLError, requests.exceptions.ProxyError)
    return isinstance(error, kinds) or isinstance(cause, (NewConnectionError, ConnectTimeoutError))


def _reason(response: requests.Response | None) -> int:
    """The Failure Reason in an answer that refuses all; 0 where it states none that can be read."""
    found = re.search(rb"00081197[^0-9]+?([0-9]{3,5})", b"" if response is None else response.content[:65536])
    return int(found[1]) if found else 0


class CStore:
    """C-STORE, one association for each object: results are few."""

    def __init__(self, settings: Deliver) -> None:
        self._settings = settings
        self._tls = client_context(settings.tls_root, settings.tls_cert, settings.tls_key)

    def send(self, dataset: pydicom.Dataset) -> None:
        entity = AE(ae_title=self._settings.caller)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._settings.timeout_seconds
        entity.connection_timeout = self._settings.timeout_seconds
        syntax = dataset.file_meta.TransferSyntaxUID
        entity.add_requested_context(dataset.SOPClassUID, list(PLAIN) if syntax in PLAIN else syntax)
        host = self._settings.host
        tls = None if self._tls is None else (self._tls, host)
        association = entity.associate(host, self._settings.port, ae_title=self._settings.aet, tls_args=tls)
        if not association.is_established:
            if association.is_rejected or not association.rejected_contexts:
                raise Away("no association")
            raise Unwanted("its SOP class or transfer syntax is not accepted")
        try:
            if not association.accepted_contexts:
                raise Unwanted("its SOP class or transfer syntax is not accepted")
            status = association.send_c_store(dataset)
        except RuntimeError as error:  # the association ended
            raise Sick(type(error).__name__) from None
        finally:
            association.release()
        if "Status" not in status:
            raise Sick("no answer")  # it was there, and dropped the association: this object may be the reason
        code = int(status.Status)
        if code in NO_KIND:
            raise Unwanted(f"status {code:#06x}")
        if 0xA700 <= code <= 0xA7FF:
            raise Sick(f"status {code:#06x}")  # out of resources
        if not is_stored(code):
            raise Refused(f"status {code:#06x}")


def destination(settings: Deliver) -> Destination:
    return Stow(settings) if settings.stow_url else CStore(settings)


class DeliveryWorker:
    """Sends what is due.

    `attempts` refusals make an object a dead letter. While the destination is away no attempt is counted: everything
    waits, each time longer up to the cap, and becomes a dead letter only after `away_hours`. An answer that an object
    cannot be stored now is counted only if others have arrived in between.

    Args:
        closed: model → why it may accept nothing at present; empty: it may.
    """

    def __init__(
        self,
        settings: Deliver,
        to: Destination,
        spool: Spool,
        store: Store,
        log: Log,
        metrics: Metrics,
        passed: Callable[[str], None],
        hl7: Hl7 | None = None,
        closed: Callable[[str], str] = lambda model: "",
    ) -> None:
        self._settings, self._to, self._closed = settings, to, closed
        self._hl7, self._messages = hl7, None if hl7 is None else Mllp(hl7)
        self._backoff = Backoff(settings.first_seconds, settings.longest_seconds)
        self._spool, self._store, self._log, self._metrics, self._passed = spool, store, log, metrics, passed
        self._away: Counter[str] = Counter()  # destination → failures in a row to reach it
        self._sent: Counter[str] = Counter()  # destination → how many were sent
        self._before: dict[str, int] = {}  # object → how many were sent when its destination last could not store it

    def step(self) -> float:
        """Sends one object; returns seconds until there is something to do again."""
        item, waits = self._store.outbox.next()
        if item is None:
            return waits
        if self._held(item):
            return 0.0
        try:
            self._send(item)
        except Sick as error:
            sent = self._sent[_where(item)]
            if sent > self._before.get(item.uid, sent):
                self._refused(item, str(error))
            else:
                self._missed(item, str(error), everything=False)
            self._before[item.uid] = sent
        except Away as error:
            self._missed(item, str(error), everything=True)
        except Refused as error:
            self._refused(item, str(error))
        except Unwanted as error:
            self._unwanted(item, str(error))
        except FileNotFoundError:
            self._give_up(item, f"object {item.number} is not in the outbox any more")
        except Exception as error:  # noqa: BLE001 (one object that cannot be sent must not stop the others)
            self._log.failure("sending failed", error, case=item.case, object=item.number)
            self._refused(item, type(error).__name__)
        else:
            self._arrived(item)
        return 0.0

    def _held(self, item: OutboxItem) -> bool:
        """Whether accept was closed since the result was accepted: then nothing more of it goes without an expert."""
        case = self._store.cases.get(item.case)
        why = self._closed(case.model) if case is not None else ""
        if not why or not self._store.cases.hold(item.case, f"accept was closed before this was sent: {why}"):
            return False
        self._log.warning("accepted case held", case=item.case, why=why)
        return True

    def _send(self, item: OutboxItem) -> None:
        folder = self._spool.outbox(item.case)
        if item.sop_class != ORU:
            self._to.send(pydicom.dcmread(folder / f"{item.number}.dcm"))
            return
        case = self._store.cases.get(item.case)
        if self._hl7 is None or self._messages is None or case is None:
            raise Refused("it is an HL7 message, and [hl7] is not configured any more")
        last = max((int(each.stem) for each in folder.glob("*.dcm")), default=0)  # the report
        report = pydicom.dcmread(folder / f"{last}.dcm", stop_before_pixels=True)
        self._messages.send(message(case, report, item.uid, self._hl7), control_id(item.uid))

    def _arrived(self, item: OutboxItem) -> None:
        self._passed("delivery.sent")
        self._reached(item)
        self._sent[_where(item)] += 1
        self._before.pop(item.uid, None)
        self._metrics.deliveries.labels("sent").inc()
        complete = self._store.outbox.sent(item)
        self._passed("delivery.recorded")
        if complete:
            self._log.info("case delivered", case=item.case)

    def _reached(self, item: OutboxItem) -> None:
        self._away[_where(item)] = 0
        self._metrics.reachable.labels(_where(item)).set(1)

    def _missed(self, item: OutboxItem, why: str, everything: bool) -> None:
        where = _where(item)
        pause = self._backoff.pause(self._away[where])
        self._away[where] += 1
        self._metrics.reachable.labels(where).set(0)
        self._metrics.deliveries.labels("away").inc()
        if item.away is not None and time() - item.away > self._settings.away_hours * 3600.0:
            self._give_up(item, f"the destination was away for {self._settings.away_hours:g} hours: {why}")
            return
        self._log.warning("destination unavailable", case=item.case, destination=where, why=why, seconds=pause)
        self._store.outbox.missed(item, pause, everything)

    def _refused(self, item: OutboxItem, why: str) -> None:
        self._reached(item)
        self._metrics.deliveries.labels("refused").inc()
        if item.attempts + 1 >= self._settings.attempts:
            self._give_up(item, f"object {item.number} was refused {item.attempts + 1} times: {why}")
            return
        pause = self._backoff.pause(item.attempts)
        self._log.warning("object refused by destination", case=item.case, object=item.number, why=why, seconds=pause)
        self._store.outbox.refused(item, pause)

    def _unwanted(self, item: OutboxItem, why: str) -> None:
        """No use to try again: the others of the case go on."""
        self._reached(item)
        self._metrics.deliveries.labels("unwanted").inc()
        name = UID(item.sop_class).name or f"object {item.number}"
        self._log.warning("kind of object refused by destination", case=item.case, kind=name, why=why)
        if self._store.outbox.unwanted(item, f"{name} was not taken by the destination: {why}"):
            self._log.info("case delivered", case=item.case)

    def _give_up(self, item: OutboxItem, reason: str) -> None:
        self._metrics.deliveries.labels("dead").inc()
        self._log.warning("dead letter", case=item.case, reason=reason)
        self._store.outbox.give_up(item, reason)


def _where(item: OutboxItem) -> str:
    """The destination's name in metrics and logs."""
    return "hl7" if item.sop_class == ORU else "destination"
