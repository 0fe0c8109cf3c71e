"""The three ports of a server, on loopback."""

from __future__ import annotations

import socket
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


def _holder(port: int) -> str:
    """` by NAME (process N)` where /proc tells, else nothing."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.is_file() else []:
            entries = line.split()
            if int(entries[1].rpartition(":")[2], 16) == port and entries[3] == _LISTEN:
                sockets.add(f"socket:[{entries[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) in sockets:
                process = descriptor.parents[1]
                return f" by {(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue  # closed meanwhile, or another user's
    return ""
