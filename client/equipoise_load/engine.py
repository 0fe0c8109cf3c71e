"""Sends a mix at its due times over many connections, and tallies what comes back.

In an open loop nothing waits for an answer: a request is due when the schedule says so, and its latency counts from
then on, whether or not the generator or the connection was late (Tene, "How not to measure latency", 2015: anything
else omits, in step with the server, exactly the requests that would have waited).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np
from equipoise_client.errors import ours
from equipoise_client.transport import Retry, Tls, Tries, channel_options
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from .arrivals import Arrivals, due_times
from .mix import Payload, shuffled
from .tally import Reply, Tally

METHOD = "/inference.GRPCInferenceService/ModelInfer"

OVERDRAWN = "NOT_SENT"
"""Code of a request that was due while `Plan.outstanding` others had no answer yet."""


@dataclass(frozen=True)
class Plan:
    """How a mix is sent.

    Attributes:
        rate: requests per second; open loop.
        concurrency: requests in flight; closed loop.
        warmup, duration: seconds; what is due within the warm-up is sent, and not counted.
        timeout: seconds for one request, all its tries included.
        retry: when the server is unreachable or busy (UNAVAILABLE), or a process of the model died; see `Retry`.
        connections: TCP connections.
        outstanding: requests without an answer beyond which none is sent any more, so that a dead server cannot fill
            this machine's memory.
        seed: of arrivals and mix.
    """

    url: str
    arrivals: Arrivals
    rate: float
    concurrency: int
    warmup: float
    duration: float
    timeout: float
    retry: Retry
    connections: int
    outstanding: int = 20_000
    seed: int = 0
    tls: Tls | None = None


Progress = Callable[[float, Tally, int], None]
"""Seconds since the start, the tally so far, requests in flight."""


def run(plan: Plan, payloads: Sequence[Payload], progress: Progress | None = None) -> Tally:
    """Carries the plan out, and waits for the last answer: at most `plan.timeout` after the last request."""
    # epoll, asyncio's default here, rounds every wait up to whole milliseconds; select waits exactly.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(_run(plan, payloads, progress))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _run(plan: Plan, payloads: Sequence[Payload], progress: Progress | None) -> Tally:
    channels = [_channel(plan) for _ in range(plan.connections)]
    with contextlib.suppress(asyncio.TimeoutError):  # the requests will say so, each with its code
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in channels)), plan.timeout)
    calls = [channel.unary_unary(METHOD) for channel in channels]
    begin = time.monotonic()
    tally = Tally(len(payloads), begin + plan.warmup, plan.duration)
    sender = _Sender(plan, payloads, calls, tally)
    watcher = asyncio.create_task(_watch(progress, begin, tally, sender)) if progress else None
    try:
        await (sender.closed(begin) if plan.arrivals is Arrivals.CLOSED else sender.open(begin))
    finally:
        if watcher:
            watcher.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))
    return tally


def _channel(plan: Plan) -> grpc.aio.Channel:
    if plan.tls is None:
        return grpc.aio.insecure_channel(plan.url, options=channel_options())
    return grpc.aio.secure_channel(plan.url, plan.tls.credentials(), options=channel_options())


async def _watch(progress: Progress, begin: float, tally: Tally, sender: _Sender) -> None:
    while True:
        progress(time.monotonic() - begin, tally, sender.in_flight)
        await asyncio.sleep(0.2)


class _Sender:
    """Sends payloads in the order of the mix, over the connections in turn."""

    def __init__(
        self, plan: Plan, payloads: Sequence[Payload], calls: Sequence[grpc.aio.UnaryUnaryMultiCallable], tally: Tally
    ) -> None:
        self._plan, self._payloads, self._calls, self._tally = plan, payloads, calls, tally
        self._kinds = shuffled(payloads, plan.seed)
        self._jitter = random.Random(plan.seed)  # noqa: S311 (spreads retries, guards nothing)
        self._number = 0
        self.in_flight = 0

    async def open(self, begin: float) -> None:
        """Each request at its time, whatever the outcome of the others."""
        plan, tasks = self._plan, set[asyncio.Task[None]]()
        for offset in due_times(plan.arrivals, plan.rate, plan.warmup + plan.duration, plan.seed):
            due = begin + offset
            wait = due - time.monotonic()
            # Also when late: answers must be taken in, or the generator would measure its own backlog.
            await asyncio.sleep(max(0.0, wait))
            if self.in_flight >= plan.outstanding:
                now = time.monotonic()
                self._count(Reply(next(self._kinds), due, now, now, OVERDRAWN, 0))
                continue
            task = asyncio.create_task(self._ask(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def closed(self, begin: float) -> None:
        """`concurrency` callers, each of which sends its next request after an answer."""
        end = begin + self._plan.warmup + self._plan.duration

        async def caller() -> None:
            while (now := time.monotonic()) < end:
                await self._ask(now)

        await asyncio.gather(*(caller() for _ in range(self._plan.concurrency)))

    async def _ask(self, due: float) -> None:
        self.in_flight += 1
        try:
            self._count(await self._reply(due))
        finally:
            self.in_flight -= 1

    async def _reply(self, due: float) -> Reply:
        kind = next(self._kinds)
        call = self._calls[self._number % len(self._calls)]
        self._number += 1
        sent = time.monotonic()
        retry = self._plan.retry
        ends, again, tries = sent + self._plan.timeout, Tries(retry.pauses(self._jitter), retry.recovery), 0
        while True:
            tries += 1
            try:
                answer = await call(self._payloads[kind].message, timeout=max(0.001, ends - time.monotonic()))
                return Reply(kind, due, sent, time.monotonic(), "OK", tries, *_decision(answer))
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                pause = again.pause(ours(METHOD, error), ends - time.monotonic())
                if pause is None or time.monotonic() + pause >= ends:
                    return Reply(kind, due, sent, time.monotonic(), code, tries)
                await asyncio.sleep(pause)

    def _count(self, reply: Reply) -> None:
        if reply.due >= self._tally.start:
            self._tally.add(reply)


def _decision(answer: bytes) -> tuple[int, tuple[str, ...]]:
    """Samples used for all images of an answer, and each one's route."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    raw = {
        output.name: content for output, content in zip(response.outputs, response.raw_output_contents, strict=False)
    }
    routes = deserialize_bytes_tensor(raw.get("route", b""))
    samples = np.frombuffer(raw.get("samples_used", b""), "<i4").sum()
    return int(samples), tuple(route.decode("ascii", "replace") for route in routes)
