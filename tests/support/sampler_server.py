"""A server that speaks Triton's gRPC protocol and runs a repository's samplers in this process, right or spoilt."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from equipoise_deploy.repository import parse_configuration
from equipoise_export.graph.session import session
from tritonclient.grpc import service_pb2, service_pb2_grpc

_NUMPY = {"FP32": np.float32, "UINT8": np.uint8}
Outputs = dict[str, Any]


@dataclass
class SamplerServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the configurations and samplers of a repository.

    Attributes:
        instead: by sampler's name, the graph that it runs instead of its file.
        spoil: outputs and inputs → the outputs that are sent.
        refuse: a code to answer every inference with.
        shapes: of the masks, or where there are none the images, that came.
    """

    repository: Path
    instead: Mapping[str, onnx.ModelProto] = field(default_factory=dict)
    spoil: Callable[[Outputs, Outputs], Outputs] | None = None
    refuse: grpc.StatusCode | None = None
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    sessions: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        config = parse_configuration(self.repository / request.name / "config.pbtxt")
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.refuse is not None:
            context.abort(self.refuse, "not for you")
        given = {
            tensor.name: np.frombuffer(raw, _NUMPY[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        self.shapes.append(given["masks" if "masks" in given else "image"].shape)
        name = request.model_name
        if name not in self.sessions:
            file = self.repository / name / "1" / "model.onnx"
            self.sessions[name] = session(self.instead.get(name, file), threads=1)
        names = [wanted.name for wanted in request.outputs]
        ran = self.sessions[name].run(names, given)
        outputs = dict(zip(names, ran, strict=True))
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, values in (self.spoil(outputs, given) if self.spoil else outputs).items():
            response.outputs.add(name=name, datatype="FP32", shape=values.shape)
            response.raw_output_contents.append(np.ascontiguousarray(values, np.float32).tobytes())
        return response


@contextmanager
def serving_samplers(served: SamplerServer) -> Iterator[SamplerServer]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(served, server)
    served.url = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        yield served
    finally:
        server.stop(None).wait()
