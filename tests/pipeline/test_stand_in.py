"""The embedded stand-in behaves as the native ONNX Runtime backend would, on the real server."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_deploy.serving.settings import Settings
from equipoise_export.publish.repository import publish_pair

from ..support.asking import metric, poll, settled
from ..support.repositories import closed, gated

pytestmark = pytest.mark.triton

STAND_IN = Path(__file__).parents[2] / "model_repository/hippocampus_sampler/1/model.py"
SAMPLER = "tinyseg_sampler"
OUTPUTS = ("sum_p", "sum_p2", "sum_entropy", "volumes")


def _case(images: int, samples: int, size: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.normal(size=(images, 1, *size)).astype(np.float32),
        "masks": generator.integers(0, 256, size=(images, samples, 1), dtype=np.uint8),
    }


def _inputs(case: dict[str, np.ndarray]) -> list[triton.InferInput]:
    types = {"image": "FP32", "masks": "UINT8"}
    return [
        triton.InferInput(name, array.shape, types[name]).set_data_from_numpy(array) for name, array in case.items()
    ]


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def server(tiny_segmentation, tmp_path_factory, gate):
    """With one sampler on however many cores: several would share batches out among them."""
    models = tmp_path_factory.mktemp("stand_in") / "models"
    publish_pair(tiny_segmentation, models)
    gated(models / SAMPLER, gate)
    with TritonServer(models, ports=Ports(0, 0, 0), settings={"tinyseg": Settings(samplers=1)}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture
def ask_together(server, client, gate):
    """Has the first request run until all others wait, so that the batcher can put these together; answers in order."""

    def ask(requests) -> list:
        answers: list = [None] * len(requests)

        def send(position, case, outputs) -> None:
            def store(result, error):
                answers[position] = error if error is not None else result

            wanted = [triton.InferRequestedOutput(name) for name in outputs]
            client.async_infer(SAMPLER, _inputs(case), store, outputs=wanted)

        def waiting() -> float:
            return metric(server.metrics_url, "nv_inference_pending_request_count", f'model="{SAMPLER}"')

        before = set(gate.iterdir())
        with closed(gate):
            send(0, *requests[0])
            poll(lambda: set(gate.iterdir()) - before, "the first one runs")
            for position, request in enumerate(requests[1:], start=1):
                send(position, *request)
            poll(lambda: waiting() == len(requests) - 1, "all others wait")
        poll(lambda: all(answer is not None for answer in answers), "all are answered")
        return answers

    return ask


def test_mixed_shapes_together_equal_onnx_runtime_alone(ask_together, tiny_segmentation):
    """Each request gets its own numbers back, whatever it was batched with, and only the outputs it asked for."""
    session = ort.InferenceSession(tiny_segmentation.model.SerializeToString(), providers=["CPUExecutionProvider"])
    cases = [_case(1 + i % 3, (4, 16)[i % 2], ((4, 4), (8, 6))[i % 4 // 2], seed=i) for i in range(24)]
    asked = [OUTPUTS if i % 3 else OUTPUTS[:1] for i in range(24)]
    for case, outputs, answer in zip(cases, asked, ask_together(list(zip(cases, asked, strict=True))), strict=True):
        expected = session.run(list(outputs), case)
        assert {tensor.name for tensor in answer.get_response().outputs} == set(outputs)
        for name, array in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(answer.as_numpy(name), array, atol=1e-5)


def test_requests_of_one_shape_share_runs(client, ask_together):
    """Many small requests are executed in fewer runs: that is what the batcher is for."""

    def counted() -> tuple[int, int]:
        told = client.get_inference_statistics(SAMPLER).model_stats[0]
        return told.inference_count, told.execution_count

    requests, runs = settled(counted)
    answers = ask_together([(_case(1, 4, (64, 64), seed=i), OUTPUTS) for i in range(64)])
    assert all(not isinstance(answer, Exception) for answer in answers)
    poll(lambda: counted()[0] >= requests + 64, "all are counted")
    after = settled(counted)
    assert after[0] - requests == 64
    assert after[1] - runs < 64


class _Tensor:
    """What the stand-in touches of pb_utils.Tensor."""

    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class _Error:
    INVALID_ARG = 3

    def __init__(self, message, code):
        self.message, self.code = message, code


class _Request:
    def __init__(self, **arrays):
        self._arrays = arrays

    def inputs(self):
        return [_Tensor(name, array) for name, array in self._arrays.items()]

    def requested_output_names(self):
        return ["volumes"]


class _Session:
    """Refuses a batch that holds the value 13, as ONNX Runtime would one that it cannot compute; counts its runs."""

    def __init__(self):
        self.runs = 0

    def run(self, names, feeds):
        self.runs += 1
        if (feeds["image"] == 13).any():
            raise RuntimeError("cannot compute 13")
        return [feeds["image"] * 2 for _ in names]


def test_a_request_that_cannot_run_fails_alone(monkeypatch):
    """The batch is run again one by one: batch-mates get their numbers, an incomplete request learns what lacks."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.TritonError = _Tensor, _Error
    backend.InferenceResponse = lambda tensors=(), error=None: (list(tensors), error)
    backend.get_input_tensor_by_name = lambda request, name: next(
        (tensor for tensor in request.inputs() if tensor.name() == name), None
    )
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("stand_in", STAND_IN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.session, model.inputs, model.outputs = _Session(), ("image", "masks"), ("sum_p", "volumes")

    masks = np.zeros((1, 4, 1), np.uint8)
    values = (1.0, 13.0, 3.0)
    requests = [_Request(image=np.full((1, 2), value, np.float32), masks=masks) for value in values]
    good, bad, other, incomplete = model.execute([*requests, _Request(image=np.zeros((1, 2), np.float32))])
    assert [tensor.as_numpy().tolist() for tensor in good[0] + other[0]] == [[[2.0, 2.0]], [[6.0, 6.0]]]
    assert bad[1].code == _Error.INVALID_ARG and "cannot compute 13" in bad[1].message
    assert "expected the inputs ['image', 'masks']; got ['image']" in incomplete[1].message

    model.session.runs = 0
    model.execute([requests[0], requests[2]])
    assert model.session.runs == 1
