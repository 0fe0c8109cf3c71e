"""What people serve Monte Carlo dropout with today, each written as its users would.

    PEER=loop|batch|copies MODEL=file SHAPE=1,128,128 SAMPLES=20 THREADS=2 [DEVICE=cuda] uvicorn peers:app

The body of a request is the image's float32 bytes; the answer is mean and variance over T samples, as `numpy.savez`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
import torch
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

T = int(os.environ["SAMPLES"])
SHAPE = tuple(int(size) for size in os.environ["SHAPE"].split(","))
THREADS = int(os.environ["THREADS"])
DEVICE = os.environ.get("DEVICE", "cpu")
app = FastAPI()


def dropping(network: torch.nn.Module) -> torch.nn.Module:
    """Everything evaluates, but for dropout: what every tutorial on MC dropout does."""
    network.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.train()
    return network


class Loop:
    """T forward passes, one after the other."""

    def __init__(self, file: Path) -> None:
        torch.set_num_threads(THREADS)
        self.network = dropping(torch.load(file, weights_only=False)).to(DEVICE)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = torch.from_numpy(image).to(DEVICE)
            return torch.stack([self.network(given).softmax(1)[0] for _ in range(T)]).cpu().numpy()


class Batch(Loop):
    """One batch of T copies: each has its own masks."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = torch.from_numpy(image).to(DEVICE)
            return self.network(given.repeat(T, *[1] * (image.ndim - 1))).softmax(1).cpu().numpy()


class Copies:
    """ONNX Runtime on T copies of the image, dropout left in the graph (training mode)."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        # Its optimiser would remove dropout, and all copies would agree.
        provider = "CUDAExecutionProvider" if DEVICE == "cuda" else "CPUExecutionProvider"
        if DEVICE == "cuda":
            onnxruntime.preload_dlls()
        self.session = onnxruntime.InferenceSession(
            file, options, providers=[provider], disabled_optimizers=["EliminateDropout"], enable_fallback=0
        )
        assert self.session.get_providers()[0] == provider, f"{provider} did not start"
        self.input = self.session.get_inputs()[0].name

    def __call__(self, image: np.ndarray) -> np.ndarray:
        logits = self.session.run(None, {self.input: np.repeat(image, T, 0)})[0]
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)


peer = {"loop": Loop, "batch": Batch, "copies": Copies}[os.environ["PEER"]](Path(os.environ["MODEL"]))


@app.post("/predict")
async def predict(request: Request) -> Response:
    image = np.frombuffer(await request.body(), np.float32).reshape(1, *SHAPE).copy()
    p = await run_in_threadpool(peer, image)
    answer = io.BytesIO()
    np.savez(answer, mean=p.mean(0), variance=p.var(0))
    return Response(answer.getvalue(), media_type="application/octet-stream")
