"""What ends this version of Triton, one at a time, each on a server of its own: it stays contained.

No answer accepts anything, and nothing of the server is left. Where the wheel's server is used, the fault has to be
there: once it is not, it goes from `fatal.py`, and the mass of `test_fuzz.py` sends it again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.engine import BINARY_VARIABLE
from equipoise_deploy.serving.server import TritonServer

from ..support import fatal
from ..support.asking import poll
from ..support.malformed import MODELS, SAMPLES, valid
from ..support.malformed_http import as_json, post
from ..support.processes import alive, descendants
from ..support.repositories import accepting_copies

pytestmark = [pytest.mark.triton, pytest.mark.slow]

INFER = "/v2/models/pneumonia/infer"


def _classified() -> bytes:
    request = valid(MODELS["pneumonia"])
    request.outputs[0].parameters["classification"].int64_param = 1
    return request.SerializeToString()


def _overflowing() -> bytes:
    request = valid(MODELS["pneumonia"])
    request.inputs[0].shape[0] = 2**62
    request.raw_input_contents[0] = b""
    return request.SerializeToString()


def _huge() -> bytes:
    document, _ = as_json(valid(MODELS["pneumonia"]), binary=False)
    document["inputs"][0]["shape"][0] = 2**40
    return post(INFER, json.dumps(document).encode(), {"Connection": "close"})


def _deep() -> bytes:
    return post(INFER, b"[" * 10**6 + b"]" * 10**6, {"Connection": "close"})


def _chunks() -> bytes:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"1\r\nA\r\n" * 600_000 + b"0\r\n\r\n"


def _two_lengths() -> bytes:
    document, _ = as_json(valid(MODELS["pneumonia"]), binary=False)
    content = post(INFER, json.dumps(document).encode(), {"Connection": "close"})
    return content.replace(b"Content-Length:", f"Content-Length: {2**31}\r\nContent-Length:".encode(), 1)


def over_grpc(server: TritonServer, message: bytes) -> bytes:
    """What comes back; nothing where it is an error."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        try:
            return bytes(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message, timeout=30))
        except grpc.RpcError:
            return b""


def over_http(server: TritonServer, content: bytes) -> bytes:
    host, port = server.http_url.split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        try:
            connection.sendall(content)
            return connection.makefile("rb").read()
        except OSError:
            return b""


Send = Callable[[TritonServer, bytes], bytes]
FAULTS: dict[str, tuple[Callable[[], bytes], Send]] = {
    fatal.CLASSIFIED_TEXT: (_classified, over_grpc),
    fatal.OVERFLOWING_SHAPE: (_overflowing, over_grpc),
    fatal.HUGE_SHAPE: (_huge, over_http),
    fatal.DEEP_JSON: (_deep, over_http),
    fatal.MANY_CHUNKS: (_chunks, over_http),
    fatal.TWO_LENGTHS: (_two_lengths, over_http),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.split(":")[0][:40])
def test_a_fault_of_triton_is_contained(fault, tmp_path):
    """It accepts nothing and leaves nothing behind."""
    make, send = FAULTS[fault]
    before = descendants(os.getpid())
    shared = set(Path("/dev/shm").glob(f"equipoise_{os.getpid()}_*"))
    with TritonServer(accepting_copies(tmp_path / "models", SAMPLES), ports=Ports(0, 0, 0)) as server:
        family = descendants(os.getpid()) - before
        assert b"accept" in over_grpc(server, valid(MODELS["pneumonia"]).SerializeToString())
        assert b"accept" not in send(server, make())
        if BINARY_VARIABLE not in os.environ:
            poll(lambda: alive(family) != family, "this server stands it: take it from fatal.py", seconds=60.0)
    assert not alive(family)
    assert set(Path("/dev/shm").glob(f"equipoise_{os.getpid()}_*")) <= shared


def test_what_is_withheld_is_what_is_sent_here():
    """The mass leaves out these, and not what differs from them in one harmless thing."""
    assert fatal.fault_in(_classified()) == fatal.CLASSIFIED_TEXT
    assert fatal.fault_in(_overflowing()) == fatal.OVERFLOWING_SHAPE
    assert fatal.fault_in_http(_huge()) == fatal.OVERFLOWING_SHAPE
    numbers = valid(MODELS["pneumonia"])
    numbers.outputs[3].parameters["classification"].int64_param = 1
    assert not fatal.fault_in(numbers.SerializeToString())
    assert not fatal.fault_in(valid(MODELS["hippocampus"]).SerializeToString())
