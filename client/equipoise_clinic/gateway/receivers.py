"""Where studies come from: a C-STORE receiver, Orthanc's stable-study event, a DICOMweb archive that is asked."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from http import HTTPStatus
from typing import Any, Protocol

import requests
from dicomweb_client.api import DICOMwebClient
from equipoise_client.errors import EquipoiseError
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from ..dicom.archive import AS_STORED, encoded
from .intake import Intake, Outcome
from .observe import Log
from .settings import OrthancSource, Receive, WebSource, password
from .spool import OutOfRoom
from .store import Store

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND, PROCESSING_FAILURE = 0x0000, 0xA700, 0xC000, 0x0110
"""DICOM PS3.4 table B.2-1 and PS3.7 annex C."""

_MAPS = "SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "DOC", "PLAN", "REG", "FID", "RWV"
"""Modalities that hold no images; not even asked for."""

_UNTIL_SETTLED = 3000.0  # seconds


class SourceAway(EquipoiseError):
    """An archive that studies are read from does not answer, or not as it should; it is asked again later."""


class Source(Protocol):
    """A place that is asked at intervals."""

    name: str
    every: float

    def poll(self) -> int:
        """Takes new images; returns how many. Raises SourceAway, OutOfRoom; what was taken before stays taken."""


class Receiver:
    """A C-STORE receiver. Answers success only for what is safely on disk; 0xA700 where there is no room.

    A malformed object is answered with 0xC000: its sender learns of it, and we keep it aside.
    """

    def __init__(self, settings: Receive, intake: Intake, log: Log) -> None:
        self._settings, self._intake, self._log = settings, intake, log
        entity = AE(ae_title=settings.aet)
        entity.supported_contexts = [
            build_context(context.abstract_syntax or "", list[str | UID](AllTransferSyntaxes))
            for context in AllStoragePresentationContexts
        ]
        entity.add_supported_context(Verification)
        entity.require_called_aet = True
        entity.require_calling_aet = list(settings.callers)
        entity.maximum_associations = settings.associations
        entity.maximum_pdu_size = 0
        self._entity = entity
        self._server: Any = None

    def start(self) -> int:
        """Listens; returns the port. Raises OSError."""
        self._server = self._entity.start_server(
            (self._settings.host, self._settings.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        return int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        """No new associations; those that are open end after the object that they are at."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        self._intake.close()
        for association in self._entity.active_associations:
            association.abort()
            association.join(5.0)

    def _store(self, event: Any) -> int:
        try:
            outcome = self._intake.take(event.encoded_dataset(), self._settings.quiet_seconds, "c-store")
        except OutOfRoom:
            self._log.warning("object refused", reason="no room", status=f"{OUT_OF_RESOURCES:#06x}")
            return OUT_OF_RESOURCES
        except Exception as error:  # noqa: BLE001 (whatever it is, the sender must keep the object)
            self._log.failure("object refused", error, source="c-store")
            return PROCESSING_FAILURE
        return CANNOT_UNDERSTAND if outcome is Outcome.ASIDE else SUCCESS


class Puller:
    """Takes what is new of one study after another; for sources that are asked.

    What was set aside or is no image is fetched once, not at every poll.
    """

    def __init__(self, intake: Intake, store: Store) -> None:
        self._intake, self._store = intake, store
        self._useless: set[str] = set()

    def take(
        self, study_uid: str, listing: Callable[[], Iterable[tuple[str, Callable[[], bytes]]]], quiet: float, name: str
    ) -> int:
        """Lists and takes until nothing new is found: images may come meanwhile, or be needed again after deletion.

        Args:
            listing: SOP Instance UIDs that the archive has of the study, and how to fetch each.
        """
        taken, before = 0, -1
        while taken != before:
            before, known = taken, self._store.studies.known(study_uid)
            for uid, fetch in listing():
                if uid in known or uid in self._useless:
                    continue
                outcome = self._intake.take(fetch(), quiet, name)
                taken += outcome is Outcome.TAKEN
                if outcome in (Outcome.IGNORED, Outcome.ASIDE):
                    self._useless.add(uid)
        return taken


class Orthanc:
    """Reads /changes from a durable position on; a study that is stable there is complete here."""

    name = "orthanc"

    def __init__(
        self, settings: OrthancSource, intake: Intake, store: Store, log: Log, passed: Callable[[str], None]
    ) -> None:
        self.every = settings.every_seconds
        self._url = settings.url.rstrip("/")
        self._store, self._log, self._passed = store, log, passed
        self._puller = Puller(intake, store)
        self._session = requests.Session()
        if settings.user:
            self._session.auth = (settings.user, password(settings.password_file))
        self._cursor = f"orthanc {self._url}"

    def poll(self) -> int:
        taken, more = 0, True
        while more:
            since = self._position()
            answer = self._json(f"/changes?since={since}&limit=100")
            stable = [str(change["ID"]) for change in answer["Changes"] if change["ChangeType"] == "StableStudy"]
            for study in stable:
                taken += self._take(study)
                self._passed("source.taken")
            if answer["Last"] != since:
                self._store.remember(self._cursor, str(answer["Last"]))
            if stable:
                self._passed("source.remembered")
            more = not answer["Done"]
        return taken

    def _position(self) -> int:
        """Where to read on; from the start where this Orthanc never got as far: it was set up anew."""
        since = int(self._store.cursor(self._cursor) or 0)
        return since if since <= int(self._json("/changes?last")["Last"]) else 0

    def _take(self, study: str) -> int:
        found = self._json(f"/studies/{study}", missing={})
        uid = str(found.get("MainDicomTags", {}).get("StudyInstanceUID", ""))
        if not uid:
            return 0  # deleted meanwhile
        try:
            # Not to be analysed before all of it is here, which `settle` says; a crash or outage may come before.
            taken = self._puller.take(uid, lambda: self._listing(study), _UNTIL_SETTLED, self.name)
        except _Damaged:
            self._json("/system")  # raises SourceAway where it is not this one image that is the matter
            self._store.studies.refuse(secrets.token_hex(8), uid, "an image cannot be fetched from the archive")
            self._log.warning(
                "study rejected", study=self._store.studies.key_of(uid), reason="an image cannot be fetched"
            )
            return 0
        self._store.studies.settle(uid)
        return taken

    def _listing(self, study: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for series in self._json(f"/studies/{study}/series", missing=[]):
            if series.get("MainDicomTags", {}).get("Modality") in _MAPS:
                continue
            for instance in self._json(f"/series/{series['ID']}/instances", missing=[]):
                path = f"/instances/{instance['ID']}/file"
                yield str(instance["MainDicomTags"].get("SOPInstanceUID", "")), functools.partial(self._get, path)

    def _json(self, path: str, missing: Any = None) -> Any:
        try:
            return json.loads(self._get(path))
        except _Missing:
            if missing is None:
                raise
            return missing
        except ValueError:
            raise SourceAway(f"Orthanc's answer to {path.split('?')[0]} is no JSON") from None

    def _get(self, path: str) -> bytes:
        try:
            answer = self._session.get(self._url + path, timeout=60)
        except requests.RequestException as error:
            raise SourceAway(f"Orthanc at {self._url} does not answer ({type(error).__name__})") from None
        if answer.status_code == requests.codes.not_found:
            raise _Missing(f"Orthanc at {self._url} has no {path.split('?')[0]}")
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and path.endswith("/file"):
            raise _Damaged(f"Orthanc at {self._url} answers {answer.status_code} for an image")
        if answer.status_code != requests.codes.ok:
            raise SourceAway(f"Orthanc at {self._url} answers {answer.status_code}")
        return answer.content


class _Missing(SourceAway):
    """It is not there (any more)."""


class _Damaged(SourceAway):
    """An image is listed, and cannot be had."""


class Web:
    """Asks a DICOMweb archive for studies that a query finds, and takes images that are new."""

    name = "dicomweb"

    def __init__(self, settings: WebSource, intake: Intake, store: Store) -> None:
        self.every = settings.every_seconds
        self._settings = settings
        self._puller = Puller(intake, store)
        session = requests.Session()
        if settings.user:
            session.auth = (settings.user, password(settings.password_file))
        self._client = DICOMwebClient(settings.url, session=session)
        self._client.set_http_retry_params(retry=False)

    def poll(self) -> int:
        try:
            return sum(self._take(uid) for uid in self._studies())
        except (requests.RequestException, OSError) as error:
            raise SourceAway(f"{self._settings.url} does not answer as it should ({type(error).__name__})") from None

    def _studies(self) -> Iterator[str]:
        filters = dict(self._settings.query)
        if self._settings.days >= 0:
            first = date.today() - timedelta(days=self._settings.days)
            filters["StudyDate"] = f"{first:%Y%m%d}-"
        offset = 0
        while True:
            page = self._client.search_for_studies(
                limit=self._settings.limit, offset=offset, search_filters=filters or None
            )
            yield from (_tag(study, "0020000D") for study in page)
            offset += len(page)
            if len(page) < self._settings.limit:
                return

    def _take(self, study: str) -> int:
        return self._puller.take(study, lambda: self._listing(study), self._settings.quiet_seconds, self.name)

    def _listing(self, study: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for series in self._client.search_for_series(study):
            if _tag(series, "00080060") in _MAPS:
                continue
            uid = _tag(series, "0020000E")
            for instance in self._client.search_for_instances(study, uid):
                name = _tag(instance, "00080018")
                yield name, functools.partial(self._fetch, study, uid, name)

    def _fetch(self, study: str, series: str, instance: str) -> bytes:
        return encoded(self._client.retrieve_instance(study, series, instance, media_types=AS_STORED))


def _tag(found: Any, tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])
