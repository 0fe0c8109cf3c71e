"""A real HAProxy over deploy/haproxy/haproxy.cfg as it is, with certificates of `equipoise certs`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise_client import Tls
from equipoise_deploy.certs import make_certificates

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


@dataclass
class ReverseProxy:
    """A running HAProxy.

    Attributes:
        url: host:port, as clients take it; it speaks mutual TLS only.
        certificates: folder of `equipoise certs`.
        lines: of its audit log so far, parsed.
        other: the rest of its output.
    """

    url: str
    statistics: str
    certificates: Path
    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def tls(self, name: str = "clinic") -> Tls:
        pair = self.certificates / "clients"
        return Tls(self.certificates / "ca.pem", pair / f"{name}.pem", pair / f"{name}.key")

    def up(self) -> int:
        """How many replicas it would send a request to."""
        with urllib.request.urlopen(f"{self.statistics}/metrics", timeout=10) as page:
            text = page.read().decode()
        return sum(
            line.startswith("haproxy_server_status{") and 'state="UP"' in line and line.endswith(" 1")
            for line in text.splitlines()
        )

    def logged(self, **fields: Any) -> list[dict[str, Any]]:
        """Audit lines with these fields."""
        return [line for line in list(self.lines) if all(line.get(name) == value for name, value in fields.items())]


def environment(
    certificates: Path, replicas: Sequence[tuple[str, int]], at: str, statistics_at: str, **settings: Any
) -> dict[str, str]:
    """What the configuration reads; `settings` are EQUIPOISE_… variables in lower case, without that word."""
    named = {f"EQUIPOISE_REPLICA_{i}": grpc for i, (grpc, _) in enumerate(replicas, start=1)}
    named |= {f"EQUIPOISE_HEALTH_{i}": str(health) for i, (_, health) in enumerate(replicas, start=1)}
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("EQUIPOISE_")},
        "EQUIPOISE_CERTIFICATE": str(certificates / "server.bundle.pem"),
        "EQUIPOISE_CLIENT_CA": str(certificates / "ca.pem"),
        "EQUIPOISE_PROXY": at,
        "EQUIPOISE_STATS": statistics_at,
        **named,
        **{f"EQUIPOISE_{name.upper()}": str(value) for name, value in settings.items()},
    }


def certificates(into: Path) -> Path:
    """An authority, a server's certificate for this machine, and two clients."""
    make_certificates(into, ["localhost", "127.0.0.1"], ["clinic", "gateway"])
    return into


@contextmanager
def reverse_proxy(
    certificates: Path, replicas: Sequence[tuple[str, int]], network: Sequence[str] = (), **settings: Any
) -> Iterator[ReverseProxy]:
    """HAProxy before replicas (gRPC address, health port), listening.

    It inherits its listening sockets, so that no port has to be guessed.
    """
    assert shutil.which("haproxy"), "HAProxy is missing: run deploy/system-packages.sh as root"
    with ExitStack() as stack:
        sockets = []
        for _ in range(2):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            one.listen(256)
            os.set_inheritable(one.fileno(), True)
            sockets.append(one)
        ports = [one.getsockname()[1] for one in sockets]
        descriptors = [one.fileno() for one in sockets]
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(CONFIGURATION)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(certificates, replicas, *(f"fd@{each}" for each in descriptors), **settings),
            pass_fds=descriptors,
        )
        for one in sockets:
            one.close()
        running = ReverseProxy(f"localhost:{ports[0]}", f"http://127.0.0.1:{ports[1]}", certificates, process)
        reader = threading.Thread(target=_read, args=(running,))
        reader.start()
        try:
            yield running
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()
                process.wait()
                reader.join()


def check(certificates: Path, replicas: int = 4, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`haproxy -c` on the configuration."""
    addresses = [(f"127.0.0.1:{9000 + i}", 9100 + i) for i in range(replicas)]
    variables = environment(certificates, addresses, "127.0.0.1:8443", "127.0.0.1:8404", **settings)  # not bound
    return subprocess.run(
        ["haproxy", "-c", "-f", str(CONFIGURATION)], capture_output=True, text=True, env=variables, timeout=60
    )


def _read(running: ReverseProxy) -> None:
    assert running.process.stdout is not None
    with running.process.stdout as log:
        for line in log:
            try:
                document: Mapping[str, Any] = json.loads(line)
            except ValueError:
                running.other.append(line)
            else:
                running.lines.append(dict(document))
