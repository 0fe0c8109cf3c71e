"""Run in namespaces of its own: HAProxy over deploy/haproxy/haproxy.cfg finds replicas by a name, as on Kubernetes.

The name's server and the replicas' health ports are this script's. It asserts that as many servers are used as the name
has addresses, with the canary's weight, also after the name has changed.

    unshare --user --map-root-user --net --mount python named_replicas.py FOLDER   # with server.pem and ca.pem
"""

from __future__ import annotations

import csv
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
STABLE, CANARY = "equipoise-server.imaging.svc.cluster.local", "equipoise-next-server.imaging.svc.cluster.local"
STATISTICS = "127.0.0.1:8404"

addresses = {STABLE: ["127.0.0.11", "127.0.0.12"], CANARY: ["127.0.0.21"]}


asked: dict[str, float] = {}
"""Address → when the proxy asked it last whether it is healthy."""


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked[str(self.connection.getsockname()[0])] = time.monotonic()
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Not in the test's output."""


def answer_names(listening: socket.socket) -> None:
    """A records for `addresses`, nothing else (RFC 1035)."""
    while True:
        query, sender = listening.recvfrom(4096)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
        found = addresses.get(".".join(labels), []) if kind == 1 else []
        question = query[12 : at + 5]
        header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(found), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(each) for each in found)
        listening.sendto(header + question + records, sender)


def used() -> tuple[set[str], list[int]]:
    """Addresses that are asked for their health now, and the weights of the servers that are up, in order."""
    try:
        with urllib.request.urlopen(f"http://{STATISTICS}/;csv", timeout=5) as page:
            rows = list(csv.DictReader(io.StringIO(page.read().decode().removeprefix("# "))))
    except OSError:
        rows = []
    up = [row for row in rows if row["pxname"] == "replicas" and row["status"] == "UP" and row["svname"] != "BACKEND"]
    recent = time.monotonic() - 1.5  # they are asked twice a second
    return {address for address, at in asked.items() if at > recent}, sorted(int(row["weight"]) for row in up)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline, pause = time.monotonic() + 90.0, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {used()}"
        pause.wait(0.05)


def main(folder: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf"], check=True)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    threading.Thread(target=answer_names, args=(names,), daemon=True).start()
    for address in ("127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.21"):
        server = ThreadingHTTPServer((address, 8003), Healthy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "EQUIPOISE_CERTIFICATE": str(folder / "server.pem"),
        "EQUIPOISE_CLIENT_CA": str(folder / "ca.pem"),
        "EQUIPOISE_REPLICAS": STABLE,
        "EQUIPOISE_CANARY": CANARY,
        "EQUIPOISE_CANARY_WEIGHT": "7",
    }
    proxy = subprocess.Popen(["haproxy", "-db", "-f", CONFIGURATION], env=environment)
    try:
        until(lambda: used() == ({"127.0.0.11", "127.0.0.12", "127.0.0.21"}, [7, 100, 100]), "two and a canary")
        addresses[STABLE] = ["127.0.0.12", "127.0.0.13"]
        addresses[CANARY] = []
        # The canary's address is still asked, but it is in maintenance: nothing is sent there.
        left = {"127.0.0.12", "127.0.0.13"}, [100, 100]
        until(lambda: (used()[0] - {"127.0.0.21"}, used()[1]) == left, "one was replaced, the canary is gone")
        assert proxy.poll() is None
    finally:
        proxy.kill()
        proxy.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
