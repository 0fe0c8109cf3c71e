"""What compose.yaml puts before and around the server, without it: of Debian's packages only, so CI has the time."""

from __future__ import annotations

import socket
import ssl

from ..support.steps import Absent, Note, Wrong
from ..support.watching import RULES, Prometheus
from .bases import bases, make_base
from .compose import confined
from .engine import logs, podman, wait
from .site import PATIENCE, PROMETHEUS, PROXY, Site, site

SERVICES = ("haproxy", "prometheus", "blackbox")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""Of HTTP/2, with empty settings."""


def front(target: object, note: Note) -> str:
    """Reverse proxy, Prometheus and the blackbox exporter: confined, mutual TLS, all rules, the certificate's end."""
    based()
    with site(SERVICES) as up:
        note("confined", {service: confined(up.name(service)) for service in SERVICES})
        wait(lambda: greeted(up, certified=True), "the reverse proxy takes a client with a certificate", PATIENCE)
        if greeted(up, certified=False):
            raise Wrong("the reverse proxy takes a client without a certificate")
        wait(lambda: '"verify"' in logs(up.name("haproxy")), "the refusal is in the log", PATIENCE)
        seen = Prometheus(f"http://127.0.0.1:{PROMETHEUS}")
        wait(lambda: expires(seen), "the certificate's end is known", PATIENCE)
        rules = [rule["name"] for group in seen.get("rules")["groups"] for rule in group["rules"]]
        if set(rules) != {rule.get("alert") or rule["record"] for rule in RULES}:
            raise Wrong("Prometheus does not have the rules of deploy/prometheus/rules")
    return f"confined; mutual TLS; {len(rules)} rules loaded; the certificate's end is measured"


def based() -> None:
    """Makes the images that this needs. Raises Absent where no container can be run, whatever the reason."""
    made = bases()
    names = [name for name in made if any(part in name for part in SERVICES)]
    try:
        for name in names:
            make_base(name, made[name])
        podman("run", "--rm", "--network=none", "--entrypoint=/bin/true", names[0])
    except Wrong as wrong:  # in a full run the next step, `bases`, would fail of a fault of ours
        raise Absent(f"podman does not run a container here: {wrong}") from wrong


def greeted(up: Site, certified: bool) -> bool:
    """Whether the reverse proxy answers the first bytes of HTTP/2."""
    tls = up.tls()
    context = ssl.create_default_context(cafile=str(tls.root))
    context.set_alpn_protocols(["h2"])
    if certified:
        context.load_cert_chain(str(tls.certificate), str(tls.key))
    try:
        with (
            socket.create_connection(("localhost", PROXY), timeout=10.0) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as encrypted,
        ):
            encrypted.sendall(PREFACE)
            return bool(encrypted.recv(9))
    except OSError:
        return False


def expires(seen: Prometheus) -> bool:
    try:
        return bool(seen.values("probe_ssl_earliest_cert_expiry"))
    except OSError:
        return False
