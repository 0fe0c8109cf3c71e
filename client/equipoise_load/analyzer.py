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
    rows = [
        {name: {"content": content, "shape": shape} for name, (content, shape) in _tensors(payload).items()}
        for payload in payloads
    ]
    data.write_text(json.dumps({"data": rows}), encoding="utf-8")
    shapes = []
    for name, (_, shape) in _tensors(payloads[0]).items():
        shapes += ["--shape", f"{name}:{','.join(map(str, shape))}"]
    command = (
        "perf_analyzer", "-m", models[0], "-i", "grpc", "-u", plan.url,
        "--input-data", str(data), *shapes, *_load(plan), "--percentile=50", "--max-threads", "4",
    )  # fmt: skip
    script = folder / "command.sh"
    script.write_text(f"#!/bin/sh\n# What it reports is its own send-to-answer time.\n{shlex.join(command)}\n")
    script.chmod(0o755)
    return command


def _tensors(payload: Payload) -> dict[str, tuple[list[float], tuple[int, ...]]]:
    """Name → numbers and shape of each input."""
    images = len(payload.image)
    tensors: dict[str, tuple[list[float], tuple[int, ...]]] = {
        "image": (payload.image.ravel().tolist(), payload.image.shape)
    }
    if payload.spacing is not None:
        tensors["spacing"] = ([*payload.spacing] * images, (images, len(payload.spacing)))
    if payload.samples is not None:
        tensors["samples"] = ([payload.samples] * images, (images, 1))
    return tensors


def _load(plan: Plan) -> list[str]:
    milliseconds = str(int(plan.duration * 1000))
    if plan.arrivals is Arrivals.CLOSED:
        # --sync would hide queueing in the client, --async keeps so many requests in flight.
        return ["--async", "--concurrency-range", str(plan.concurrency), "--measurement-interval", milliseconds]
    return [
        "--async", "--request-rate-range", f"{plan.rate:g}", "--request-distribution", plan.arrivals.value,
        "--measurement-interval", milliseconds,
    ]  # fmt: skip
