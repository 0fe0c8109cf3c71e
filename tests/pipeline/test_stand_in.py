"""The embedded stand-in behaves as the native ONNX Runtime backend would, on the real server."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import

import importlib.util
import json
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
from equipoise_deploy.errors import StartError
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.device import EMBEDDED_CUDA
from equipoise_deploy.serving.engine import find_engine
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from equipoise_deploy.serving.settings import Settings
from equipoise_export.publish.repository import publish_pair

from ..support.asking import metric, poll
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
    """With one run at a time on however many cores."""
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
    """Has the first request run until all others wait; answers in order."""

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
    """Each request gets its own numbers back, whoever waited with it, and only the outputs it asked for."""
    session = ort.InferenceSession(tiny_segmentation.model.SerializeToString(), providers=["CPUExecutionProvider"])
    cases = [_case(1 + i % 3, (4, 16)[i % 2], ((4, 4), (8, 6))[i % 4 // 2], seed=i) for i in range(24)]
    asked = [OUTPUTS if i % 3 else OUTPUTS[:1] for i in range(24)]
    for case, outputs, answer in zip(cases, asked, ask_together(list(zip(cases, asked, strict=True))), strict=True):
        expected = session.run(list(outputs), case)
        assert {tensor.name for tensor in answer.get_response().outputs} == set(outputs)
        for name, array in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(answer.as_numpy(name), array, atol=1e-5)


class _Tensor:
    """What the stand-in touches of pb_utils.Tensor."""

    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class _Error:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message, code):
        self.message, self.code = message, code


class _Request:
    def __init__(self, sender, **arrays):
        self.sender, self.arrays = sender, arrays

    def get_response_sender(self):
        return self.sender

    def inputs(self):
        return [_Tensor(name, array) for name, array in self.arrays.items()]

    def requested_output_names(self):
        return ["volumes"]


class _Sender:
    def __init__(self, answers, number):
        self.answers, self.number = answers, number

    def send(self, response, flags):
        self.answers[self.number] = response


class _Session:
    """Waits until it is let go; refuses the value 13, as ONNX Runtime would one that it cannot compute."""

    def __init__(self, threads, runs, gate):
        self.threads, self.runs, self.gate = threads, runs, gate

    def run(self, names, feeds):
        self.runs.append((self.threads, float(feeds["image"][0, 0])))
        assert self.gate.wait(60)
        if (feeds["image"] == 13).any():
            raise RuntimeError("cannot compute 13")
        return [feeds["image"] * 2 for _ in names]

    def get_inputs(self):
        return [types.SimpleNamespace(name=name) for name in ("image", "masks")]

    def get_outputs(self):
        return [types.SimpleNamespace(name=name) for name in ("sum_p", "volumes")]


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in's class over a backend that only keeps what it is given."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.TritonError, backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = _Tensor, _Error, 1
    backend.InferenceResponse = lambda tensors=(), error=None: (list(tensors), error)
    backend.get_input_tensor_by_name = lambda request, name: next(
        (tensor for tensor in request.inputs() if tensor.name() == name), None
    )
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("stand_in", STAND_IN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Held:
    """A stand-in whose runs end when the test lets them."""

    def __init__(self, module, monkeypatch, runs):
        self.runs, self.gate, self.answers = [], threading.Event(), {}
        monkeypatch.setattr(module, "_session", lambda file, threads: _Session(threads, self.runs, self.gate))
        monkeypatch.setattr(module.ort, "create_and_register_allocator", lambda *_: None)
        said = {"runs": runs, "intra_op_thread_count": 1, "alone": 4}
        parameters = {name: {"string_value": str(value)} for name, value in said.items()}
        self.model = module.TritonPythonModel()
        self.model.initialize(
            {"model_repository": "", "model_version": "1", "model_config": json.dumps({"parameters": parameters})}
        )

    def ask(self, *values):
        """From a thread of its own: it returns when all could be started."""
        requests = [
            _Request(_Sender(self.answers, value), image=np.full((1, 2), value, np.float32)) for value in values
        ]
        for request in requests:
            request.arrays["masks"] = np.zeros((1, 4, 1), np.uint8)
        thread = threading.Thread(target=self.model.execute, args=(requests,))
        thread.start()
        return thread


def test_only_a_run_that_is_alone_gets_all_cores(stand_in, monkeypatch):
    """One that starts while another one runs or waits gets its share; afterwards a lone one has all again."""
    held = Held(stand_in, monkeypatch, runs=2)
    held.ask(1.0).join(60)
    poll(lambda: held.runs == [(4, 1.0)], "the first runs alone")
    held.ask(2.0, 3.0, 4.0).join(60)
    poll(lambda: held.runs[1:] == [(1, 2.0)], "the second shares the cores")
    fifth = held.ask(5.0)
    fifth.join(0.2)
    assert fifth.is_alive() and len(held.runs) == 2, "two run, two come next, what else waits, waits in Triton"
    held.gate.set()
    fifth.join(60)
    poll(lambda: len(held.answers) == 5, "all are answered")
    assert held.runs[2:4] == [(1, 3.0), (1, 4.0)] or held.runs[2:4] == [(1, 4.0), (1, 3.0)]
    held.gate.clear()
    held.ask(6.0).join(60)
    poll(lambda: held.runs[5:] == [(4, 6.0)], "it is alone again")
    held.gate.set()
    held.model.finalize()
    assert sorted(held.answers) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_request_that_cannot_run_fails_alone(stand_in, monkeypatch):
    """The others get their numbers, an incomplete request learns what lacks."""
    held = Held(stand_in, monkeypatch, runs=1)
    held.gate.set()
    held.ask(1.0, 13.0, 3.0).join(60)
    incomplete = _Request(_Sender(held.answers, "incomplete"), image=np.zeros((1, 2), np.float32))
    held.model.execute([incomplete])
    held.model.finalize()
    good, bad, other = (held.answers[value] for value in (1.0, 13.0, 3.0))
    assert [tensor.as_numpy().tolist() for tensor in good[0] + other[0]] == [[[2.0, 2.0]], [[6.0, 6.0]]]
    assert bad[1].code == _Error.INTERNAL and "cannot compute 13" in bad[1].message
    incomplete = held.answers["incomplete"][1]
    assert incomplete.code == _Error.INVALID_ARG
    assert "expected the inputs ['image', 'masks']; got ['image']" in incomplete.message


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_do_not_change_an_answer(tiny_segmentation, threads):
    """A lone request has more of them than one that shares the cores: the same numbers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    file = tiny_segmentation.model.SerializeToString()
    case = _case(2, 16, (64, 48), seed=1)
    found = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(list(OUTPUTS), case)
    options.intra_op_num_threads = 4
    expected = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(list(OUTPUTS), case)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class _Placed:
    """ONNX Runtime with a CUDA provider, whose sessions end up on `providers`."""

    __version__ = "1.31"
    SessionOptions = ort.SessionOptions

    def __init__(self, available, providers):
        self.available, self.providers, self.opened, self.fallback = available, providers, [], True

    def get_available_providers(self):
        return self.available

    def preload_dlls(self):
        pass

    def InferenceSession(self, file, options, providers, **more):
        self.opened.append((file, providers, more))
        return self

    def disable_fallback(self):
        self.fallback = False

    def get_providers(self):
        return self.providers

    def get_inputs(self):
        return []

    get_outputs = get_inputs


def _load(stand_in, accelerators, runs=1):
    model = stand_in.TritonPythonModel()
    config = {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": accelerators}}}
    config["parameters"] = {"runs": {"string_value": str(runs)}, "alone": {"string_value": "8"}}
    model.initialize({"model_repository": "", "model_version": "1", "model_config": json.dumps(config)})
    return model


@pytest.mark.parametrize("runs", [1, 3])
def test_on_a_gpu_all_runs_share_one_session(stand_in, monkeypatch, runs):
    """With the configuration's options, and without a way back to the CPU."""
    placed = _Placed([CUDA, CPU], [CUDA, CPU])
    monkeypatch.setattr(stand_in, "ort", placed)
    model = _load(stand_in, [{"name": "cuda", "parameters": OPTIONS}], runs)
    model.finalize()
    assert model.shared is model.alone is placed
    assert [(providers, more) for _, providers, more in placed.opened] == [([(CUDA, OPTIONS)], {"enable_fallback": 0})]
    assert not placed.fallback


@pytest.mark.parametrize(
    ("available", "providers", "said"),
    [
        ([CPU], [CPU], f"has no {CUDA}: uninstall onnxruntime and install the extra gpu"),
        ([CUDA, CPU], [CPU], f"{CUDA} did not start"),
    ],
)
def test_a_sampler_that_was_to_run_on_a_gpu_does_not_load_on_the_cpu(stand_in, monkeypatch, available, providers, said):
    """ONNX Runtime only logs that a provider did not start, and goes on with the CPU."""
    monkeypatch.setattr(stand_in, "ort", _Placed(available, providers))
    with pytest.raises(RuntimeError, match=said):
        _load(stand_in, [{"name": "cuda", "parameters": OPTIONS}])


def test_another_accelerator_is_refused(stand_in):
    """TensorRT is the native backend's."""
    with pytest.raises(ValueError, match=r"\['tensorrt'\]; the stand-in knows cuda alone"):
        _load(stand_in, [{"name": "tensorrt"}])


def test_a_server_for_the_gpu_refuses_to_start_without_one(tiny_segmentation, tmp_path):
    """The real ONNX Runtime of this environment has no CUDA provider; the log says what to install."""
    publish_pair(tiny_segmentation, tmp_path / "models")
    engine = replace(find_engine({"EQUIPOISE_DEVICE": "cpu"}), configuration=EMBEDDED_CUDA)
    with pytest.raises(StartError, match=f"has no {CUDA}: uninstall onnxruntime and install the extra gpu"):
        TritonServer(tmp_path / "models", engine, ports=Ports(0, 0, 0)).start()


def test_the_configuration_for_a_gpu_is_served(tiny_segmentation, tmp_path):
    """The CPU's provider in the place of CUDA's: all else of that path is real, and its answers are the CPU's."""
    publish_pair(tiny_segmentation, tmp_path / "models")
    code = tmp_path / "models" / SAMPLER / "1" / "model.py"
    text = code.read_text()
    assert text.count(f'"{CUDA}"') == 1
    code.unlink()  # it may be a link
    code.write_text(text.replace(f'"{CUDA}"', f'"{CPU}"'))
    engine = replace(find_engine({"EQUIPOISE_DEVICE": "cpu"}), configuration=EMBEDDED_CUDA)
    session = ort.InferenceSession(tiny_segmentation.model.SerializeToString(), providers=[CPU])
    case = _case(2, 16, (4, 4), seed=0)
    with TritonServer(tmp_path / "models", engine, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        with triton.InferenceServerClient(server.grpc_url) as client:
            wanted = [triton.InferRequestedOutput(name) for name in OUTPUTS]
            answer = client.infer(SAMPLER, _inputs(case), outputs=wanted)
    for name, array in zip(OUTPUTS, session.run(list(OUTPUTS), case), strict=True):
        np.testing.assert_allclose(answer.as_numpy(name), array, atol=1e-5)
