"""Traces as a site would collect them: Triton's spans of one request, received by an endpoint that speaks OTLP/HTTP."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from equipoise_export.publish.repository import publish_pair

from ..support.asking import ask, case, poll
from ..support.processes import serving

pytestmark = [pytest.mark.slow, pytest.mark.triton]

COLLECTOR = Path(__file__).parents[2] / "deploy" / "tracing" / "collector.yaml"


@contextmanager
def collector() -> Iterator[tuple[int, list[bytes]]]:
    """Port, and the bodies of what was exported so far."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, received
        finally:
            server.shutdown()
            thread.join()


def options(port: int) -> str:
    """As the head of collector.yaml says, but for its address and the share of requests."""
    (text,) = re.findall(r'EQUIPOISE_TRACE="(.*?)"', COLLECTOR.read_text().replace("\n#", ""), re.DOTALL)
    return re.sub(r"rate=\d+", "rate=1", text.replace("collector:4318", f"127.0.0.1:{port}"))


def spans(bodies: list[bytes]) -> list[dict[str, Any]]:
    return [
        span
        for body in list(bodies)
        for resource in json.loads(body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_spans_of_a_request_reach_the_collector_and_hold_no_image(tiny_segmentation, tmp_path):
    """Aggregator and sampler share a trace; a span has times, names and numbers of the request, never a tensor."""
    publish_pair(tiny_segmentation, tmp_path / "models")
    image = np.full((1, 8, 8), 0.125, np.float32)
    with collector() as (port, bodies):
        environment = {**os.environ, "EQUIPOISE_TRITON_OPTIONS": options(port)}
        with (
            serving(tmp_path / "models", tmp_path / "run", environment) as server,
            tritonclient.grpc.InferenceServerClient(server.urls["grpc"]) as client,
        ):
            ask(client, "tinyseg", case(image), ("route",), request_id="number-7")

            def traced() -> list[dict[str, Any]]:
                """All spans of the trace that the request is in."""
                found = spans(bodies)
                ours = {span["traceId"] for span in found if "number-7" in json.dumps(span)}
                return [span for span in found if span["traceId"] in ours]

            poll(lambda: "tinyseg_sampler" in json.dumps(traced()), "the sampler's span is in the request's trace")
            found = traced()
    models = {value for span in found for value in re.findall(r"tinyseg(?:_sampler)?", json.dumps(span))}
    assert models == {"tinyseg", "tinyseg_sampler"}
    known = {"name", "spanId", "traceId", "parentSpanId", "startTimeUnixNano", "endTimeUnixNano", "attributes",
             "events", "kind", "status", "traceState", "flags", "links"}  # fmt: skip
    names = {attribute["key"] for span in found for attribute in span.get("attributes", ())}
    assert set().union(*found) <= known and names <= {
        "triton.model_name", "triton.model_version", "triton.trace_id", "triton.trace_parent_id", "triton.request_id",
    }, names  # fmt: skip
    assert "0.125" not in json.dumps(found)
