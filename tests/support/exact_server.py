"""A gRPC server that answers every inference in exactly so many seconds, and may stall once: the truth to measure by.

Run as a script: `exact_server.py SECONDS [STALL_AFTER STALL_FOR]` prints its port. Its own process, so that it shares
no interpreter with what measures it. It speaks the few HTTP/2 frames that unary gRPC needs by itself: a server of
grpcio's adds one to two milliseconds of its own to the seconds asked for, which the generator would be blamed for.
"""

from __future__ import annotations

import heapq
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

from tritonclient.grpc import service_pb2

ANSWER = service_pb2.ModelInferResponse(model_name="exact")
for name, content in (("samples_used", b"\x14\0\0\0"), ("route", b"\6\0\0\0review")):
    ANSWER.outputs.add(name=name, datatype="INT32" if name == "samples_used" else "BYTES", shape=[1, 1])
    ANSWER.raw_output_contents.append(content)
MESSAGE = ANSWER.SerializeToString()

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8  # RFC 9113, section 6
ACK = END_STREAM = 1
END_HEADERS = 4
LARGEST = 2**31 - 1  # a flow-control window
# HPACK (RFC 7541): an indexed field, then literals that are not to be indexed.
BEGIN = b"\x88" + b"\x0f\x10\x10application/grpc"  # :status 200, content-type
END = b"\x00\x0bgrpc-status\x010"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def answer(stream: int) -> bytes:
    body = b"\0" + struct.pack(">I", len(MESSAGE)) + MESSAGE
    return b"".join([
        frame(HEADERS, END_HEADERS, stream, BEGIN),
        frame(DATA, 0, stream, body),
        frame(HEADERS, END_HEADERS | END_STREAM, stream, END),
    ])  # fmt: skip


class Connection:
    """One client: what it sent so far."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # SETTINGS_INITIAL_WINDOW_SIZE (4): no stream ever has to wait for a window.
        channel.sendall(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, LARGEST)))
        self.channel, self._received, self._opened = channel, bytearray(), False

    def requests(self) -> Iterator[int]:
        """Streams whose request has come in whole; raises ConnectionError at the end."""
        more = self.channel.recv(2**20)
        if not more:
            raise ConnectionError
        self._received += more
        if not self._opened:
            if len(self._received) < len(PREFACE):
                return
            assert self._received.startswith(PREFACE)
            del self._received[: len(PREFACE)]
            self._opened = True
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
            payload = bytes(self._received[9 : 9 + length])
            del self._received[: 9 + length]
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.channel.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            if kind == DATA:
                if length:
                    self.channel.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", length)))
                if flags & END_STREAM:
                    yield stream


def main(seconds: float, stall_after: float = 1e9, stall_for: float = 0.0) -> None:
    """While it stalls nobody is answered, and all wait for its end."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connections: dict[socket.socket, Connection] = {}
    waiting: list[tuple[float, int, int, Connection]] = []  # due, a number that breaks ties, stream, connection
    number, first = 0, None
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, stream, connection = heapq.heappop(waiting)
            if connection.channel in connections:
                _send(connections, connection, answer(stream))
        # Not epoll, which rounds waits up to whole milliseconds.
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for channel in select.select([listener, *connections], [], [], wait)[0]:
            now = time.monotonic()
            if channel is listener:
                accepted, _ = listener.accept()
                connections[accepted] = Connection(accepted)
                continue
            try:
                for stream in connections[channel].requests():
                    first = now if first is None else first
                    begin, end = first + stall_after, first + stall_after + stall_for
                    freed = end if begin <= now < end else now
                    number += 1
                    heapq.heappush(waiting, (freed + seconds, number, stream, connections[channel]))
            except OSError:
                connections.pop(channel).channel.close()


def _send(connections: dict[socket.socket, Connection], connection: Connection, message: bytes) -> None:
    try:
        connection.channel.sendall(message)
    except OSError:
        connections.pop(connection.channel).channel.close()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
