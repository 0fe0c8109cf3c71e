"""More requests than the server can answer: it refuses early and says when to come back. How late those are that it
lets in is measured by tests/benchmarks/bench_serving.py."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_client import Priority, UncertaintyClient
from equipoise_client.errors import ServerUnavailable
from equipoise_client.transport import Retry
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_deploy.serving.settings import Settings
from equipoise_export.publish.repository import publish_pair
from equipoise_load.arrivals import Arrivals
from equipoise_load.engine import Plan, run
from equipoise_load.mix import Wish, build_mix

from ..support.asking import case, inputs_of, metric, poll
from ..support.repositories import SLOW, closed, gated, hold

pytestmark = [pytest.mark.triton, pytest.mark.slow]

QUEUE, AGGREGATORS = 12, 4
# Of each sampler call, and every request makes at least one: the capacity is the model's and not the machine's.
SECONDS = 0.1
MOST = AGGREGATORS / SECONDS  # requests a second that no machine answers more of
WISH = Wish({"tinyseg": 1.0}, (), (20,), 0.0, (), 120.0)


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def small_queue(tiny_segmentation, tmp_path_factory, gate):
    """A server whose model lets twelve requests wait per priority, and begins none while the gate is closed."""
    folder = tmp_path_factory.mktemp("overload") / "models"
    gated(publish_pair(tiny_segmentation, folder), gate)
    hold(folder / "tinyseg_sampler", SLOW.format(seconds=SECONDS))
    settings = {"tinyseg": Settings(queue=QUEUE, aggregators=AGGREGATORS, retry_after=700)}
    with TritonServer(folder, ports=Ports(0, 0, 0), settings=settings) as server:
        yield server


def test_too_much_is_refused_early(small_queue):
    """At over twice the capacity every request is answered or refused as UNAVAILABLE at once, and none hangs."""
    with UncertaintyClient(small_queue.grpc_url) as client:
        payloads = build_mix(client, WISH)
    # Requests that are refused are not sent again.
    plan = Plan(small_queue.grpc_url, Arrivals.POISSON, 2.5 * MOST, 1, 0.5, 4.0, 60.0, Retry(attempts=1), 4)
    tally = run(plan, payloads)
    assert set(tally.codes) == {"OK", "UNAVAILABLE"}, tally.codes
    assert tally.codes["UNAVAILABLE"] > 0.2 * tally.total, tally.codes


def test_urgent_ones_pass_the_queue(small_queue, gate):
    """An urgent request is let in although the routine queue is full, and begins before those that came earlier."""
    running = [f"running {i}" for i in range(AGGREGATORS)]
    waiting = [f"waiting {i}" for i in range(QUEUE)]
    outcomes: dict[str, Exception | None] = {}
    inputs = inputs_of(triton, case(np.zeros((1, 24, 24), np.float32)))
    with triton.InferenceServerClient(small_queue.grpc_url) as client:

        def send(name: str, priority: Priority) -> None:
            def receive(result, error) -> None:
                outcomes[name] = error

            wanted = [triton.InferRequestedOutput("samples_used")]
            client.async_infer("tinyseg", inputs, receive, outputs=wanted, priority=int(priority), request_id=name)

        def begun() -> set[str]:
            return {name for name in (*running, *waiting, "urgent") if (gate / f"started-{name}").exists()}

        def queued() -> float:
            return metric(small_queue.metrics_url, "nv_inference_pending_request_count", 'model="tinyseg"')

        with closed(gate):
            for name in running:
                send(name, Priority.ROUTINE)
            poll(lambda: begun() == set(running), "as many as can be are worked on")
            for name in waiting:
                send(name, Priority.ROUTINE)
            poll(lambda: queued() == QUEUE, "the routine queue is full")
            send("refused", Priority.ROUTINE)
            poll(lambda: outcomes, "one more is refused")
            assert set(outcomes) == {"refused"} and "queue" in str(outcomes["refused"])
            send("urgent", Priority.URGENT)
            poll(lambda: queued() == QUEUE + 1, "an urgent one is let in")
            for name in running:
                (gate / f"open-{name}").touch()
            poll(lambda: len(begun()) == 2 * AGGREGATORS, "others begin")
            assert "urgent" in begun()
        poll(lambda: len(outcomes) == AGGREGATORS + QUEUE + 2, "all have an outcome")
    assert [name for name, error in outcomes.items() if error is not None] == ["refused"]


def test_a_refused_client_learns_when_to_come_back(small_queue, gate):
    """The hint stands in the model's configuration; the error carries it."""
    image = np.zeros((1, 24, 24), np.float32)
    refusals: list[ServerUnavailable] = []

    def ask() -> None:
        with UncertaintyClient(small_queue.grpc_url, retry=Retry(attempts=1), timeout=60.0) as client:
            try:
                client.predict("tinyseg", image, outputs=())
            except ServerUnavailable as refusal:
                refusals.append(refusal)

    threads = [threading.Thread(target=ask) for _ in range(3 * (QUEUE + AGGREGATORS))]
    with closed(gate):
        for thread in threads:
            thread.start()
        poll(lambda: len(refusals) >= 2 * (QUEUE + AGGREGATORS), "what finds no room is refused")
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert all(each.busy and each.retry_after == 0.7 for each in refusals)
