"""The public model's queue: one request at a time, the urgent one first, bounded."""

from __future__ import annotations

import threading
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_deploy.ports import Ports
from equipoise_deploy.server import TritonServer
from equipoise_export.triton_config import ROUTINE, URGENT, aggregator_config, render

pytestmark = pytest.mark.pipeline

# Holds every execution until a file appears, so that the queue's order does not depend on the clock.
GATED = """
import pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

GATE = pathlib.Path({gate!r})

class TritonPythonModel:
    def execute(self, requests):
        (GATE / f"started-{{time.monotonic_ns()}}").touch()
        while not (GATE / "open").exists():
            time.sleep(0.005)
        answer = pb_utils.Tensor("samples_used", np.full((1, 1), len(requests), np.int32))
        return [pb_utils.InferenceResponse([answer]) for _ in requests]
"""


def test_an_urgent_request_overtakes_and_none_is_batched(tiny_segmentation, tmp_path):
    """With every instance busy, an urgent request that came last is the next to run; each execution holds one."""
    gate = tmp_path / "gate"
    gate.mkdir()
    config = aggregator_config(tiny_segmentation.contract)
    busy = config.instance_group[0].count
    del config.parameters["contract"]  # then `serve` leaves the instance count as it is
    version = tmp_path / "models" / "tinyseg" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(GATED.format(gate=str(gate)))
    (version.parent / "config.pbtxt").write_text(render(config))

    order: list[tuple[str, int]] = []
    done = threading.Semaphore(0)
    with (
        TritonServer(tmp_path / "models", ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):

        def send(label: str, priority: int) -> None:
            def receive(result, error) -> None:
                order.append((label, -1 if error else int(result.as_numpy("samples_used")[0, 0])))
                done.release()

            image = triton.InferInput("image", [1, 1, 4, 4], "FP32")
            image.set_data_from_numpy(np.zeros((1, 1, 4, 4), np.float32))
            wanted = [triton.InferRequestedOutput("samples_used")]
            client.async_infer("tinyseg", [image], receive, outputs=wanted, priority=priority)

        for i in range(busy):
            send(f"running {i}", ROUTINE)
        waiter = threading.Event()
        while len(list(gate.glob("started-*"))) < busy:
            waiter.wait(0.005)
        for i in range(6):
            send(f"routine {i}", ROUTINE)
        # The urgent request must be in the queue, behind the others, before the gate opens.
        while _pending(server) < 6:
            waiter.wait(0.005)
        send("urgent", URGENT)
        while _pending(server) < 7:
            waiter.wait(0.005)
        (gate / "open").touch()
        for _ in range(busy + 7):
            assert done.acquire(timeout=60)
    labels = [label for label, _ in order]
    assert all(size == 1 for _, size in order)
    # Answers of instances that run side by side may change places; the urgent one started before all but one of those.
    assert labels.index("urgent") <= 2 * busy - 1
    assert labels.index("urgent") < labels.index("routine 5")


def _pending(server: TritonServer) -> int:
    """Requests that wait in the public model's queue, from Triton's own metric."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("nv_inference_pending_request_count{")]
    return int(float(values[0]))
