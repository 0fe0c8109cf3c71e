"""The reverse proxy as it is shipped, in a real HAProxy: who is refused, with which code; others never notice."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from equipoise_client import InvalidInput, Retry, ServerUnavailable, Tls, UncertaintyClient
from equipoise_client.errors import ours
from equipoise_deploy.certs import make_certificates
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..support.asking import poll
from ..support.processes import Serving, serving
from ..support.reverse_proxy import ReverseProxy, certificates, check, reverse_proxy

pytestmark = pytest.mark.triton

IMAGE = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
LIMIT = 1 << 20
CONNECTIONS, RATE = 20, 60
ONCE = Retry(attempts=1)
PAUSE = 0.5  # seconds between two questions of one that is patient: no limit is reached by waiting
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def replica(repository, tmp_path_factory) -> Iterator[Serving]:
    """One `equipoise serve` for all tests of this module."""
    folder = tmp_path_factory.mktemp("front")
    models = folder / "models"
    models.mkdir()
    for name in ("tinyseg", "tinyseg_sampler"):
        (models / name).symlink_to(repository / name)
    with serving(models, folder / "run", os.environ) as server:
        yield server


@pytest.fixture(scope="module")
def pems(tmp_path_factory) -> Path:
    return certificates(tmp_path_factory.mktemp("certificates"))


def health_port(server: Serving) -> int:
    return int(server.urls["health"].split(":")[2].partition("/")[0])


@pytest.fixture
def fronted(request, replica, pems) -> Iterator[ReverseProxy]:
    """With limits that a test can reach; the time for a request to arrive is the test's parameter."""
    with reverse_proxy(
        pems,
        [(replica.urls["grpc"], health_port(replica))],
        message_limit=LIMIT,
        client_connections=CONNECTIONS,
        client_rate=RATE,
        request_seconds=getattr(request, "param", 60),
    ) as running:
        poll(running.up, "the replica is healthy")
        yield running
        assert running.process.poll() is None, running.other


def asked(running: ReverseProxy, name: str = "clinic"):
    """One answer for a client that is as it should be.

    Asked again only while the proxy has no replica: on a machine that stands still it may be out for a moment.
    """
    with UncertaintyClient(running.url, tls=running.tls(name), retry=ONCE, timeout=20) as client:

        def answer():
            try:
                return client.predict("tinyseg", IMAGE, outputs=("mean",))
            except ServerUnavailable as error:
                if "status: 503" not in str(error):
                    raise
            threading.Event().wait(PAUSE)
            return None

        return poll(answer, "the proxy has a replica")


def stub_of(running: ReverseProxy) -> tuple[grpc.Channel, service_pb2_grpc.GRPCInferenceServiceStub]:
    channel = grpc.secure_channel(
        running.url, running.tls().credentials(), options=[("grpc.max_send_message_length", -1)]
    )
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextlib.contextmanager
def connected(running: ReverseProxy, tls: Tls | None = None) -> Iterator[ssl.SSLSocket]:
    """A TLS connection made by hand."""
    own = tls or running.tls()
    context = ssl.create_default_context(cafile=own.root)
    if own.certificate is not None:
        context.load_cert_chain(own.certificate, own.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        yield secure


@pytest.mark.parametrize("crl", [False, True])
@pytest.mark.parametrize("replicas", [1, 4])
def test_the_configuration_is_clean(pems, tmp_path, replicas, crl):
    """`haproxy -c` on the file that is shipped: valid, and not one warning."""
    settings = {"statistics": 1, "chroot": tmp_path, "admin_socket": tmp_path / "s"} if crl else {}
    done = check(pems, replicas, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr and "ALERT" not in done.stderr, done.stderr


def test_a_request_goes_through_and_leaves_one_line(fronted, replica):
    """The same answer as without the proxy; the line names client, method, replica, time, and nothing of the image."""
    through = asked(fronted)
    with UncertaintyClient(replica.urls["grpc"]) as client:
        straight = client.predict("tinyseg", IMAGE, outputs=("mean",))
    np.testing.assert_array_equal(through.mean, straight.mean)
    assert through.record["model_digest"] == straight.record["model_digest"]
    poll(lambda: fronted.logged(method="/inference.GRPCInferenceService/ModelInfer"), "it is in the audit log")
    (line,) = fronted.logged(method="/inference.GRPCInferenceService/ModelInfer")
    assert line["client"] == "clinic" and line["status"] == 200 and line["replica"] == "r1"
    assert line["bytes_in"] > IMAGE.nbytes and line["ms"] >= 0 and line["refused"] == "-"
    assert set(line) == {
        "at", "client", "serial", "from", "method", "status", "grpc", "refused", "trace", "ms", "bytes_in", "bytes_out",
        "replica", "retries", "ended",
    }  # fmt: skip


ALERTS = {
    "none": "CERTIFICATE_REQUIRED",
    "foreign": "UNKNOWN_CA",
    "expired": "CERTIFICATE_EXPIRED",
    "server": "UNSUPPORTED_CERTIFICATE",
}


def _authority(pems: Path) -> tuple[x509.Certificate, Any]:
    """Certificate and key."""
    certificate = x509.load_pem_x509_certificate((pems / "ca.pem").read_bytes())
    return certificate, serialization.load_pem_private_key((pems / "ca.key").read_bytes(), None)


def _for_a_server(pems: Path, into: Path) -> tuple[Path, Path]:
    """A certificate of that authority that no client may use, as a hospital issues it (`equipoise certs` does not)."""
    authority, signer = _authority(pems)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clinic")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem, private = into / "server.pem", into / "server.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


@pytest.mark.parametrize("kind", ALERTS)
def test_without_a_good_certificate_nobody_gets_in(fronted, pems, tmp_path, kind):
    """No certificate, one of another authority, one that has ended, one made for a server: the right TLS alert."""
    stranger = tmp_path / "other"
    if kind == "none":
        tls = Tls(pems / "ca.pem")
    elif kind == "foreign":
        make_certificates(stranger, [], ["clinic"])
        tls = Tls(pems / "ca.pem", stranger / "clients/clinic.pem", stranger / "clients/clinic.key")
    elif kind == "expired":
        shutil.copytree(pems, stranger)
        past = datetime.now(timezone.utc) - timedelta(days=30)
        make_certificates(stranger, [], ["late"], days=1, now=past)
        tls = Tls(pems / "ca.pem", stranger / "clients/late.pem", stranger / "clients/late.key")
    else:
        tls = Tls(pems / "ca.pem", *_for_a_server(pems, tmp_path))
    with (
        pytest.raises(ssl.SSLError) as refused,
        connected(fronted, tls) as secure,
    ):
        with contextlib.suppress(ConnectionError):  # hung up already: the alert is still to be read
            secure.sendall(PREFACE)
        while secure.recv(4096):
            pass
    assert ALERTS[kind] in str(refused.value).replace(" ", "_").upper(), refused.value
    with UncertaintyClient(fronted.url, tls=tls, retry=ONCE, timeout=10) as client, pytest.raises(ServerUnavailable):
        client.predict("tinyseg", IMAGE)
    poll(lambda: any("handshake" in line for line in fronted.lines), "the refused handshake is in the log")
    assert not fronted.logged(method="/inference.GRPCInferenceService/ModelInfer")
    assert asked(fronted).samples_used


def test_a_withdrawn_certificate_lets_nobody_in(replica, pems, tmp_path):
    """It is good but for the authority's list; another client of the same authority goes on."""
    authority, key = _authority(pems)
    withdrawn = x509.load_pem_x509_certificate((pems / "clients" / "gateway.pem").read_bytes())
    now = datetime.now(timezone.utc)
    entry = x509.RevokedCertificateBuilder().serial_number(withdrawn.serial_number).revocation_date(now).build()
    listed = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - timedelta(days=1))
        .next_update(now + timedelta(days=1))
        .add_revoked_certificate(entry)
        .sign(key, hashes.SHA256())
    )
    crl = tmp_path / "withdrawn.pem"
    crl.write_bytes(listed.public_bytes(serialization.Encoding.PEM))
    with reverse_proxy(pems, [(replica.urls["grpc"], health_port(replica))], client_crl=crl) as running:
        poll(running.up, "the replica is healthy")
        with pytest.raises(ssl.SSLError, match=r"(?i)revoked"), connected(running, running.tls("gateway")) as secure:
            with contextlib.suppress(ConnectionError):  # hung up already: the alert is still to be read
                secure.sendall(PREFACE)
            while secure.recv(4096):
                pass
        assert asked(running).samples_used


@pytest.mark.parametrize(
    ("kind", "options"), [("classification", {}), ("compressed", {"compression": grpc.Compression.Gzip})]
)
def test_what_would_end_this_triton_is_refused(fronted, kind, options):
    """A stock client can ask for the classification of a text output; compressed, nobody could see it."""
    request = service_pb2.ModelInferRequest(model_name="tinyseg", raw_input_contents=[IMAGE.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=[1, *IMAGE.shape])
    output = request.outputs.add(name="route")
    if kind == "classification":
        output.parameters["classification"].int64_param = 1
    channel, stub = stub_of(fronted)
    with channel, pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request, timeout=20, **options)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    poll(lambda: fronted.logged(refused=kind), "it is in the audit log")
    assert asked(fronted).samples_used


def test_without_encryption_nobody_gets_in(fronted):
    """Plain gRPC, and HTTP's own protocol inside TLS."""
    with UncertaintyClient(fronted.url, retry=ONCE, timeout=10) as client, pytest.raises(ServerUnavailable):
        client.predict("tinyseg", IMAGE)
    context = ssl.create_default_context(cafile=fronted.tls().root)
    context.load_cert_chain(fronted.tls().certificate, fronted.tls().key)
    with (
        socket.create_connection(("127.0.0.1", fronted.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"POST /v2/models/tinyseg/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        assert secure.recv(4096).split()[1] == b"403"
    assert asked(fronted).samples_used


@pytest.mark.parametrize(
    "method",
    [
        "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings", "ModelStatistics",
    ],
)  # fmt: skip
def test_other_methods_are_refused(fronted, method):
    """Whatever of Triton's service is no decision and not needed for one: 403, which gRPC calls PERMISSION_DENIED."""
    channel, stub = stub_of(fronted)
    with channel, pytest.raises(grpc.RpcError) as refused:
        getattr(stub, method)(getattr(service_pb2, f"{method}Request")(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    path = f"/inference.GRPCInferenceService/{method}"
    poll(lambda: fronted.logged(method=path, status=403), "it is in the audit log")
    assert asked(fronted).samples_used


def test_streams_and_unknown_services_are_refused(fronted):
    channel, stub = stub_of(fronted)
    with channel:
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest(model_name="tinyseg")]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(b"", timeout=20)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert asked(fronted).samples_used


def test_our_client_lives_with_the_allow_list(fronted):
    """Contract, readiness and decision pass; for a large image, too."""
    large = np.zeros((1, 128, 128), np.float32)
    with UncertaintyClient(fronted.url, tls=fronted.tls(), retry=ONCE, timeout=60) as client:
        assert client.ready("tinyseg")
        assert client.predict("tinyseg", large, samples=2, outputs=()).samples_used == 2


@pytest.mark.parametrize("size", [LIMIT, 8 * LIMIT])
def test_an_oversize_message_is_refused_before_it_is_through(fronted, size):
    """413, which our client calls a message that is too large; no replica sees it."""
    image = np.zeros((1, size // 4), np.float32).reshape(1, -1, 1024)
    with (
        UncertaintyClient(fronted.url, tls=fronted.tls(), retry=ONCE, timeout=20) as client,
        pytest.raises(InvalidInput, match="too large"),
    ):
        client.predict("tinyseg", image, outputs=())
    poll(lambda: fronted.logged(refused="size", status=413, replica="<NOSRV>"), "it is in the audit log")
    assert asked(fronted).samples_used


def test_too_many_requests_of_one_client_are_not_another_clients_fault(fronted):
    """429, which gRPC calls UNAVAILABLE: that client may come again later; another one is served meanwhile."""
    channel, stub = stub_of(fronted)
    with channel:
        calls = [stub.ServerLive.future(service_pb2.ServerLiveRequest(), timeout=20) for _ in range(RATE + 20)]
        codes = [call.code() for call in calls]  # waits for it
    assert grpc.StatusCode.UNAVAILABLE in codes and set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    poll(lambda: fronted.logged(refused="rate", status=429, client="clinic"), "it is in the audit log")
    assert asked(fronted, "gateway").samples_used


@pytest.mark.parametrize("fronted", [10], indirect=True)
def test_a_slow_client_is_put_out(fronted):
    """Headers and a first byte, then nothing: ended after the time that is set, while others are answered."""
    with connected(fronted) as secure:
        secure.sendall(PREFACE + _frame(4, 0, 0, b"") + _headers() + _frame(0, 0, 1, b"\0"))
        assert asked(fronted).samples_used
        received = b""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while b"408" not in received and (block := secure.recv(4096)):
                received += block
    poll(lambda: fronted.logged(status=408, replica="<NOSRV>"), "it is in the audit log")
    assert asked(fronted).samples_used


def test_a_flood_of_connections_is_cut_off(fronted):
    """Beyond so many open connections of one address no handshake is made; the client inside is served throughout."""
    held: list[ssl.SSLSocket] = []
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(UncertaintyClient(fronted.url, tls=fronted.tls(), retry=ONCE, timeout=20))
        client.predict("tinyseg", IMAGE, outputs=())
        refused = 0
        for _ in range(3 * CONNECTIONS):
            try:
                held.append(stack.enter_context(connected(fronted)))
            except (ConnectionError, ssl.SSLError, OSError):
                refused += 1
        assert len(held) < CONNECTIONS and refused > CONNECTIONS
        assert client.predict("tinyseg", IMAGE, outputs=()).samples_used

    def again() -> bool:
        with contextlib.suppress(ServerUnavailable):
            return bool(asked(fronted).samples_used)
        threading.Event().wait(PAUSE)  # each is a connection, and their rate is limited
        return False

    poll(again, "after the flood everybody gets in")


def test_half_open_handshakes_do_not_keep_others_out(fronted):
    """Connections that never speak: others are served meanwhile."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS - 5):
            stack.enter_context(socket.create_connection(("127.0.0.1", fronted.port), timeout=20))
        assert asked(fronted).samples_used


def test_many_at_once_are_all_answered(fronted):
    """Below every limit nothing is refused."""
    outcomes: list[object] = []

    def ask() -> None:
        try:
            outcomes.append(asked(fronted, "gateway").samples_used)
        except Exception as error:  # noqa: BLE001 (whatever it is belongs to the outcomes)
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [20] * 10


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _headers() -> bytes:
    """HEADERS of a ModelInfer that does not end with them; literals without indexing (RFC 7541)."""
    fields = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": b"/inference.GRPCInferenceService/ModelInfer",
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
    }
    block = b"".join(b"\0" + bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in fields.items())
    return _frame(1, 4, 1, block)


class Mortal:
    """A replica that is healthy until the request comes that kills it."""

    SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of HTTP/2, which a server begins with
    POISON = b"this one kills"

    def __init__(self, comes_back: bool) -> None:
        self.comes_back, self.deaths = comes_back, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.health = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
        self.threads = [threading.Thread(target=each) for each in (self._serve, self.health.serve_forever)]
        for thread in self.threads:
            thread.start()

    @property
    def addresses(self) -> tuple[str, int]:
        return f"127.0.0.1:{self.socket.getsockname()[1]}", self.health.server_port

    def close(self) -> None:
        self.comes_back = False
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.health.shutdown()
        for thread in self.threads:
            thread.join()
        self.health.server_close()
        self.socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.sendall(self.SETTINGS)
                heard = b""
                while more := connection.recv(65536):
                    heard += more
                    if self.POISON in heard:
                        self.deaths += 1
                        break
            if self.deaths and not self.comes_back:
                self.socket.shutdown(socket.SHUT_RDWR)
                return


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("replicas", "comes_back"), [(1, False), (1, True), (2, True)])
def test_what_may_have_killed_a_replica_is_not_sent_to_another(pems, replicas, comes_back):
    """Nor again to the same: the client is told that it was lost, and knows how often it has sent it."""
    with contextlib.ExitStack() as stack:
        mortals = [Mortal(comes_back) for _ in range(replicas)]
        for mortal in mortals:
            stack.callback(mortal.close)
        running = stack.enter_context(reverse_proxy(pems, [mortal.addresses for mortal in mortals]))
        poll(lambda: running.up() == replicas, "the replicas are healthy")
        channel, stub = stub_of(running)
        request = service_pb2.ModelInferRequest(model_name="tinyseg", id=Mortal.POISON.decode())
        with channel, pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, timeout=20)
        error = ours("tinyseg", refused.value)
        assert isinstance(error, ServerUnavailable) and error.lost, error
        assert sum(mortal.deaths for mortal in mortals) == 1
