"""The verb `equipoise certs`: certificates to try mutual TLS with, by trustme. To try, never for production.

The authority's key lies unencrypted beside the certificates, and its certificate never ends. In production the
hospital's own authority issues both kinds, and revokes them.

    ca.pem ca.key              the authority: what either side trusts
    server.pem server.key      the reverse proxy's; server.bundle.pem holds both in one file, as HAProxy wants it
    clients/NAME.pem NAME.key  one pair per client; the name stands in the audit log
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import trustme
import typer
from cryptography.x509 import load_pem_x509_certificate
from rich.console import Console
from rich.table import Table

from .cli import exits_on
from .errors import DeployError

DAYS = 90
EPILOG = """[bold]Examples[/]

equipoise certs --into certs --host localhost --host 127.0.0.1 --client gateway --client radiology

equipoise certs --into certs --client cardiology   [dim]# one more client of the same authority[/]

EQUIPOISE_CERTIFICATE=certs/server.bundle.pem EQUIPOISE_CLIENT_CA=certs/ca.pem haproxy -f deploy/haproxy/haproxy.cfg

equipoise predict nuclei cells.png --url localhost:8443 --tls-root certs/ca.pem --tls-cert certs/clients/gateway.pem \
--tls-key certs/clients/gateway.key"""

_AUTHORITY = "Equipoise test authority - not for production"
_CLOCK_SKEW = timedelta(minutes=5)
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class CertificateError(DeployError):
    """Certificates cannot be made as asked; the message says why."""


@dataclass(frozen=True)
class IssuedCertificate:
    """One certificate that was written.

    Attributes:
        role: authority, server or client.
        name: its common name.
        expires: UTC.
    """

    role: str
    name: str
    certificate: Path
    key: Path
    expires: datetime

    def document(self) -> dict[str, str]:
        places = {"certificate": str(self.certificate), "key": str(self.key)}
        return {"role": self.role, "name": self.name, **places, "expires": self.expires.isoformat()}


def certs_command(
    into: Annotated[Path, typer.Option(help="Folder; the authority that lies there is used again.")] = Path("certs"),
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which clients reach the reverse proxy; the first names it."),
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="A client's name, as the audit log will show it.")] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="Lifetime of server and clients.")] = DAYS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make certificates to try mutual TLS with: FOR TESTS AND TRIALS, the authority's key lies unencrypted beside them.

    Nothing is overwritten. In production the hospital's own authority issues certificates, and revokes them.
    """
    with exits_on(OSError):
        made = make_certificates(into, host or (), client or (), days)
    if as_json:
        typer.echo(json.dumps({"for_tests_only": True, "made": [each.document() for each in made]}, indent=1))
        return
    table = Table(
        "role", "name", "certificate", "key", "until", title="For tests and trials only", title_justify="left"
    )
    for each in made:
        table.add_row(each.role, each.name, str(each.certificate), str(each.key), f"{each.expires:%Y-%m-%d}")
    Console().print(table)


def make_certificates(
    into: Path, hosts: Sequence[str], clients: Sequence[str], days: int = DAYS, now: datetime | None = None
) -> tuple[IssuedCertificate, ...]:
    """A new authority with a server's certificate, or further clients of the one that lies in `into`.

    Args:
        hosts: names and addresses that clients will connect to; empty: no server certificate.
        clients: common names.
        days: lifetime of the server's and the clients' certificates.
        now: when it begins, UTC; default: the clock.

    Raises CertificateError where a file is already there, or a name is not valid.
    """
    for name in clients:
        if not _CLIENT_NAME.fullmatch(name):
            raise CertificateError(
                f"{name!r} is not a valid client name; use 1 to 63 letters, digits, dots, dashes or underscores"
            )
    if duplicates := sorted({name for name in clients if list(clients).count(name) > 1}):
        raise CertificateError(f"{', '.join(duplicates)}: name each client once")
    stems = [("server", hosts[0], into / "server")] if hosts else []
    stems += [("client", name, into / "clients" / name) for name in clients]
    if not stems:
        raise CertificateError("nothing to make: name a --host, a --client, or both")
    for path in (path for role, _, stem in stems for path in _files(role, stem)):
        if path.exists():
            raise CertificateError(f"{path} already exists and is not overwritten: delete it, or choose another --into")
    fresh = not (into / "ca.pem").exists() and not (into / "ca.key").exists()
    if fresh:
        authority = trustme.CA(path_length=0, organization_name="Equipoise", organization_unit_name=_AUTHORITY)
    else:
        authority = _load_authority(into)
    begin = now or datetime.now(timezone.utc)
    pems = [("authority", _AUTHORITY, into / "ca", authority.cert_pem, authority.private_key_pem)] if fresh else []
    for role, name, stem in stems:
        leaf = _issue(authority, name, hosts if role == "server" else (), begin, begin + timedelta(days=days))
        pems.append((role, name, stem, leaf.cert_chain_pems[0], leaf.private_key_pem))
    return tuple(_write(*each) for each in pems)  # not before all could be made


def _load_authority(into: Path) -> trustme.CA:
    certificate, key = into / "ca.pem", into / "ca.key"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)  # do they belong together?
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(
            f"{into} has no complete authority (ca.pem and its ca.key): {error}; choose another --into for a new one"
        ) from error


def _issue(authority: trustme.CA, name: str, hosts: Sequence[str], begin: datetime, end: datetime) -> trustme.LeafCert:
    """trustme issues for both sides of TLS at once; a client's certificate names a host that does not exist, so nobody
    takes it for a server's.
    """
    if odd := [host for host in hosts if {"@", "/"} & set(host)]:  # trustme would take an e-mail address or a network
        raise CertificateError(f"{odd[0]!r} is not a host name or address, as in proxy.hospital.example")
    try:
        return authority.issue_cert(
            *(hosts or ("client.invalid",)),
            common_name=name,
            organization_name="Equipoise",
            organization_unit_name="for tests and trials only",
            not_before=begin - _CLOCK_SKEW,
            not_after=end,
        )
    except ValueError as error:
        raise CertificateError(
            f"{', '.join(hosts) or name!r} cannot stand in a certificate: {error}; give a host name or address, as in "
            "proxy.hospital.example"
        ) from error


def _files(role: str, stem: Path) -> tuple[Path, ...]:
    ends = (".pem", ".key", ".bundle.pem") if role == "server" else (".pem", ".key")
    return tuple(stem.with_name(f"{stem.name}{end}") for end in ends)


def _write(role: str, name: str, stem: Path, certificate: trustme.Blob, key: trustme.Blob) -> IssuedCertificate:
    """The certificate for everybody to read, the key for its owner alone, from the first byte on."""
    stem.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    contents = (certificate.bytes(), key.bytes(), certificate.bytes() + key.bytes())
    paths = _files(role, stem)
    for path, content, mode in zip(paths, contents, (0o644, 0o600, 0o600), strict=False):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    expires = load_pem_x509_certificate(certificate.bytes()).not_valid_after_utc
    return IssuedCertificate(role, name, paths[0], paths[1], expires)
