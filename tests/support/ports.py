"""Ports that a test tells somebody before anybody listens there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

_FIRST, _LAST = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
_APART = range(20000, _FIRST) or range(_LAST + 1, 65536) or range(20000, 65536)
_RANDOM = Random(os.getpid())  # tests that run at the same time choose differently
_given: set[int] = set()


def free_port() -> int:
    """One that is free, and that no other process is given meanwhile: the system picks from another range."""
    while True:
        number = _RANDOM.choice(_APART)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
        if number not in _given:
            _given.add(number)
            return number


@contextmanager
def closed_port() -> Iterator[int]:
    """One where nobody listens while the block runs: it is taken, so that nobody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
