"""The public model's queue: one request at a time, the urgent one first, bounded."""

from __future__ import annotations

import threading
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.triton_config import ROUTINE, URGENT, aggregator_config, render

pytestmark = pytest.mark.triton

# Holds every execution until a file of its request's name appears, so that nothing depends on the clock.
GATED = """
import pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

GATE = pathlib.Path({gate!r})

class TritonPythonModel:
    def execute(self, requests):
        names = [request.request_id() for request in requests]
        for name in names:
            (GATE / f"started {{name}}").touch()
        while not any((GATE / f"open {{name}}").exists() for name in names):
            time.sleep(0.005)
        answer = pb_utils.Tensor("samples_used", np.full((1, 1), len(requests), np.int32))
        return [pb_utils.InferenceResponse([answer]) for _ in requests]
"""


def test_an_urgent_request_overtakes_and_none_is_batched(tiny_segmentation, tmp_path):
    """With every instance busy, an urgent request that came last is among the next to run; each execution holds one."""
    gate = tmp_path / "gate"
    gate.mkdir()
    config = aggregator_config(tiny_segmentation.contract)
    busy = config.instance_group[0].count
    del config.parameters["contract"]  # then `serve` leaves the instance count as it is
    version = tmp_path / "models" / "tinyseg" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(GATED.format(gate=str(gate)))
    (version.parent / "config.pbtxt").write_text(render(config))
    running = [f"running {i}" for i in range(busy)]
    routine = [f"routine {i}" for i in range(busy + 2)]

    sizes: list[int] = []
    done = threading.Semaphore(0)
    with (
        TritonServer(tmp_path / "models", ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):

        def send(name: str, priority: int) -> None:
            def receive(result, error) -> None:
                sizes.append(-1 if error else int(result.as_numpy("samples_used")[0, 0]))
                done.release()

            image = triton.InferInput("image", [1, 1, 4, 4], "FP32")
            image.set_data_from_numpy(np.zeros((1, 1, 4, 4), np.float32))
            wanted = [triton.InferRequestedOutput("samples_used")]
            client.async_infer("tinyseg", [image], receive, outputs=wanted, priority=priority, request_id=name)

        def started() -> set[str]:
            return {file.name.removeprefix("started ") for file in gate.glob("started *")}

        def wait_for(condition) -> None:
            waiter = threading.Event()
            while not condition():
                waiter.wait(0.005)

        for name in running:
            send(name, ROUTINE)
        wait_for(lambda: len(started()) == busy)
        for name in routine:
            send(name, ROUTINE)
        # The urgent request must be in the queue, behind the others, before the first gate opens.
        wait_for(lambda: _pending(server) == len(routine))
        send("urgent", URGENT)
        wait_for(lambda: _pending(server) == len(routine) + 1)
        for name in running:
            (gate / f"open {name}").touch()
        wait_for(lambda: len(started()) == 2 * busy)
        next_to_run = started() - set(running)
        for name in (*routine, "urgent"):
            (gate / f"open {name}").touch()
        for _ in (*running, *routine, "urgent"):
            assert done.acquire(timeout=60)
    assert "urgent" in next_to_run and len(next_to_run) == busy
    assert sizes == [1] * (2 * busy + 3)


def _pending(server: TritonServer) -> int:
    """Requests that wait in the public model's queue, from Triton's own metric."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("nv_inference_pending_request_count{")]
    return int(float(values[0]))
