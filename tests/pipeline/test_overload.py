"""More requests than the server can answer: it refuses early and says when to come back. How late those are that it
lets in is measured by tests/benchmarks/bench_serving.py."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from equipoise_client import UncertaintyClient
from equipoise_client.errors import ServerUnavailable
from equipoise_client.load.arrivals import Arrivals
from equipoise_client.load.engine import Plan, run
from equipoise_client.load.mix import Wish, build_mix
from equipoise_client.transport import Retry
from equipoise_deploy.ports import Ports
from equipoise_deploy.server import TritonServer
from equipoise_deploy.settings import Settings
from equipoise_export.repository import publish

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

QUEUE, AGGREGATORS = 12, 4
# The capacity is the model's and not the machine's: what else runs here meanwhile does not change it.
WAITS = """
import time

class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        time.sleep(0.05)
        return super().execute(requests)
"""
WISH = Wish({"tinyseg": 1.0}, (), (20,), 0.0, (), 120.0)


@pytest.fixture(scope="module")
def small_queue(tiny_segmentation, tmp_path_factory):
    """A server whose model lets twelve requests wait per priority."""
    folder = tmp_path_factory.mktemp("overload") / "models"
    publish(tiny_segmentation, folder)
    held = folder / "tinyseg_sampler"  # the stand-in, whichever backend the others run on
    (held / "configs" / "embedded.pbtxt").replace(held / "config.pbtxt")
    shutil.rmtree(held / "configs")
    with (held / "1" / "model.py").open("a", encoding="utf-8") as code:
        code.write(WAITS)
    settings = {"tinyseg": Settings(queue=QUEUE, aggregators=AGGREGATORS, retry_after=700)}
    with TritonServer(folder, ports=Ports(0, 0, 0), settings=settings) as server:
        yield server


def offered(url: str, rate: float, urgent: float = 0.0, arrivals: Arrivals = Arrivals.POISSON, concurrency: int = 1):
    """What became of a few seconds of load; requests that are refused are not sent again."""
    with UncertaintyClient(url) as client:
        payloads = build_mix(client, replace(WISH, urgent=urgent))
    plan = Plan(url, arrivals, rate, concurrency, 0.5, 4.0, 60.0, Retry(attempts=1), 4)
    return run(plan, payloads), payloads


def test_too_much_is_refused_early(small_queue):
    """At twice the capacity every request is answered or refused as UNAVAILABLE at once, and none hangs."""
    saturated, _ = offered(small_queue.grpc_url, 1.0, arrivals=Arrivals.CLOSED, concurrency=2 * AGGREGATORS)
    throughput = saturated.answered / max(saturated.duration, saturated.last - saturated.start)
    tally, _ = offered(small_queue.grpc_url, 2.0 * throughput)
    assert set(tally.codes) == {"OK", "UNAVAILABLE"}, tally.codes
    assert tally.codes["UNAVAILABLE"] > 0.2 * tally.total, tally.codes


def test_urgent_ones_pass_the_queue(small_queue):
    """Under the same overload urgent requests are let in although the routine queue is full, and wait less."""
    saturated, _ = offered(small_queue.grpc_url, 1.0, arrivals=Arrivals.CLOSED, concurrency=2 * AGGREGATORS)
    throughput = saturated.answered / max(saturated.duration, saturated.last - saturated.start)
    tally, payloads = offered(small_queue.grpc_url, 2.0 * throughput, urgent=0.1)
    medians = {
        payload.label: each.get_value_at_percentile(50.0)
        for payload, each in zip(payloads, tally.per_kind, strict=True)
        if each.get_total_count()
    }
    (urgent,) = (value for label, value in medians.items() if "urgent" in label)
    (routine,) = (value for label, value in medians.items() if "urgent" not in label)
    assert urgent < routine


def test_a_refused_client_learns_when_to_come_back(small_queue):
    """The hint stands in the model's configuration; the error carries it."""
    image = np.zeros((1, 24, 24), np.float32)
    refusals: list[ServerUnavailable] = []

    def ask() -> None:
        with UncertaintyClient(small_queue.grpc_url, retry=Retry(attempts=1), timeout=60.0) as client:
            try:
                client.predict("tinyseg", image, samples=1000, outputs=())
            except ServerUnavailable as refusal:
                refusals.append(refusal)

    threads = [threading.Thread(target=ask) for _ in range(3 * (QUEUE + AGGREGATORS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert refusals and all(each.busy and each.retry_after == 0.7 for each in refusals)
