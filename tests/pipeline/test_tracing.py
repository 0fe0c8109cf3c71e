"""Traces as a site would collect them: Triton's spans of one request, received by an endpoint that speaks OTLP/HTTP.

The client's span and the reverse proxy's part of it are known by the trace that the client names (W3C traceparent).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc
from equipoise_export.publish.repository import publish_pair
from tritonclient.grpc import InferenceServerClientPlugin

from ..support.asking import ask, case, poll
from ..support.processes import serving
from ..support.reverse_proxy import ReverseProxy, certificates, reverse_proxy

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


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""Of the client."""


@contextmanager
def traced_client(proxy: ReverseProxy) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    """A stock client over mutual TLS whose requests belong to a span of its own."""
    tls = proxy.tls()
    pair = {"private_key": str(tls.key), "certificate_chain": str(tls.certificate), "root_certificates": str(tls.root)}
    with tritonclient.grpc.InferenceServerClient(proxy.url, ssl=True, **pair) as client:
        client.register_plugin(Traceparent())
        yield client


class Traceparent(InferenceServerClientPlugin):
    """Adds the client's span to each request's headers."""

    def __call__(self, request: Any) -> None:
        request.headers["traceparent"] = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: `bash deploy/system-packages.sh`"
)
def test_spans_of_a_request_reach_the_collector_and_hold_no_image(tiny_segmentation, tmp_path):
    """Client, reverse proxy, aggregator and sampler share a trace; a span has times, names and numbers, never a tensor.

    HAProxy sends no spans: its audit line names the trace, and says how long the request took there.
    """
    publish_pair(tiny_segmentation, tmp_path / "models")
    image = np.full((1, 8, 8), 0.125, np.float32)
    with collector() as (port, bodies):
        environment = {**os.environ, "EQUIPOISE_TRITON_OPTIONS": options(port)}
        with (
            serving(tmp_path / "models", tmp_path / "run", environment) as server,
            reverse_proxy(
                certificates(tmp_path / "certificates"), [(server.urls["grpc"], urlsplit(server.urls["health"]).port)]
            ) as proxy,
            traced_client(proxy) as client,
        ):
            poll(lambda: proxy.up() == 1, "the proxy has found the replica")
            ask(client, "tinyseg", case(image), ("route",), request_id="number-7")

            def traced() -> list[dict[str, Any]]:
                """All spans of the client's trace."""
                return [span for span in spans(bodies) if span["traceId"] == TRACE]

            poll(lambda: "tinyseg_sampler" in json.dumps(traced()), "the sampler's span is in the client's trace")
            found = traced()
            poll(lambda: proxy.logged(trace=TRACE), "the reverse proxy's line names the trace")
    assert any(span.get("parentSpanId") == SPAN for span in found) and "number-7" in json.dumps(found)
    assert {line["trace"] for line in proxy.logged(client="clinic")} <= {TRACE, "-"}
    models = {value for span in found for value in re.findall(r"tinyseg(?:_sampler)?", json.dumps(span))}
    assert models == {"tinyseg", "tinyseg_sampler"}
    known = {"name", "spanId", "traceId", "parentSpanId", "startTimeUnixNano", "endTimeUnixNano", "attributes",
             "events", "kind", "status", "traceState", "flags", "links"}  # fmt: skip
    names = {attribute["key"] for span in found for attribute in span.get("attributes", ())}
    assert set().union(*found) <= known and names <= {
        "triton.model_name", "triton.model_version", "triton.trace_id", "triton.trace_parent_id", "triton.request_id",
    }, names  # fmt: skip
    assert "0.125" not in json.dumps(found)
