"""DICOM over TLS (PS3.15 annex B, BCP 195 profile: TLS 1.2 or later), for both ends."""

from __future__ import annotations

import ssl
from pathlib import Path

from equipoise_client.errors import InvalidInput


def client_context(root: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Of one that asks for an association; None where nothing is given: not encrypted.

    Args:
        root: PEM file of the authority to trust instead of the system's.
        certificate, key: PEM files that prove who asks.

    Raises InvalidInput for files that cannot be used.
    """
    if root is None and certificate is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=root)
    except OSError as error:
        raise _unusable((root,), error) from None
    return _with(context, certificate, key)


def server_context(certificate: Path | None, key: Path | None, clients: Path | None) -> ssl.SSLContext | None:
    """Of one that accepts associations; None where no certificate is given: not encrypted.

    Args:
        clients: PEM file of the authority whose certificates clients must have; None: any client.

    Raises InvalidInput for files that cannot be used.
    """
    if certificate is None:
        return None
    context = _with(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(clients)
        except OSError as error:
            raise _unusable((clients,), error) from None
    return context


def _with(context: ssl.SSLContext, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise _unusable((certificate, key), error) from None
    return context


def _unusable(files: tuple[Path | None, ...], error: OSError) -> InvalidInput:
    names = " and ".join(str(file) for file in files if file is not None)
    return InvalidInput(
        f"TLS: {names} cannot be used ({error.strerror or error}); expected PEM files that belong together"
    )
