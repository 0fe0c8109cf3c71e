"""Where the server listens, and the certificate of the reverse proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ..errors import PortTakenError
from ..ports import Ports, listeners
from .results import CheckResult, Subject, failure, ok, skipped, warning

SOON = timedelta(days=30)


def ports(subject: Subject) -> Iterator[CheckResult]:
    """Free before going live; on loopback only afterwards."""
    if not subject.live:
        for name, number in asdict(subject.ports).items():
            try:
                Ports(**{**dict.fromkeys(asdict(subject.ports), 0), name: number}).chosen()
                yield ok("ports", f"{name}: {number} is free")
            except PortTakenError as error:
                yield failure("ports", str(error), "or examine the server that runs there with --url")
        return
    for name, address in (("grpc", subject.grpc), ("http", subject.http), ("metrics", subject.metrics)):
        if address is None:
            continue
        host, _, text = address.rpartition(":")
        here = [listener.address for listener in listeners(int(text))]
        if not here:
            yield skipped(
                "ports", f"{name}: nothing listens on port {text} of this machine; is {host} another machine?"
            )
        elif odd := [each for each in here if not ipaddress.ip_address(each).is_loopback]:
            yield failure(
                "ports",
                f"{name}: port {text} listens on {', '.join(odd)}, reachable from outside",
                f"bind Triton to loopback (--{name}-address=127.0.0.1) and put the reverse proxy with mTLS before it",
            )
        else:
            yield ok("ports", f"{name}: port {text} listens on {', '.join(sorted(set(here)))} only")


def certificate(subject: Subject) -> Iterator[CheckResult]:
    """Of the reverse proxy: valid for long enough, with a key that only its owner can read."""
    if subject.certificate is None:
        yield skipped("certificate", "no certificate was given", "give the proxy's with --tls-cert and --tls-key")
        return
    try:
        certificate = x509.load_pem_x509_certificate(subject.certificate.read_bytes())
    except (OSError, ValueError) as error:
        yield failure(
            "certificate", f"{subject.certificate} is not a certificate in PEM: {error}", "give the right file"
        )
        return
    now, begins, ends = datetime.now(timezone.utc), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    found = f"{certificate.subject.rfc4514_string()} is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"
    if not begins <= now < ends:
        yield failure(
            "certificate", f"{found}: not valid now", "have a new one issued (for a trial: `equipoise certs`)"
        )
    elif ends - now < SOON:
        yield warning("certificate", f"{found}: {(ends - now).days} days left", "have a new one issued")
    else:
        yield ok("certificate", found)
    if subject.key is None:
        return
    try:
        mode = subject.key.stat().st_mode & 0o777
        key = serialization.load_pem_private_key(subject.key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        yield failure(
            "certificate",
            f"{subject.key} is not a private key in PEM without a password: {error}",
            "give the right file",
        )
        return
    plain = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*plain) != certificate.public_key().public_bytes(*plain):
        yield failure(
            "certificate", f"{subject.key} does not belong to {subject.certificate}", "give the key of this certificate"
        )
    elif mode & 0o077:
        yield failure("certificate", f"{subject.key} can be read by others (mode {mode:o})", f"chmod 600 {subject.key}")
    else:
        yield ok("certificate", f"{subject.key} belongs to it, and only its owner can read it (mode {mode:o})")
