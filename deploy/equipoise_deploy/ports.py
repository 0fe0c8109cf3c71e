"""The ports of a server, on loopback: what is served there, and who listens."""

from __future__ import annotations

import http.client
import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields

import psutil

from .errors import PortTakenError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where the server listens: `Ports(grpc=9001)  # the others as usual`. 0 picks a free one at the start."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002

    def chosen(self) -> Ports:
        """The same with every 0 replaced by a port that is free now. Raises PortTakenError for one that is not."""
        with ExitStack() as held:
            numbers = {}
            for field in fields(self):
                wanted = getattr(self, field.name)
                probe = held.enter_context(socket.socket())
                # As Triton does; otherwise connections of a server that just ended would count as a listener.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, wanted))
                except OSError as error:
                    raise PortTakenError(
                        f"port {wanted} ({field.name}) on {LOOPBACK} is taken{_holder(wanted)}: {error.strerror}. Stop "
                        f"what listens there, or choose another with --{field.name}-port (0 picks a free one)"
                    ) from error
                numbers[field.name] = int(probe.getsockname()[1])
        return Ports(**numbers)


USUAL_PORTS = Ports()
"""Triton's own defaults."""


def reached_at(address: str) -> str:
    """Where this machine reaches what listens on `address`."""
    return LOOPBACK if address in ("0.0.0.0", "::", "") else address  # noqa: S104 (compared, not bound)


def fetch(address: str, path: str, timeout: float) -> bytes | None:
    """What `host:port` serves over plain HTTP; None where nothing answers 200 in time. No proxy is asked."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@dataclass(frozen=True)
class Listener:
    """A process that listens.

    Attributes:
        address: as in `127.0.0.1` or `::`.
        pid: None where it is another user's.
    """

    address: str
    pid: int | None

    def __str__(self) -> str:
        """`NAME (process N)`"""
        if self.pid is None:
            return "a process of another user"
        try:
            return f"{psutil.Process(self.pid).name()} (process {self.pid})"
        except psutil.NoSuchProcess:
            return f"process {self.pid}"


def listeners(port: int) -> tuple[Listener, ...]:
    """Who listens on a TCP port of this machine (of this network namespace)."""
    return tuple(
        Listener(_plain(each.laddr.ip), each.pid)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    )


def _plain(text: str) -> str:
    """gRPC binds 127.0.0.1 as `::ffff:127.0.0.1`."""
    address = ipaddress.ip_address(text)
    return str((address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address)


def _holder(port: int) -> str:
    """` by NAME (process N)` where the kernel shows it, else nothing."""
    known = [listener for listener in listeners(port) if listener.pid is not None]
    return f" by {known[0]}" if known else ""
