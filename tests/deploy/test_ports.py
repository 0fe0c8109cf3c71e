"""Ports are chosen before Triton starts, so that a taken one is said in our words."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest
from equipoise_deploy.errors import PortTakenError
from equipoise_deploy.ports import LOOPBACK, Ports

from ..support.asking import poll


def test_zero_picks_three_different_free_ports():
    """Each of the three can be bound afterwards; or of the next three, where another process got one meanwhile."""

    def bound() -> bool:
        ports = Ports(0, 0, 0).chosen()
        numbers = {ports.grpc, ports.http, ports.metrics}
        assert len(numbers) == 3
        with ExitStack() as held:
            for number in numbers:
                try:
                    held.enter_context(socket.socket()).bind((LOOPBACK, number))
                except OSError:
                    return False
        return True

    poll(bound, "all three are free")


def test_taken_port_is_refused_with_its_holder_and_a_way_out():
    """The message names port, purpose, process and option."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortTakenError) as refused:
            Ports(grpc=0, http=port, metrics=0).chosen()
    message = str(refused.value)
    assert f"port {port} (http)" in message
    assert f"process {os.getpid()})" in message
    assert "--http-port" in message
