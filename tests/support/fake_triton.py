"""A server that speaks Triton's gRPC protocol on a free loopback port and says what a test tells it to say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from equipoise_core.contract import Activation, Contract, Site, SiteKind, Task
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.record import input_digest
from equipoise_core.scores import SCORES
from equipoise_core.steps import ScalePercentiles, ZScore
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

_NUMPY = {"FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64}
_TRITON = {"f": "FP32", "i": "INT32", "u": "UINT8", "O": "BYTES"}


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves any number of contracts.

    Attributes:
        failures: codes to answer the next inferences with, first one first; after them it answers.
        overrides: output name → tensor to send instead; None leaves the output out.
        stall: an event that an inference waits for before it answers, or None.
        described: model → contracts that its next configurations state instead of its own, first one first.
        retry_after: ms that a model's configuration asks refused callers to wait.
        requests: what came, as protobuf; `tensors` are their inputs as arrays.
    """

    contracts: dict[str, Contract]
    failures: list[tuple[grpc.StatusCode, str]] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    stall: threading.Event | None = None
    arrived: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    requests: list[Any] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    retry_after: dict[str, int] = field(default_factory=dict)
    described: dict[str, list[Contract]] = field(default_factory=dict)
    configs: int = 0
    url: str = ""

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:
        return service_pb2.ModelReadyResponse(ready=request.name in self.contracts)

    def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:
        names = [*self.contracts, *(f"{name}_sampler" for name in self.contracts)]
        return service_pb2.ModelStatisticsResponse(
            model_stats=[service_pb2.ModelStatistics(name=name, version="1") for name in names]
        )

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.configs += 1
        if request.name == "foreign":
            return service_pb2.ModelConfigResponse()
        if request.name not in self.contracts:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        stated = self.described.get(request.name)
        contract = stated.pop(0) if stated else self.contracts[request.name]
        response.config.parameters["contract"].string_value = contract.dumps()
        if request.name in self.retry_after:
            response.config.parameters["retry_after_ms"].string_value = str(self.retry_after[request.name])
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        context.add_callback(self.gone.set)
        self.arrived.set()
        if self.stall is not None:
            self.stall.wait(30)
        if self.failures:
            context.abort(*self.failures.pop(0))
        given = {
            tensor.name: np.frombuffer(raw, _NUMPY[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        self.tensors.append(given)
        answers = {**self._answers(self.contracts[request.model_name], given), **self.overrides}
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for wanted in request.outputs:
            values = answers[wanted.name]
            if values is None:
                continue
            output = response.outputs.add(name=wanted.name, datatype=_TRITON[values.dtype.kind])
            output.shape.extend(values.shape)
            raw = serialize_byte_tensor(values).item() if values.dtype.kind == "O" else values.tobytes()
            response.raw_output_contents.append(raw)
        return response

    @staticmethod
    def _answers(contract: Contract, given: dict[str, Any]) -> dict[str, Any]:
        """What a real server could say: the brightest voxels are the last class, everything accepted."""
        image = given["image"]
        count, classes, decisions = len(image), len(contract.classes), contract.decisions
        spatial = image.shape[2:] if contract.task is Task.SEGMENTATION else ()
        flat = image.reshape(count, -1)
        bright = image[:, 0] > flat.mean(axis=1).reshape(-1, *[1] * contract.rank)
        maps = {
            "mean": np.full((count, classes, *spatial), 1.0 / classes, np.float32),
            "variance": np.full((count, classes, *spatial), 0.01, np.float32),
            "variance_corrected": np.full((count, classes, *spatial), 0.0105, np.float32),
            "aleatoric": np.full((count, decisions, *spatial), 0.2, np.float32),
            "epistemic": np.full((count, decisions, *spatial), 0.1, np.float32),
            "labels": np.zeros((count, decisions, *spatial), np.uint8),
        }
        if contract.task is Task.SEGMENTATION:
            maps["labels"][:, 0] = bright * (classes - 1)
            maps["epistemic"][:, 0] = 0.05 + 0.4 * bright
        # The service is nearly certain far from the mean intensity, and guesses near it.
        far = np.abs(flat - flat.mean(axis=1, keepdims=True)) > flat.std(axis=1, keepdims=True) / 2
        certain = np.where(far.reshape(image.shape)[:, :1] if spatial else True, 0.97, 0.6).astype(np.float32)
        index = np.arange(classes).reshape(-1, *[1] * len(spatial))
        if contract.activation is Activation.SIGMOID:
            maps["calibrated"] = np.where(maps["labels"] > 0, certain, 1 - certain)
        else:
            certain = certain if spatial else certain.reshape(1, 1)
            chosen = maps["labels"] == index
            maps["calibrated"] = np.where(chosen, certain, (1 - certain) / (classes - 1)).astype(np.float32)
        drawn = int(given["samples"][0, 0]) if "samples" in given else contract.samples
        scores = SCORES[contract.task]
        record = {
            "model_digest": contract.model_digest,
            "policy_digest": "p" * 64,
            "input_digest": input_digest(image[0]),
            "samples": drawn,
            "samples_planned": drawn,
            "scores": dict.fromkeys(scores, round(float(image[0].max()), 6)),
            "statistics": {"level": float(image[0].mean()), "spread": float(image[0].std())},
            "route": "accept",
            "reason": {"code": "score_accepted", "values": {}, "text": "score 0.125 is at most 0.2"},
            "alpha": 0.1,
            "delta": 0.05,
        }
        return {
            **maps,
            "case_score": np.full((count, 1), 0.125, np.float32),
            "samples_used": np.full((count, 1), drawn, np.int32),
            "volume": np.tile(np.array([2.0, 0.1, 1.8, 2.2], np.float32), (count, classes, 1)),
            "volume_total": np.tile(np.array([4.0, 0.2, 3.7, 4.3], np.float32), (count, 1)),
            "route": np.full((count, 1), b"accept", object),
            "reason": np.full((count, 1), b"score 0.125 is at most 0.2", object),
            "record": np.full((count, 1), json.dumps(record).encode(), object),
        }


_SITES = (Site("drop", SiteKind.CHANNEL, (8,), 0.5),)


@pytest.fixture(scope="session")
def brain() -> Contract:
    """A 3D segmentation like `hippocampus`."""
    return Contract(
        name="brain",
        task=Task.SEGMENTATION,
        activation=Activation.SOFTMAX,
        classes=("background", "anterior", "posterior"),
        channels=1,
        spatial=("X", "Y", "Z"),
        nominal=(16, 16, 16),
        maximum=(256, 256, 256),
        preprocessing=Preprocessing((ZScore(),)),
        sites=_SITES,
        spacing=((0.9, 1.1),) * 3,
        orientation="RAS",
        modalities=("MR",),
    )


@pytest.fixture(scope="session")
def chest() -> Contract:
    """A 2D classifier of fixed size like `pneumonia`."""
    return Contract(
        name="chest",
        task=Task.CLASSIFICATION,
        activation=Activation.SOFTMAX,
        classes=("normal", "pneumonia"),
        channels=1,
        spatial=(28, 28),
        nominal=(28, 28),
        maximum=(28, 28),
        preprocessing=Preprocessing((ZScore(),)),
        sites=_SITES,
        modalities=("CR", "DX"),
    )


@pytest.fixture(scope="session")
def cells() -> Contract:
    """A 2D segmentation of any size like `nuclei`."""
    return Contract(
        name="cells",
        task=Task.SEGMENTATION,
        activation=Activation.SIGMOID,
        classes=("nucleus",),
        channels=1,
        spatial=("X", "Y"),
        nominal=(32, 32),
        maximum=(512, 512),
        preprocessing=Preprocessing((ScalePercentiles(1.0, 99.0),)),
        sites=_SITES,
    )


@pytest.fixture
def triton(brain: Contract, chest: Contract, cells: Contract) -> Iterator[FakeTriton]:
    fake = FakeTriton({contract.name: contract for contract in (brain, chest, cells)})
    server = grpc.server(futures.ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.url = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        yield fake
    finally:
        if fake.stall is not None:
            fake.stall.set()
        server.stop(None).wait()
