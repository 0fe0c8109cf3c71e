"""Results on their way out: one object at a time, by STOW-RS or C-STORE, again and again until it is there or dead."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from time import time
from typing import Protocol

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from equipoise_client.backoff import Backoff
from equipoise_client.errors import EquipoiseError
from pynetdicom import AE

from .observe import Log, Metrics
from .settings import Deliver, password
from .spool import Spool
from .store import Parcel, Store

_DUPLICATE = 0x0111
"""DICOM PS3.7 section C.5.14: it is there already, sent before a crash; equal UIDs are equal objects here."""


class Away(EquipoiseError):
    """Nobody answers, or not as somebody who could decide: says nothing about the object."""


class Sick(Away):
    """It answers that it cannot: because of its own state, or because of this object; others will tell."""


class Refused(EquipoiseError):
    """The destination does not want this object. The message is a status, never what the destination wrote."""


class Destination(Protocol):
    """Where objects are sent. To send twice what has the same UID must store it once, as DICOM archives do."""

    def send(self, dataset: pydicom.Dataset) -> None:
        """Returns when the object was stored. Raises Away, Sick, Refused."""


class Stow:
    """STOW-RS."""

    _LATER = (401, 403, 404, 407, 408, 425, 429)  # a matter of access, address or load, not of the object

    def __init__(self, settings: Deliver) -> None:
        session = requests.Session()
        if settings.user:
            session.auth = (settings.user, password(settings.password_file))
        self._client = DICOMwebClient(settings.stow_url, session=session, timeout=settings.timeout_seconds)
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
            self._refused(dataset, f"HTTP status {status}")
        except (requests.RequestException, OSError) as error:
            raise Away(type(error).__name__) from None
        else:
            for failed in answer.get("FailedSOPSequence") or []:
                self._refused(dataset, f"failure reason {int(failed.get('FailureReason', 0)):#06x}")

    def holds(self, dataset: pydicom.Dataset) -> bool:
        """Whether an object of this UID is there, by QIDO-RS."""
        uid = str(dataset.SOPInstanceUID)
        where = (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID))
        found = self._client.search_for_instances(*where, search_filters={"SOPInstanceUID": uid})
        return any(uid in each.get("00080018", {}).get("Value", []) for each in found)

    def _refused(self, dataset: pydicom.Dataset, why: str) -> None:
        """Some archives refuse what they hold already, sent before a crash: equal UIDs are equal objects here."""
        try:
            if self.holds(dataset):
                return
        except (requests.RequestException, OSError) as error:
            raise Away(type(error).__name__) from None
        raise Refused(why)


class CStore:
    """C-STORE, one association for each object: results are few."""

    def __init__(self, settings: Deliver) -> None:
        self._settings = settings

    def send(self, dataset: pydicom.Dataset) -> None:
        entity = AE(ae_title=self._settings.caller)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._settings.timeout_seconds
        entity.connection_timeout = self._settings.timeout_seconds
        entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
        association = entity.associate(self._settings.host, self._settings.port, ae_title=self._settings.aet)
        if not association.is_established:
            if association.is_rejected or not association.rejected_contexts:
                raise Away("no association")
            raise Refused("its SOP class or transfer syntax is not accepted")
        try:
            if not association.accepted_contexts:
                raise Refused("its SOP class or transfer syntax is not accepted")
            status = association.send_c_store(dataset)
        except RuntimeError as error:  # the association ended
            raise Away(type(error).__name__) from None
        finally:
            association.release()
        if "Status" not in status:
            raise Away("no answer")
        code = int(status.Status)
        if 0xA700 <= code <= 0xA7FF:
            raise Sick(f"status {code:#06x}")  # out of resources
        if code not in (0x0000, _DUPLICATE) and not 0xB000 <= code <= 0xBFFF:
            raise Refused(f"status {code:#06x}")


def destination(settings: Deliver) -> Destination:
    return Stow(settings) if settings.stow_url else CStore(settings)


class Courier:
    """Sends what is due.

    A refusal counts against the object, `attempts` of them make it a dead letter. A destination that is away counts
    against nothing: everything waits, ever longer up to the cap, and only after `away_hours` are there dead letters.
    One that says that it cannot store an object counts against it only once others have arrived in between.
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
    ) -> None:
        self._settings, self._to = settings, to
        self._backoff = Backoff(settings.first_seconds, settings.longest_seconds)
        self._spool, self._store, self._log, self._metrics, self._passed = spool, store, log, metrics, passed
        self._away = 0  # failures in a row to reach the destination
        self._sent = 0
        self._before: dict[str, int] = {}  # object → how many were sent when the destination last could not store it

    def step(self) -> float:
        """Sends one object; returns seconds until there is something to do again."""
        parcel, waits = self._store.next_parcel()
        if parcel is None:
            return waits
        try:
            self._to.send(pydicom.dcmread(self._spool.outbox(parcel.case) / f"{parcel.number}.dcm"))
        except Sick as error:
            if self._sent > self._before.get(parcel.uid, self._sent):
                self._refused(parcel, str(error))
            else:
                self._missed(parcel, str(error), everything=False)
            self._before[parcel.uid] = self._sent
        except Away as error:
            self._missed(parcel, str(error), everything=True)
        except Refused as error:
            self._refused(parcel, str(error))
        except FileNotFoundError:
            self._give_up(parcel, f"object {parcel.number} is not in the outbox any more")
        except Exception as error:  # noqa: BLE001 (one object that cannot be sent must not stop the others)
            self._log.failure("sending failed", error, case=parcel.case, object=parcel.number)
            self._refused(parcel, type(error).__name__)
        else:
            self._arrived(parcel)
        return 0.0

    def _arrived(self, parcel: Parcel) -> None:
        self._passed("delivery.sent")
        self._away = 0
        self._sent += 1
        self._before.pop(parcel.uid, None)
        self._metrics.reachable.labels("destination").set(1)
        self._metrics.deliveries.labels("sent").inc()
        complete = self._store.sent(parcel)
        self._passed("delivery.recorded")
        if complete:
            self._log.info("delivered", case=parcel.case)

    def _missed(self, parcel: Parcel, why: str, everything: bool) -> None:
        pause = self._backoff.pause(self._away)
        self._away += 1
        self._metrics.reachable.labels("destination").set(0)
        self._metrics.deliveries.labels("away").inc()
        if parcel.away is not None and time() - parcel.away > self._settings.away_hours * 3600.0:
            self._give_up(parcel, f"the destination was away for {self._settings.away_hours:g} hours: {why}")
            return
        self._log.warning("destination away", case=parcel.case, why=why, seconds=pause)
        self._store.missed(parcel, pause, everything)

    def _refused(self, parcel: Parcel, why: str) -> None:
        self._away = 0
        self._metrics.reachable.labels("destination").set(1)
        self._metrics.deliveries.labels("refused").inc()
        if parcel.attempts + 1 >= self._settings.attempts:
            self._give_up(parcel, f"object {parcel.number} was refused {parcel.attempts + 1} times: {why}")
            return
        pause = self._backoff.pause(parcel.attempts)
        self._log.warning("refused by destination", case=parcel.case, object=parcel.number, why=why, seconds=pause)
        self._store.refused(parcel, pause)

    def _give_up(self, parcel: Parcel, reason: str) -> None:
        self._metrics.deliveries.labels("dead").inc()
        self._log.warning("dead letter", case=parcel.case, reason=reason)
        self._store.give_up(parcel, reason)
