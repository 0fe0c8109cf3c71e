"""The gateway's configuration: one TOML file, read strictly. `example.toml` beside this file explains every key."""

from __future__ import annotations

import dataclasses
import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

from equipoise_client.errors import EquipoiseError
from equipoise_client.transport import Tls

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

EXAMPLE = Path(__file__).with_name("example.toml")


class BadSettings(EquipoiseError, ValueError):
    """The configuration cannot be used; the message names the key."""


class Handling(str, Enum):
    """What happens to the objects of a route: sent at once, or held until a verdict."""

    SEND = "send"
    HOLD = "hold"


@dataclass(frozen=True)
class Triton:
    """The server that is asked.

    Attributes:
        first_seconds, longest_seconds: pause after the first failure, doubled after each, and its cap.
        give_up_hours: a study on which a server that is there fails for so long is given up.
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


@dataclass(frozen=True)
class Receive:
    """A C-STORE receiver.

    Attributes:
        callers: AE titles that may send; empty: any.
        quiet_seconds: a study is complete when nothing of it came for so long.
    """

    aet: str = "EQUIPOISE"
    host: str = "127.0.0.1"
    port: int = 11112
    callers: tuple[str, ...] = ()
    quiet_seconds: float = 30.0
    associations: int = 10


@dataclass(frozen=True)
class OrthancSource:
    """An Orthanc whose stable studies are taken."""

    url: str
    user: str = ""
    password_file: Path | None = None
    every_seconds: float = 2.0


@dataclass(frozen=True)
class WebSource:
    """A DICOMweb archive that is asked at intervals (QIDO-RS, WADO-RS).

    Attributes:
        query: attribute → value, as `ModalitiesInStudy = "MR"`.
        days: only studies of today and so many days before; 0: today; -1: whatever the query finds.
        quiet_seconds: a study is complete when no look found anything new of it for so long.
    """

    url: str
    query: Mapping[str, str] = field(default_factory=dict)
    days: int = 1
    limit: int = 100
    every_seconds: float = 30.0
    quiet_seconds: float = 60.0
    user: str = ""
    password_file: Path | None = None


@dataclass(frozen=True)
class Deliver:
    """Where results go, and which of them go by themselves.

    Attributes:
        stow_url: DICOMweb root; else `host`, `port`, `aet` name a C-STORE receiver.
        attempts: refusals of one object until it is a dead letter.
        away_hours: a destination that is not there is waited for so long before its results are dead letters.
        first_seconds, longest_seconds: pause after the first failure, doubled after each, and its cap.
    """

    stow_url: str = ""
    user: str = ""
    password_file: Path | None = None
    host: str = ""
    port: int = 104
    aet: str = "PACS"
    caller: str = "EQUIPOISE"
    accept: Handling = Handling.SEND
    review: Handling = Handling.HOLD
    reject: Handling = Handling.HOLD
    attempts: int = 8
    away_hours: float = 96.0
    first_seconds: float = 2.0
    longest_seconds: float = 300.0
    timeout_seconds: float = 60.0


@dataclass(frozen=True)
class Health:
    """Where health and metrics are served."""

    host: str = "127.0.0.1"
    port: int = 8046


@dataclass(frozen=True)
class Review:
    """The worklist page.

    Attributes:
        origin: as browsers see it behind a proxy, `https://worklist.example.org`; else the address listened on.
        proxy_header: request header in which an authenticating proxy names the reviewer; empty: local tokens.
        trusted_proxies: addresses from which that header is believed.
        viewer: link into a viewer; `{study}` becomes the Study Instance UID.
    """

    host: str = "127.0.0.1"
    port: int = 8044
    origin: str = ""
    proxy_header: str = ""
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    viewer: str = ""
    session_hours: float = 10.0


@dataclass(frozen=True)
class Settings:
    """All of it.

    Attributes:
        directory: database, spool, outbox and pictures: patient data, so an encrypted disk and nobody else's.
        rules: which series goes to which model (`equipoise_clinic.dicom.study.Rules`).
        audit: the hash-chained log of decisions and verdicts; default: `decisions.jsonl` in `directory`.
        reserve_megabytes: with less free disk new input is refused, so that what was taken can be finished.
        keep_input_hours: received images are deleted so long after their study was analysed.
    """

    directory: Path
    rules: Path
    audit: Path
    triton: Triton = Triton()
    receive: Receive | None = None
    orthanc: OrthancSource | None = None
    dicomweb: WebSource | None = None
    deliver: Deliver = Deliver()
    health: Health = Health()
    review: Review = Review()
    reserve_megabytes: float = 2048.0
    keep_input_hours: float = 24.0


def load_settings(path: Path) -> Settings:
    """Reads `path`; relative paths in it are relative to it. Raises BadSettings."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(
            f"{path}: cannot be read as TOML: {error}; `equipoise gateway --example` prints one"
        ) from None
    if isinstance(document.get("directory"), str):
        document.setdefault("audit", str(Path(document["directory"]) / "decisions.jsonl"))
    settings = _build(Settings, document, path.parent, "")
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


def _check(settings: Settings) -> None:
    if not (settings.receive or settings.orthanc or settings.dicomweb):
        raise BadSettings("nothing to listen to; expected at least one of [receive], [orthanc], [dicomweb]")
    if bool(settings.deliver.stow_url) == bool(settings.deliver.host):
        raise BadSettings("[deliver]: expected either stow_url or host (with port and aet)")
    if settings.deliver.attempts < 1 or settings.deliver.first_seconds <= 0:
        raise BadSettings("[deliver]: expected attempts ≥ 1 and first_seconds > 0")
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
            raise BadSettings(f"[review] trusted_proxies: {address!r} is no address or network") from None


def _build(kind: type[T], table: Mapping[str, Any], base: Path, where: str) -> T:
    hints = get_type_hints(kind)
    known = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise BadSettings(f"{where}{name}: no such key; expected one of {', '.join(known)}")
    for name, each in known.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise BadSettings(f"{where}{name} is missing; `equipoise gateway --example` explains it")
    values = {name: _value(hints[name], value, base, f"{where}{name}") for name, value in table.items()}
    return kind(**values)


def _value(hint: Any, value: Any, base: Path, where: str) -> Any:
    options = [each for each in get_args(hint) if each is not type(None)] if type(None) in get_args(hint) else [hint]
    kind = options[0]
    origin = getattr(kind, "__origin__", None)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return _build(kind, value, base, f"{where}.")
    if kind is Path and isinstance(value, str) and value:
        return base / Path(value).expanduser()
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value in [each.value for each in kind]:
            return kind(value)
        raise BadSettings(f"{where} is {value!r}; expected one of {', '.join(str(each.value) for each in kind)}")
    if origin is tuple and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if origin is not tuple and origin is not None and isinstance(value, dict):
        return {str(name): str(each) for name, each in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    raise BadSettings(f"{where} is {value!r}; expected {getattr(kind, '__name__', kind)}")
