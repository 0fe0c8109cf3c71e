"""DICOM over TLS, on both ends, with certificates of `equipoise certs`."""

from __future__ import annotations

import socket

import pytest
from equipoise_client.errors import InvalidInput, ServerUnavailable
from equipoise_clinic.dicom.archive import Access, send
from equipoise_clinic.dicom.tls import client_context, server_context
from equipoise_clinic.gateway.delivery import Away, CStore
from equipoise_clinic.gateway.receivers import Receiver
from equipoise_clinic.gateway.settings import Deliver, Receive
from equipoise_deploy.certs import make_certificates

from ...support.studies import read, study


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["127.0.0.1"], ["modality"])
    make_certificates(folder / "other", [], ["stranger"])
    return folder


@pytest.fixture
def receiver(desk, certificates):
    """The port of a receiver that takes TLS alone, from clients of its authority."""
    files = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    made = Receiver(Receive(port=0, tls_clients=certificates / "ca.pem", **files), desk.intake, desk.log)
    yield made.start()
    made.stop()


def deliver(port: int, **tls) -> Deliver:
    return Deliver(host="127.0.0.1", port=port, aet="EQUIPOISE", timeout_seconds=10.0, **tls)


def test_a_client_of_the_authority_is_let_in(desk, certificates, receiver):
    """By the gateway's own delivery, and by `equipoise send`."""
    one, other = (read(each) for each in study(count=2))
    pair = certificates / "clients"
    files = {"tls_cert": pair / "modality.pem", "tls_key": pair / "modality.key"}
    CStore(deliver(receiver, tls_root=certificates / "ca.pem", **files)).send(one)
    access = Access(root=certificates / "ca.pem", certificate=pair / "modality.pem", key=pair / "modality.key")
    (stored,) = send([other], f"dicom://EQUIPOISE@127.0.0.1:{receiver}", access=access)
    assert stored.done and len(desk.store.studies.instances()) == 2


@pytest.mark.parametrize("client", ["plain", "without a certificate", "a stranger", "who trusts another authority"])
def test_nobody_else_is(desk, certificates, receiver, client):
    other = certificates / "other"
    tls = {
        "plain": {},
        "without a certificate": {"tls_root": certificates / "ca.pem"},
        "a stranger": {
            "tls_root": certificates / "ca.pem",
            "tls_cert": other / "clients" / "stranger.pem",
            "tls_key": other / "clients" / "stranger.key",
        },
        "who trusts another authority": {
            "tls_root": other / "ca.pem",
            "tls_cert": certificates / "clients" / "modality.pem",
            "tls_key": certificates / "clients" / "modality.key",
        },
    }[client]
    with pytest.raises(Away):
        CStore(deliver(receiver, **tls)).send(read(study(count=1)[0]))
    with pytest.raises(ServerUnavailable):
        access = Access(root=tls.get("tls_root"), certificate=tls.get("tls_cert"), key=tls.get("tls_key"), timeout=10.0)
        list(send([read(study(count=1)[0])], f"dicom://EQUIPOISE@127.0.0.1:{receiver}", access=access))
    assert desk.store.studies.instances() == []


def test_who_connects_and_says_nothing_stops_nobody_and_no_end(desk, certificates):
    """As a port scanner does: others are let in meanwhile, and the receiver can be stopped."""
    files = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    made = Receiver(Receive(port=0, **files), desk.intake, desk.log)
    port = made.start()
    with socket.create_connection(("127.0.0.1", port)):
        try:
            settings = Deliver(
                host="127.0.0.1", port=port, aet="EQUIPOISE", timeout_seconds=10.0, tls_root=certificates / "ca.pem"
            )
            CStore(settings).send(read(study(count=1)[0]))
        finally:
            made.stop()
    assert len(desk.store.studies.instances()) == 1


def test_files_that_cannot_be_used_are_named(certificates, tmp_path):
    with pytest.raises(InvalidInput, match=r"none\.pem"):
        client_context(tmp_path / "none.pem", None, None)
    with pytest.raises(InvalidInput, match=r"server\.pem and .*modality\.key"):
        server_context(certificates / "server.pem", certificates / "clients" / "modality.key", None)
    assert client_context(None, None, None) is None and server_context(None, None, None) is None
