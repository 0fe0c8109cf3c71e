"""The public model's queue: one request at a time, the urgent one first, bounded, and none that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.triton_config import ROUTINE, URGENT, aggregator_config, render
from tritonclient.utils import InferenceServerException

from ..support.asking import metric, poll

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


@dataclass
class Held:
    """A server whose public model, with its own queue, holds each request until the test lets it go.

    Attributes:
        instances: requests that are worked on at a time.
        outcomes: request → requests in its execution, or the error it got.
    """

    server: TritonServer
    client: triton.InferenceServerClient
    gate: Path
    instances: int
    outcomes: dict[str, int | InferenceServerException] = field(default_factory=dict)

    def send(self, *names: str, waiting: int | None = None, **options: int) -> None:
        """`waiting`: returns when so many requests wait in the queue."""
        for name in names:

            def receive(result, error, name=name) -> None:
                self.outcomes[name] = error or int(result.as_numpy("samples_used")[0, 0])

            image = triton.InferInput("image", [1, 1, 4, 4], "FP32")
            image.set_data_from_numpy(np.zeros((1, 1, 4, 4), np.float32))
            wanted = [triton.InferRequestedOutput("samples_used")]
            self.client.async_infer("tinyseg", [image], receive, outputs=wanted, request_id=name, **options)
        if waiting is not None:
            poll(lambda: self.pending() == waiting, "they wait in the queue")

    def pending(self) -> float:
        return metric(self.server.metrics_url, "nv_inference_pending_request_count")

    def started(self) -> set[str]:
        return {file.name.removeprefix("started ") for file in self.gate.glob("started *")}

    def open(self, *names: str) -> None:
        for name in names:
            (self.gate / f"open {name}").touch()


@pytest.fixture
def held(tiny_segmentation, tmp_path) -> Iterator[Held]:
    gate = tmp_path / "gate"
    gate.mkdir()
    config = aggregator_config(tiny_segmentation.contract)
    instances = config.instance_group[0].count
    del config.parameters["contract"]  # then `serve` leaves the instance count as it is
    version = tmp_path / "models" / "tinyseg" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(GATED.format(gate=str(gate)))
    (version.parent / "config.pbtxt").write_text(render(config))
    with (
        TritonServer(tmp_path / "models", ports=Ports(0, 0, 0)) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        yield Held(server, client, gate, instances)


def test_an_urgent_request_overtakes_and_none_is_batched(held):
    """With every instance busy, an urgent request that came last is among the next to run; each execution holds one."""
    busy = held.instances
    running = [f"running {i}" for i in range(busy)]
    routine = [f"routine {i}" for i in range(busy + 2)]
    held.send(*running, priority=ROUTINE)
    poll(lambda: len(held.started()) == busy, "all instances are busy")
    held.send(*routine, priority=ROUTINE, waiting=len(routine))
    # The urgent request must be in the queue, behind the others, before the first gate opens.
    held.send("urgent", priority=URGENT, waiting=len(routine) + 1)
    held.open(*running)
    poll(lambda: len(held.started()) == 2 * busy, "others begin")
    next_to_run = held.started() - set(running)
    held.open(*routine, "urgent")
    poll(lambda: len(held.outcomes) == 2 * busy + 3, "all are answered")
    assert "urgent" in next_to_run and len(next_to_run) == busy
    assert set(held.outcomes.values()) == {1}


@pytest.mark.parametrize("priority", [ROUTINE, URGENT])
def test_a_request_that_waited_longer_than_it_allows_is_refused(held, priority):
    """By the `timeout` of Open Inference Protocol, as stock clients send it: nobody computes it any more."""
    running = [f"running {i}" for i in range(held.instances)]
    held.send(*running)
    poll(lambda: len(held.started()) == held.instances, "all instances are busy")
    held.send("patient", priority=priority, waiting=1)
    held.send("impatient", priority=priority, timeout=1, waiting=2)  # µs
    held.open(*running, "patient", "impatient")
    poll(lambda: len(held.outcomes) == held.instances + 2, "all have an outcome")
    refused = held.outcomes.pop("impatient")
    assert isinstance(refused, InferenceServerException) and refused.status() == "StatusCode.UNAVAILABLE", refused
    assert "timeout" in str(refused).lower() and "impatient" not in held.started()
    assert set(held.outcomes.values()) == {1}
