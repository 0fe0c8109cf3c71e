"""A certificate authority to try mutual TLS with: for tests and trials, not for a hospital's own clients.

Its key lies unencrypted beside the certificates. In production the hospital's own authority issues both kinds, with its
own revocation.

    ca.pem ca.key              the authority: what either side trusts
    server.pem server.key      the front's; server.bundle.pem holds both in one file, as HAProxy wants it
    clients/NAME.pem NAME.key  one pair per client; the name stands in the audit log
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import DeployError

AUTHORITY_DAYS, SERVER_DAYS, CLIENT_DAYS = 365, 90, 90
_CLOCK_SKEW = timedelta(minutes=5)
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class CertificateError(DeployError):
    """Certificates cannot be made as asked; the message says why."""


@dataclass(frozen=True)
class Made:
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


@dataclass(frozen=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_certificates(
    into: Path,
    hosts: Sequence[str],
    clients: Sequence[str],
    days: int | None = None,
    now: datetime | None = None,
) -> tuple[Made, ...]:
    """A new authority with a server's certificate, or further clients of the one that lies in `into`.

    Args:
        hosts: names and addresses that clients will connect to; empty: no server certificate.
        clients: common names.
        days: of the server's and the clients' certificates, instead of 90; may be negative with `now` in tests.
        now: UTC; default the clock.

    Raises CertificateError where a file is already there, or a name cannot be one.
    """
    begin = now or datetime.now(timezone.utc)
    for name in clients:
        if not _CLIENT_NAME.fullmatch(name):
            raise CertificateError(
                f"{name!r} cannot be a client's name: 1 to 63 letters, digits, dots, dashes or underscores are"
            )
    if duplicates := sorted({name for name in clients if list(clients).count(name) > 1}):
        raise CertificateError(f"{', '.join(duplicates)}: each client once")
    wanted = [into / "clients" / f"{name}{end}" for name in clients for end in (".pem", ".key")]
    if hosts:
        wanted += [into / "server.pem", into / "server.key", into / "server.bundle.pem"]
    fresh = not (into / "ca.pem").exists() and not (into / "ca.key").exists()
    if there := [path for path in wanted if path.exists()]:
        raise CertificateError(
            f"{there[0]} is already there; nothing is overwritten: delete it, or choose another --into"
        )
    if not wanted:
        raise CertificateError("nothing to make: name a --host, a --client, or both")
    authority = _new_authority(begin) if fresh else _load_authority(into)
    made = [("authority", authority, into / "ca")] if fresh else []
    if hosts:
        server = _issue(authority, hosts[0], begin, days or SERVER_DAYS, ExtendedKeyUsageOID.SERVER_AUTH, hosts)
        made.append(("server", server, into / "server"))
    for name in clients:
        client = _issue(authority, name, begin, days or CLIENT_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH)
        made.append(("client", client, into / "clients" / name))
    return tuple(_written(*each) for each in made)  # not before all could be made


def _new_authority(begin: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Equipoise test authority - not for production")
    certificate = (
        _builder(name, name, key.public_key(), begin, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _load_authority(into: Path) -> _Pair:
    try:
        certificate = x509.load_pem_x509_certificate((into / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((into / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateError(
            f"{into} holds no whole authority (ca.pem and ca.key): {error}; choose another --into for a new one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise CertificateError(f"{into}: ca.key is not the key of ca.pem; choose another --into for a new authority")
    return _Pair(certificate, key)


def _issue(
    authority: _Pair,
    name: str,
    begin: datetime,
    days: int,
    purpose: x509.ObjectIdentifier,
    hosts: Sequence[str] = (),
) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    builder = (
        _builder(_name(name), issuer, key.public_key(), begin, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), False)
    return _Pair(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _CLOCK_SKEW)
        .not_valid_after(begin + timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    except ValueError as error:
        raise CertificateError(f"{common!r} cannot stand in a certificate: {error}") from error


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9-]{1,63}", host):
        raise CertificateError(f"{host!r} is neither an address nor a host's name, as in front.hospital.example")
    return x509.DNSName(host)


def _written(role: str, pair: _Pair, stem: Path) -> Made:
    """The certificate for everybody to read, the key for its owner alone, from the first byte on."""
    certificate = pair.certificate.public_bytes(serialization.Encoding.PEM)
    key = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {stem.with_name(f"{stem.name}.pem"): (certificate, 0o644), stem.with_name(f"{stem.name}.key"): (key, 0o600)}
    if role == "server":
        files[stem.with_name(f"{stem.name}.bundle.pem")] = (certificate + key, 0o600)
    for path, (content, mode) in files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise CertificateError(f"{path} is already there; nothing is overwritten") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    (name,) = pair.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    paths = list(files)
    return Made(role, str(name.value), paths[0], paths[1], pair.certificate.not_valid_after_utc)
