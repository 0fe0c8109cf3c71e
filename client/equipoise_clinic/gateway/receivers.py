"""Where studies come from: a C-STORE receiver, Orthanc's stable-study event, a DICOMweb archive that is asked."""

from __future__ import annotations

import functools
import io
import json
import secrets
import socket
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from http import HTTPStatus
from socketserver import BaseServer
from time import monotonic
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import requests
from dicomweb_client.api import DICOMwebClient
from equipoise_client.errors import EquipoiseError
from equipoise_client.images.dicom import decodable
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from ..dicom.archive import AS_STORED, encoded
from ..dicom.tls import server_context
from .http_session import session_of
from .intake import Intake, Outcome, study_of
from .observe import Log
from .settings import OrthancSource, Receive, WebSource
from .spool import OutOfRoom
from .store import Store

PDU = 1 << 20
"""Bytes that a sender may put into one PDU: few enough to count them before they are many."""

_LAST_FRAGMENT = 0b10
"""Of a message control header, DICOM PS3.8 annex E.2."""

_SERIES = Tag("SeriesInstanceUID")
"""The last of the UIDs that say what an object is of, in a data set's order."""

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND, PROCESSING_FAILURE = 0x0000, 0xA700, 0xC000, 0x0110
"""DICOM PS3.4 table B.2-1 and PS3.7 annex C."""

NO_IMAGES = "SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "DOC", "PLAN", "REG", "FID", "RWV"
"""Modalities that hold no images; not even asked for."""

_UNTIL_SETTLED = 3000.0  # seconds


class SourceAway(EquipoiseError):
    """An archive that studies are read from does not answer, or not as it should; it is asked again later."""


class Lost(SourceAway):
    """An image is listed, and cannot be had; others may be."""


class Source(Protocol):
    """A place that is asked at intervals."""

    name: str
    every: float

    def poll(self) -> int:
        """Takes new images; returns how many. Raises SourceAway, OutOfRoom; what was taken before stays taken."""


def syntaxes() -> list[UID]:
    """Transfer syntaxes that are offered: those whose pixels can be unpacked here, so that a sender transcodes others.

    Deflated data sets are not among them, nor is High-Throughput JPEG 2000: whoever has one can send it as it was
    before, and what nobody has to unpack cannot be unpacked wrongly.
    """
    return [
        each
        for each in AllTransferSyntaxes
        if decodable(each) and not each.is_deflated and not each.name.startswith("High-Throughput")
    ]


class _Server(ThreadedAssociationServer):
    """Somebody who connects and falls silent, a port scanner for one, stops no other and no end.

    pynetdicom's server shakes hands (TLS) in the loop that accepts connections, and reads from them without a limit.
    """

    daemon_threads = True  # those that still shake hands do not hold up `shutdown`

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = cast(socket.socket, self.socket).accept()
        connection.settimeout(self.ae.network_timeout)
        return connection, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if self.ssl_context is not None:
            try:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            except OSError:
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)

    def shutdown(self) -> None:
        BaseServer.shutdown(self)
        self.server_close()


class Receiver:
    """A C-STORE receiver. Answers success only for what is safely on disk; 0xA700 where there is no room.

    A malformed object is answered with 0xC000: its sender learns of it, and we keep it aside.

    Memory: `largest` for each association, and twice that for the one object that is being taken.
    """

    def __init__(self, settings: Receive, intake: Intake, log: Log, largest: int = 1 << 30) -> None:
        self._settings, self._intake, self._log, self._largest = settings, intake, log, largest
        self._studies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # association → study of its last good object
        self._received: WeakKeyDictionary[Any, int] = (
            WeakKeyDictionary()
        )  # association → bytes of the object that comes
        self._turn = threading.Lock()
        entity = AE(ae_title=settings.aet)
        entity.supported_contexts = [
            build_context(context.abstract_syntax or "", list[str | UID](syntaxes()))
            for context in AllStoragePresentationContexts
        ]
        entity.add_supported_context(Verification)
        entity.require_called_aet = True
        entity.require_calling_aet = list(settings.callers)
        entity.maximum_associations = settings.associations
        entity.maximum_pdu_size = PDU
        self._entity = entity
        self._server: Any = None

    def start(self) -> int:
        """Listens; returns the port. Raises OSError, InvalidInput."""
        settings = self._settings
        self._server = self._entity.make_server(
            (settings.host, settings.port),
            ssl_context=server_context(settings.tls_cert, settings.tls_key, settings.tls_clients),
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_PDU_RECV, self._count)],
            server_class=_Server,
        )
        threading.Thread(target=self._server.serve_forever, name="receive", daemon=True).start()
        return int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        """No new associations; those that are open end. Close the intake before, so that no object is cut in two."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        for association in self._entity.active_associations:
            association.abort()
            association.join(5.0)

    def _count(self, event: Any) -> None:
        """An association whose object grows beyond the limit ends, before it fills the memory."""
        if isinstance(event.pdu, P_DATA_TF):
            for item in event.pdu.presentation_data_value_items:
                data = item.presentation_data_value or b"\0"
                received = self._received.get(event.assoc, 0) + len(data)
                self._received[event.assoc] = 0 if data[0] & _LAST_FRAGMENT and received <= self._largest else received
            if self._received.get(event.assoc, 0) > self._largest:
                self._log.warning("association aborted", reason="an object is larger than largest_megabytes allows")
                try:
                    self._note_cut_off(event)
                finally:
                    event.assoc.abort()

    def _note_cut_off(self, event: Any) -> None:
        """What came before it in its study, and what comes after, is not the whole."""
        message = event.assoc.dimse.message  # as it was before this PDU
        if message is None or "AffectedSOPInstanceUID" not in message.command_set:
            return
        beginning = bytes(message.data_set.getbuffer()[:PDU])
        for item in event.pdu.presentation_data_value_items:
            beginning += (item.presentation_data_value or b"")[1:]
        syntax = event.assoc._accepted_cx[message.context_id].transfer_syntax[0]
        try:
            dataset = read_dataset(
                io.BytesIO(beginning), syntax.is_implicit_VR, syntax.is_little_endian,
                stop_when=lambda tag, vr, length: tag > _SERIES,
            )  # fmt: skip
        except Exception:  # noqa: BLE001 (malformed data makes pydicom raise nearly anything)
            dataset = Dataset()
        command = message.command_set
        study, quiet = self._studies.get(event.assoc, ""), self._settings.quiet_seconds
        kind, instance = str(command.get("AffectedSOPClassUID", "")), str(command.AffectedSOPInstanceUID)
        self._intake.cut_off(dataset, quiet, kind, study, instance)

    def _store(self, event: Any) -> int:
        try:
            study = self._studies.get(event.assoc, "")
            instance = str(event.request.AffectedSOPInstanceUID)
            with self._turn:
                content = event.encoded_dataset()
                event.request.DataSet.seek(0)
                event.request.DataSet.truncate()
                outcome = self._intake.take(content, self._settings.quiet_seconds, "c-store", study, instance)
                if outcome is not Outcome.ASIDE:
                    self._studies[event.assoc] = study_of(content, self._largest)
        except OutOfRoom:
            self._log.warning("object refused", reason="no room", status=f"{OUT_OF_RESOURCES:#06x}")
            return OUT_OF_RESOURCES
        except Exception as error:  # noqa: BLE001 (whatever it is, the sender must keep the object)
            self._log.failure("object refused", error, source="c-store")
            return PROCESSING_FAILURE
        return CANNOT_UNDERSTAND if outcome is Outcome.ASIDE else SUCCESS


AGAIN = 600.0
"""Seconds after which what was set aside is fetched again: the archive may have a good copy by then."""


@dataclass(frozen=True)
class Listed:
    """An instance that an archive has.

    Attributes:
        version: another one where the archive has other content under the same UID; "" where it does not tell.
    """

    uid: str
    fetch: Callable[[], bytes]
    version: str = ""


@dataclass(frozen=True)
class ListedSeries:
    """A series that an archive has.

    Attributes:
        stated: how many instances it says that there are; 0 where it does not say.
    """

    uid: str
    instances: tuple[Listed, ...]
    stated: int = 0


class Puller:
    """Takes what is new of one study after another; for sources that are asked.

    What is no image is fetched once, not at every poll; what was set aside, at times. A series is incomplete until all
    that was listed is here: an archive may go away in the middle of it, or have lost an image, which stops no other.
    """

    def __init__(self, intake: Intake, store: Store) -> None:
        self._intake, self._store = intake, store
        self._useless: dict[str, float] = {}  # UID → until when it is not fetched again
        self._versions: dict[str, str] = {}

    def take(self, study_uid: str, listing: Callable[[], Iterable[ListedSeries]], quiet: float, name: str) -> int:
        """Lists and takes until nothing new is found: images may come meanwhile, or be needed again after deletion.

        Args:
            listing: what the archive has of the study.

        Raises Lost where it is done with all the others, OutOfRoom.
        """
        taken, before = 0, -1
        lost: Lost | None = None
        while taken != before:
            before, known, lost = taken, self._store.studies.known(study_uid), None
            for series in listing():
                self._intake.check_open()
                wanted = [each for each in series.instances if self._wanted(each, known)]
                unlisted = max(0, series.stated - len(series.instances))
                self._store.studies.absent(study_uid, series.uid, unlisted + len(wanted))
                absent = unlisted
                for each in wanted:
                    try:
                        content = each.fetch()
                    except Lost as error:
                        lost = error
                        absent += 1
                        continue
                    outcome = self._intake.take(content, quiet, name, study_uid, each.uid)
                    taken += outcome is Outcome.TAKEN
                    self._versions[each.uid] = each.version
                    if outcome in (Outcome.IGNORED, Outcome.ASIDE):
                        again = AGAIN if outcome is Outcome.ASIDE else float("inf")
                        self._useless[each.uid] = monotonic() + again
                self._store.studies.absent(study_uid, series.uid, absent)
        if lost is not None:
            raise lost
        return taken

    def _wanted(self, listed: Listed, known: Container[str]) -> bool:
        same = not listed.version or self._versions.get(listed.uid) == listed.version
        return not (listed.uid in known and same) and self._useless.get(listed.uid, 0.0) <= monotonic()


class Orthanc:
    """Reads /changes from a durable position on; a study that is stable there is complete here."""

    name = "orthanc"

    def __init__(
        self, settings: OrthancSource, intake: Intake, store: Store, log: Log, passed: Callable[[str], None]
    ) -> None:
        self.every = settings.every_seconds
        self._url = settings.url.rstrip("/")
        self._intake, self._store, self._log, self._passed = intake, store, log, passed
        self._puller = Puller(intake, store)
        self._session = session_of(settings)
        self._cursor = f"orthanc {self._url}"

    def poll(self) -> int:
        taken, more = 0, True
        while more:
            since = self._position()
            answer = self._json(f"/changes?since={since}&limit=100")
            stable = [str(change["ID"]) for change in answer["Changes"] if change["ChangeType"] == "StableStudy"]
            for study in stable:
                self._intake.check_open()
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
        except Lost:
            self._json("/system")  # raises SourceAway where it is not this one image that is the matter
            self._store.studies.refuse(secrets.token_hex(8), uid, "an image cannot be fetched from the archive")
            self._log.warning(
                "study rejected", study=self._store.studies.key_of(uid), reason="an image cannot be fetched"
            )
            return 0
        self._store.studies.settle(uid)
        return taken

    def _listing(self, study: str) -> Iterator[ListedSeries]:
        for series in self._json(f"/studies/{study}/series", missing=[]):
            tags = series.get("MainDicomTags", {})
            if tags.get("Modality") not in NO_IMAGES:
                instances = self._json(f"/series/{series['ID']}/instances", missing=[])
                yield ListedSeries(str(tags.get("SeriesInstanceUID", "")), tuple(map(self._listed, instances)))

    def _listed(self, instance: Any) -> Listed:
        uid = str(instance["MainDicomTags"].get("SOPInstanceUID", ""))
        fetch = functools.partial(self._get, f"/instances/{instance['ID']}/file")
        return Listed(uid, fetch, str(instance.get("FileUuid", "")))

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
            raise Lost(f"Orthanc at {self._url} answers {answer.status_code} for an image")
        if answer.status_code != requests.codes.ok:
            raise SourceAway(f"Orthanc at {self._url} answers {answer.status_code}")
        return answer.content


class _Missing(SourceAway):
    """It is not there (any more)."""


class Web:
    """Asks a DICOMweb archive for studies that a query finds, and takes images that are new."""

    name = "dicomweb"

    def __init__(self, settings: WebSource, intake: Intake, store: Store) -> None:
        self.every = settings.every_seconds
        self._settings, self._intake = settings, intake
        self._puller = Puller(intake, store)
        self._client = DICOMwebClient(settings.url, session=session_of(settings))
        self._client.set_http_retry_params(retry=False)

    def poll(self) -> int:
        """One study, or one image, that the archive does not give stops no other; it is asked for at the next poll."""
        taken = 0
        trouble: Exception | None = None
        try:
            for uid in self._studies():
                self._intake.check_open()
                try:
                    taken += self._take(uid)
                except (*_NOBODY, OutOfRoom):
                    raise
                except Exception as error:  # noqa: BLE001 (whatever it is, the others have their turn)
                    trouble = trouble or error
        except (requests.RequestException, OSError) as error:
            trouble = error
        if isinstance(trouble, (requests.RequestException, OSError)):
            raise SourceAway(f"{self._settings.url} does not answer as it should ({type(trouble).__name__})") from None
        if trouble is not None:
            raise trouble
        return taken

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

    def _listing(self, study: str) -> Iterator[ListedSeries]:
        for series in self._client.search_for_series(study, get_remaining=True):
            if _tag(series, "00080060") in NO_IMAGES:
                continue
            uid = _tag(series, "0020000E")
            names = [_tag(each, _UID) for each in self._client.search_for_instances(study, uid, get_remaining=True)]
            instances = tuple(Listed(name, functools.partial(self._fetch, study, uid, name)) for name in names)
            yield ListedSeries(uid, instances, int(_tag(series, _RELATED) or 0))

    def _fetch(self, study: str, series: str, instance: str) -> bytes:
        try:
            return encoded(self._client.retrieve_instance(study, series, instance, media_types=AS_STORED))
        except _NOBODY:
            raise
        except Exception as error:  # noqa: BLE001 (an answer that cannot be read makes pydicom raise nearly anything)
            raise Lost(f"{self._settings.url} does not give an image ({type(error).__name__})") from None


_NOBODY = (requests.ConnectionError, requests.Timeout)
"""The archive does not answer at all: to ask for the next would be to wait as long again."""

_UID, _RELATED = "00080018", "00201209"
"""SOP Instance UID, Number of Series Related Instances."""


def _tag(found: Any, tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])
