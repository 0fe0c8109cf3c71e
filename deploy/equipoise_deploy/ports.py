"""The three ports of a server, on loopback."""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from .errors import PortTakenError

LOOPBACK = "127.0.0.1"
_LISTEN = "0A"  # state in /proc/net/tcp


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


@dataclass(frozen=True)
class Listener:
    """A process that listens, as far as /proc tells.

    Attributes:
        address: as in `127.0.0.1` or `::`.
        pid: None where it is another user's.
    """

    address: str
    pid: int | None
    name: str = ""


def listeners(port: int) -> tuple[Listener, ...]:
    """Who listens on a TCP port of this machine (of this network namespace)."""
    found: dict[str, str] = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.is_file() else []:
            entries = line.split()
            address, _, number = entries[1].rpartition(":")
            if int(number, 16) == port and entries[3] == _LISTEN:
                found[f"socket:[{entries[9]}]"] = _spelled(address)
    holders: dict[str, tuple[int, str]] = {}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if found else ():
        try:
            if (held := str(descriptor.readlink())) in found:
                process = descriptor.parents[1]
                holders.setdefault(held, (int(process.name), (process / "comm").read_text(errors="replace").strip()))
        except OSError:
            continue  # closed meanwhile, or another user's
    return tuple(Listener(address, *holders.get(held, (None, ""))) for held, address in found.items())


def _spelled(words: str) -> str:
    """/proc has addresses as 32-bit words in the machine's own byte order."""
    packed = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None  # as gRPC binds 127.0.0.1
    return str(mapped or address)


def _holder(port: int) -> str:
    """` by NAME (process N)` where /proc tells, else nothing."""
    known = [listener for listener in listeners(port) if listener.pid is not None]
    return f" by {known[0].name} (process {known[0].pid})" if known else ""
