"""Encryption on a real connection, with an authority made for the test."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from equipoise_client import InvalidInput, Retry, ServerUnavailable, Tls, UncertaintyClient
from tritonclient.grpc import service_pb2_grpc

IMAGE = np.zeros((1, 4, 5, 6), np.float32)
ONCE = Retry(attempts=1)


@pytest.fixture
def secured(triton: Any, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that wants client certificates; yields its address and the folder with the PEM files."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client = authority.issue_cert("client@example.org")
    client.private_key_pem.write_to_path(str(tmp_path / "me.key"))
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "me.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    own = authority.issue_cert("localhost")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        yield f"localhost:{port}", tmp_path
    finally:
        server.stop(None).wait()


def test_mutual_tls(secured: tuple[str, Path]) -> None:
    """With the right authority and a client certificate the call goes through."""
    url, folder = secured
    tls = Tls(folder / "ca.pem", certificate=folder / "me.pem", key=folder / "me.key")
    with UncertaintyClient(url, tls=tls, retry=ONCE) as client:
        assert client.predict("brain", IMAGE).samples_used == 20


def test_strangers_are_not_talked_to(secured: tuple[str, Path]) -> None:
    """A server of another authority, a client without certificate, and no encryption at all: no image is sent."""
    url, folder = secured
    mine = {"certificate": folder / "me.pem", "key": folder / "me.key"}
    for tls in (Tls(folder / "stranger.pem", **mine), Tls(folder / "ca.pem"), None):
        with UncertaintyClient(url, tls=tls, retry=ONCE, timeout=30.0) as client, pytest.raises(ServerUnavailable):
            client.predict("brain", IMAGE)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A PEM file that is not there, or half a client certificate, is refused when Tls is made."""
    with pytest.raises(InvalidInput, match=r"nowhere\.pem"):
        Tls(tmp_path / "nowhere.pem")
    (tmp_path / "me.pem").write_text("")
    with pytest.raises(InvalidInput, match="go together"):
        Tls(certificate=tmp_path / "me.pem")
