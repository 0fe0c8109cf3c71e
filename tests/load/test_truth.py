"""The load generator against a server whose latency is known: real gRPC over TCP, from another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from equipoise_client.transport import Retry
from equipoise_load.arrivals import Arrivals
from equipoise_load.engine import OVERDRAWN, Plan, run
from equipoise_load.mix import Payload
from equipoise_load.tally import report_of
from tritonclient.grpc import service_pb2

SERVER = Path(__file__).parents[1] / "support" / "exact_server.py"
ONE = Payload(
    "one", "exact", np.zeros((1, 1, 28, 28), np.float32), None, None,
    service_pb2.ModelInferRequest(model_name="exact", raw_input_contents=[bytes(3136)]).SerializeToString(), 1.0,
)  # fmt: skip


@contextmanager
def exact(*seconds: float) -> Iterator[str]:
    """Address of a server that answers after so many seconds (and stalls: after, for)."""
    command = [sys.executable, str(SERVER), *map(str, seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def plan(url: str, rate: float, **other) -> Plan:
    return Plan(url, **{
        "arrivals": Arrivals.CONSTANT, "rate": rate, "concurrency": 1, "warmup": 0.2, "duration": 3.0, "timeout": 5.0,
        "retry": Retry(1), "connections": 2, **other,
    })  # fmt: skip


@pytest.mark.slow
def test_a_stall_shows_in_the_tail():
    """A server that stalls for a second makes a third of three seconds' requests wait, half a second on average.

    Accounting by send time in a closed loop, which waits together with the server, sees one slow request of a hundred:
    coordinated omission.
    """
    with exact(0.02, 1.0, 1.0) as url:
        honest = report_of(run(plan(url, 40.0), [ONE]), ["one"], [1.0], True)
    with exact(0.02, 1.0, 1.0) as url:
        closed = plan(url, 40.0, arrivals=Arrivals.CLOSED, duration=12.0)  # so many that a stall of ours is no tenth
        omitting = report_of(run(closed, [ONE]), ["one"], [1.0], False)
    assert honest["latency_ms"]["p75"] > 150.0
    assert honest["latency_ms"]["p99"] > 850.0
    assert omitting["latency_ms"]["p90"] < 150.0
    assert omitting["latency_ms"]["max"] > 500.0


def test_a_dead_server_is_an_error_not_a_wait():
    """Every request is accounted for, with gRPC's code, and with the tries it was given."""
    with exact(0.0) as url:
        pass
    dead = plan(url, 50.0, duration=0.5, timeout=5.0, retry=Retry(2, 0.01, 0.01), warmup=0.0)
    report = report_of(run(dead, [ONE]), ["one"], [1.0], True)
    assert report["requests"]["by_code"] == {"UNAVAILABLE": 25}
    assert report["requests"]["tries"] > 25
    assert report["latency_ms"] == {}


def test_an_answer_after_the_deadline_is_an_error():
    """An answer that takes longer than the deadline is an error, and the run does not wait for it."""
    with exact(30.0) as url:
        report = report_of(run(plan(url, 20.0, duration=0.5, timeout=0.3), [ONE]), ["one"], [1.0], True)
    assert set(report["requests"]["by_code"]) == {"DEADLINE_EXCEEDED"}


def test_memory_is_bounded_when_nothing_is_answered():
    """Beyond the limit of requests without an answer none is sent any more; each counts as failed."""
    with exact(30.0) as url:
        report = report_of(
            run(plan(url, 100.0, duration=0.5, timeout=1.0, outstanding=10), [ONE]), ["one"], [1.0], True
        )
    assert report["requests"]["by_code"][OVERDRAWN] > 30
    assert sum(report["requests"]["by_code"].values()) == 50


def test_the_closed_loop_keeps_so_many_in_flight():
    """Eight callers against 100 ms: at most eighty a second."""
    with exact(0.1) as url:
        report = report_of(run(plan(url, 1.0, arrivals=Arrivals.CLOSED, concurrency=8), [ONE]), ["one"], [1.0], False)
    assert report["latency_ms"]["p50"] >= 100.0
    assert 0 < report["requests"]["answered"] <= 8 * 3.1 / 0.1
    assert report["offered_per_second"] is None
