"""The same load for NVIDIA's perf_analyzer: its input file, and the command that sends it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from equipoise_client.errors import InvalidInput

from .arrivals import Arrivals
from .engine import Plan
from .mix import Payload


def write_analyzer(plan: Plan, payloads: Sequence[Payload], folder: Path) -> tuple[str, ...]:
    """Writes `input.json` and `command.sh` into `folder`; returns the command.

    perf_analyzer sends one model's requests in turn: without weights, priorities or a mix of T.

    Raises:
        InvalidInput: the mix is more than it can send.
    """
    models = sorted({payload.model for payload in payloads})
    if len(models) > 1:
        raise InvalidInput(f"perf_analyzer sends to one model at a time; this mix has {', '.join(models)}")
    if len({payload.samples is None for payload in payloads}) > 1:
        raise InvalidInput("perf_analyzer cannot mix requests with and without `samples`")
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "input.json"
    data.write_text(json.dumps({"data": [_row(payload) for payload in payloads]}), encoding="utf-8")
    command = (
        "perf_analyzer", "-m", models[0], "-i", "grpc", "-u", plan.url,
        "--input-data", str(data), *_shapes(payloads[0]), *_load(plan), "--percentile=50", "--max-threads", "4",
    )  # fmt: skip
    script = folder / "command.sh"
    script.write_text(f"#!/bin/sh\n# What it reports is its own send-to-answer time.\n{shlex.join(command)}\n")
    script.chmod(0o755)
    return command


def _row(payload: Payload) -> dict[str, object]:
    images = len(payload.image)
    tensors: dict[str, object] = {"image": {"content": payload.image.ravel().tolist(), "shape": [*payload.image.shape]}}
    if payload.spacing is not None:
        tensors["spacing"] = {"content": [*payload.spacing] * images, "shape": [images, len(payload.spacing)]}
    if payload.samples is not None:
        tensors["samples"] = {"content": [payload.samples] * images, "shape": [images, 1]}
    return tensors


def _shapes(payload: Payload) -> list[str]:
    images = len(payload.image)
    shapes = {"image": payload.image.shape}
    if payload.spacing is not None:
        shapes["spacing"] = (images, len(payload.spacing))
    if payload.samples is not None:
        shapes["samples"] = (images, 1)
    return [word for name, shape in shapes.items() for word in ("--shape", f"{name}:{','.join(map(str, shape))}")]


def _load(plan: Plan) -> list[str]:
    milliseconds = str(int(plan.duration * 1000))
    if plan.arrivals is Arrivals.CLOSED:
        # --sync would hide queueing in the client, --async keeps so many requests in flight.
        return ["--async", "--concurrency-range", str(plan.concurrency), "--measurement-interval", milliseconds]
    return [
        "--async", "--request-rate-range", f"{plan.rate:g}", "--request-distribution", plan.arrivals.value,
        "--measurement-interval", milliseconds,
    ]  # fmt: skip
