"""A gRPC server that answers every inference in exactly so many seconds, and may stall once: the truth to measure by.

Run as a script: `exact_server.py SECONDS [STALL_AFTER STALL_FOR]` prints its port. Its own process, so that it shares
no event loop with what measures it.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

ANSWER = service_pb2.ModelInferResponse(model_name="exact")
for name, content in (("samples_used", b"\x14\0\0\0"), ("route", b"\6\0\0\0review")):
    ANSWER.outputs.add(name=name, datatype="INT32" if name == "samples_used" else "BYTES", shape=[1, 1])
    ANSWER.raw_output_contents.append(content)
BYTES = ANSWER.SerializeToString()


class Exact(grpc.GenericRpcHandler):
    """While it stalls nobody is answered, and all wait for its end."""

    def __init__(self, seconds: float, stall_after: float, stall_for: float) -> None:
        self.seconds, self.stall_after, self.stall_for = seconds, stall_after, stall_for
        self.first = 0.0

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, request, context):
        now = time.monotonic()
        self.first = self.first or now
        begin, end = self.first + self.stall_after, self.first + self.stall_after + self.stall_for
        freed = end if begin <= now < end else now
        await asyncio.sleep(freed + self.seconds - time.monotonic())
        return BYTES


async def main(seconds: float, stall_after: float = 1e9, stall_for: float = 0.0) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Exact(seconds, stall_after, stall_for)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    # Not epoll, which rounds waits up to whole milliseconds.
    asyncio.SelectorEventLoop(selectors.SelectSelector()).run_until_complete(main(*map(float, sys.argv[1:])))
