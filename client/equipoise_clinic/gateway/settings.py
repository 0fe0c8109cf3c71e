"""The gateway's configuration: one TOML file, read strictly. `example.toml` beside this file explains every key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from equipoise_client.errors import EquipoiseError, InvalidInput
from equipoise_client.transport import Tls
from msgspec import Meta
from msgspec.structs import replace
from pydicom.uid import UID, Comprehensive3DSRStorage, ParametricMapStorage, SegmentationStorage

from ..dicom.archive import checked_aet
from ..dicom.tls import client_context, server_context
from ..toml_file import Strict, read_toml

Port = Annotated[int, Meta(ge=0, le=65535)]

EXAMPLE = Path(__file__).with_name("example.toml")


class BadSettings(EquipoiseError, ValueError):
    """The configuration cannot be used; the message names the key."""


class Handling(str, Enum):
    """Whether the objects of a route are sent at once, or held until a verdict."""

    SEND = "send"
    HOLD = "hold"


class ObjectKind(str, Enum):
    """Kinds of result objects."""

    SEGMENTATION = "segmentation"
    MAPS = "maps"
    REPORT = "report"


_KINDS = {
    SegmentationStorage: ObjectKind.SEGMENTATION,
    ParametricMapStorage: ObjectKind.MAPS,
    Comprehensive3DSRStorage: ObjectKind.REPORT,
}


def kind_of(sop_class: str) -> ObjectKind | None:
    """None: no class of ours, or (in a database of an earlier version) not noted."""
    return _KINDS.get(UID(sop_class))


class Triton(Strict, frozen=True):
    """The Triton server that analyses the studies.

    Attributes:
        first_seconds, longest_seconds: pause after the first failure, doubled after each, and its cap.
        give_up_hours: a study is given up when a reachable server fails on it for this long.
    """

    url: str = "localhost:8001"
    timeout_seconds: float = 120.0
    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    give_up_hours: float = 24.0
    tls_root: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def tls(self) -> Tls | None:
        return Tls(self.tls_root, self.tls_cert, self.tls_key) if self.tls_root or self.tls_cert else None


class Receive(Strict, frozen=True):
    """A C-STORE receiver.

    Attributes:
        callers: AE titles that may send; empty: any.
        quiet_seconds: a study is looked at when nothing of it has arrived for this long.
        tls_cert, tls_key: of this receiver; it then takes TLS alone.
        tls_clients: authority whose certificates senders must have.
    """

    aet: str = "EQUIPOISE"
    host: str = "127.0.0.1"
    port: Port = 11112
    callers: tuple[str, ...] = ()
    quiet_seconds: float = 30.0
    associations: int = 10
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_clients: Path | None = None


class OrthancSource(Strict, frozen=True):
    """An Orthanc whose stable studies are analysed.

    Attributes:
        tls_root, tls_cert, tls_key: as of `Deliver`.
    """

    url: str
    user: str = ""
    password_file: Path | None = None
    every_seconds: float = 2.0
    tls_root: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class WebSource(Strict, frozen=True):
    """A DICOMweb archive that is queried at intervals (QIDO-RS, WADO-RS).

    Attributes:
        query: attribute → value, as `ModalitiesInStudy = "MR"`.
        days: only studies of today and this many days before; 0: today; -1: all that the query finds.
        quiet_seconds: a study is complete when queries have found nothing new of it for this long.
        tls_root, tls_cert, tls_key: as of `Deliver`.
    """

    url: str
    query: Mapping[str, str] = {}
    days: int = 1
    limit: int = 100
    every_seconds: float = 30.0
    quiet_seconds: float = 60.0
    user: str = ""
    password_file: Path | None = None
    tls_root: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class RetrieveSource(Strict, frozen=True):
    """A PACS that is queried at intervals by C-FIND, and sends to `[receive]` by C-MOVE.

    Attributes:
        query, days: as of `WebSource`.
        timeout_seconds: without an answer; between two of a C-MOVE as well, so as long as its slowest image takes.
        tls_root, tls_cert, tls_key: as of `Deliver`.
    """

    host: str
    port: Port = 104
    aet: str = "PACS"
    caller: str = "EQUIPOISE"
    query: Mapping[str, str] = {}
    days: int = 1
    every_seconds: Annotated[float, Meta(gt=0)] = 30.0
    timeout_seconds: Annotated[float, Meta(gt=0)] = 300.0
    tls_root: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Deliver(Strict, frozen=True):
    """Where results are sent, and which are sent without a verdict.

    Attributes:
        stow_url: DICOMweb root; else `host`, `port`, `aet` name a C-STORE receiver.
        objects: kinds of objects that are sent; others are made and kept for the worklist only.
        attempts: refusals of one object after which it becomes a dead letter.
        away_hours: results become dead letters when the destination cannot be reached for this long.
        first_seconds, longest_seconds: pause after the first failure, doubled after each, and its cap.
        tls_root: authority to trust; C-STORE then goes over TLS. With `https` in `stow_url`: instead of the system's.
        tls_cert, tls_key: prove who this gateway is.
    """

    stow_url: str = ""
    user: str = ""
    password_file: Path | None = None
    host: str = ""
    port: Port = 104
    aet: str = "PACS"
    caller: str = "EQUIPOISE"
    accept: Handling = Handling.SEND
    review: Handling = Handling.HOLD
    reject: Handling = Handling.HOLD
    objects: tuple[ObjectKind, ...] = tuple(ObjectKind)
    attempts: Annotated[int, Meta(ge=1)] = 8
    away_hours: float = 96.0
    first_seconds: Annotated[float, Meta(gt=0)] = 2.0
    longest_seconds: float = 300.0
    timeout_seconds: float = 60.0
    tls_root: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Hl7(Strict, frozen=True):
    """A receiver of HL7 v2 messages (MLLP), which is told each decision whose objects are sent.

    Attributes:
        processing_id: HL7 table 0103: P production, T training, D debugging.
        timeout_seconds: for the connection, and again for the acknowledgement.
        tls_root, tls_cert, tls_key: as of `Deliver`. Attempts, pauses and `away_hours` are those of `Deliver`, too.
    """

    host: str
    port: Port = 2575
    sending_application: str = "EQUIPOISE"
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    processing_id: Literal["P", "T", "D"] = "P"
    timeout_seconds: Annotated[float, Meta(gt=0)] = 30.0
    tls_root: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Health(Strict, frozen=True):
    """Where health and metrics are served."""

    host: str = "127.0.0.1"
    port: Port = 8046


class Review(Strict, frozen=True):
    """The worklist page.

    Attributes:
        origin: as browsers see it behind a proxy, `https://worklist.example.org`; else the address listened on.
        proxy_header: request header in which an authenticating proxy names the reviewer; empty: local tokens.
        trusted_proxies: addresses from which that header is believed.
        viewer: link into a viewer; `{study}` becomes the Study Instance UID.
    """

    host: str = "127.0.0.1"
    port: Port = 8044
    origin: str = ""
    proxy_header: str = ""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    viewer: str = ""
    session_hours: float = 10.0


class Settings(Strict, frozen=True):
    """All of it.

    Attributes:
        directory: database, spool, outbox and pictures: patient data: on an encrypted disk, private to this user.
        rules: which series goes to which model (`equipoise_clinic.dicom.rules.Rules`).
        audit: the hash-chained log of decisions and verdicts; default: `decisions.jsonl` in `directory`.
        close_on_alarm: where a monitor of the audit log alarms, nothing of that model is accepted until a named person
            opens it again (`equipoise audit open`).
        reserve_megabytes: with less free disk space new input is refused, so that accepted studies can be finished.
        keep_input_hours: received images are deleted this long after the last of their study, once it is done with;
            those of a study that was given up stay for `keep_results_days`, so that it can be tried again.
        keep_results_days: what the database holds of a study that is done with is deleted this long after its last
            image; the audit log is kept.
        keep_audit_days: contents of the audit log are deleted this long after they were written, the chain stays; 0:
            never.
        oversight: who oversees the service, a role and how to reach it; for `equipoise dossier`.
        incomplete_seconds: a series that is known to be incomplete is waited for this long after its study's last
            image; then it goes to review.
        largest_megabytes: larger objects are not taken, so that memory is bounded: by `associations` + 2 times this
            while images come, and by the largest series that a rule sends to a model.
    """

    directory: Path
    rules: Path
    audit: Path = Path()
    triton: Triton = Triton()
    receive: Receive | None = None
    orthanc: OrthancSource | None = None
    dicomweb: WebSource | None = None
    retrieve: RetrieveSource | None = None
    deliver: Deliver = Deliver()
    hl7: Hl7 | None = None
    health: Health = Health()
    review: Review = Review()
    close_on_alarm: bool = False
    reserve_megabytes: float = 2048.0
    keep_input_hours: float = 24.0
    keep_results_days: Annotated[float, Meta(ge=1)] = 365.0
    keep_audit_days: Annotated[float, Meta(ge=0)] = 0.0
    oversight: str = ""
    incomplete_seconds: Annotated[float, Meta(ge=0, le=86400)] = 600.0
    largest_megabytes: Annotated[float, Meta(gt=0)] = 1024.0


def load_settings(path: Path) -> Settings:
    """Reads `path`; relative paths in it are relative to it. Raises BadSettings."""
    try:
        settings = read_toml(path, Settings)
    except InvalidInput as error:
        raise BadSettings(f"{error}; `equipoise gateway --example` explains every key") from None
    if settings.audit == Path():
        settings = replace(settings, audit=settings.directory / "decisions.jsonl")
    _check(settings)
    return settings


def password(file: Path | None) -> str:
    """The first line of a password file. Raises BadSettings."""
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError):
        raise BadSettings(f"password_file {file}: cannot be read, or is empty") from None


def check_files(settings: Settings) -> None:
    """Whether the files that it names can be used: certificates, keys, passwords. Raises BadSettings."""
    for name, table in _tables(settings):
        files = [getattr(table, key, None) for key in ("tls_root", "tls_cert", "tls_key", "tls_clients")]
        root, certificate, key, clients = files
        try:
            if name == "receive":
                server_context(certificate, key, clients)
            else:
                client_context(root, certificate, key)
            password(getattr(table, "password_file", None))
        except InvalidInput as error:
            raise BadSettings(f"[{name}] {error}") from None
        except BadSettings as error:
            raise BadSettings(f"[{name}] {error}") from None


def _tables(settings: Settings) -> Iterator[tuple[str, Strict]]:
    """Those that name a peer."""
    for name in ("triton", "receive", "orthanc", "dicomweb", "retrieve", "deliver", "hl7"):
        if (table := getattr(settings, name)) is not None:
            yield name, table


def _check_peers(settings: Settings) -> None:
    """What would fail at the start, or be of no effect: above all TLS that encrypts nothing."""
    for name, table in _tables(settings):
        given = [key for key in ("tls_root", "tls_cert", "tls_key", "tls_clients") if getattr(table, key, None)]
        if {"tls_key", "tls_clients"} & set(given) and "tls_cert" not in given:
            raise BadSettings(f"[{name}] {given[-1]}: expected tls_cert with it; without that it is of no effect")
        for key in ("url", "stow_url"):
            url = getattr(table, key, "")
            if not url or name == "triton":
                continue
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise BadSettings(f"[{name}] {key} = {url!r}; expected an address such as https://pacs/dicom-web")
            if given and parts.scheme == "http":
                raise BadSettings(f"[{name}] {given[0]}: expected https in {key}; http is not encrypted")
        for title in (getattr(table, "aet", "X"), getattr(table, "caller", "X"), *getattr(table, "callers", ())):
            try:
                checked_aet(title)
            except InvalidInput as error:
                raise BadSettings(f"[{name}] {error}") from None


def _check(settings: Settings) -> None:
    if not (settings.receive or settings.orthanc or settings.dicomweb):
        raise BadSettings("no source of studies; expected at least one of [receive], [orthanc], [dicomweb]")
    if settings.retrieve and not settings.receive:
        raise BadSettings("[retrieve]: expected [receive] with it, where the PACS sends images to")
    _check_peers(settings)
    if ObjectKind.REPORT not in settings.deliver.objects:
        raise BadSettings("[deliver] objects: expected the report among them; it alone says what was decided")
    if bool(settings.deliver.stow_url) == bool(settings.deliver.host):
        raise BadSettings("[deliver]: expected either stow_url or host (with port and aet)")
    try:
        local = settings.review.host == "localhost" or ipaddress.ip_address(settings.review.host).is_loopback
    except ValueError:
        local = False
    if not local and not settings.review.origin:
        raise BadSettings(
            f"[review] host = {settings.review.host!r} is reachable from elsewhere: expected an origin "
            "(https://worklist.example.org) of a proxy with TLS before it, or a loopback address"
        )
    parts = urlsplit(settings.review.origin)
    if settings.review.origin and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/")):
        raise BadSettings(f"[review] origin = {settings.review.origin!r}; expected scheme and host alone, no path")
    for address in settings.review.trusted_proxies:
        try:
            ipaddress.ip_network(address)
        except ValueError:
            raise BadSettings(f"[review] trusted_proxies: {address!r} is not an address or network") from None
