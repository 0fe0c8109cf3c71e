"""Twenty thousand malformed requests: each is answered or refused in words, and nothing happens to the server.

A plain run sends a seeded share of them, the whole is marked `slow`. What is known to end this server's version is
withheld from the mass (`fatal.py` says what and why), and sent one at a time by `test_known_faults.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
from equipoise_client.transport import channel_options
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer
from tritonclient.grpc import service_pb2

from ..support import malformed, malformed_http
from ..support.fatal import fault_in, fault_in_http
from ..support.fuzzing import change_a_field, damaged, fill
from ..support.malformed import MODELS, WORDS, Case, answers, questions, valid, wrongly_accepted
from ..support.malformed_http import ENDPOINTS, WRITTEN, HttpCase
from ..support.processes import Process, descendants
from ..support.repositories import accepting_copies
from ..support.resources import MB, shared_memory, usage
from ..support.studies import PLANTED

pytestmark = pytest.mark.triton

SEED = 20261122
SHARES = {"fields": 9000, "bytes": 4000, "calls": 1000, "json": 3500, "endpoints": 1000, "http bytes": 1500}
"""Of the whole: 20,000."""

SERVICE = "/inference.GRPCInferenceService/"
DEADLINE = 30.0  # seconds; the slowest answer takes a fraction of one on an idle machine
AT_ONCE = 16
LONG = 4096  # bytes of a head; see `send_http`
BATCH = 500  # between two looks at whether all is well
REFUSALS = {
    "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS",
    "INTERNAL", "PERMISSION_DENIED",
}  # fmt: skip
GONE = re.compile(r"(?i)connect|socket closed|stream removed|not healthy|broken pipe|\breset\b")
"""Words of an error that say that somebody died. Not so of one that quotes a name too long for a header of HTTP/2."""


@dataclass(frozen=True)
class Held:
    """What a server's processes have together: MB of memory (PSS), MB and files in /dev/shm."""

    memory: float
    descriptors: int
    threads: int
    shared: float
    files: int


@dataclass
class Running:
    """A server of this test's own, and what it looked like when it was ready."""

    server: TritonServer
    family: set[Process]
    log: list[str]
    before: dict[str, bytes] = field(default_factory=dict)

    def held(self) -> Held:
        of_all = usage(each.pid for each in self.family)
        shared, files = shared_memory(f"equipoise_{os.getpid()}_")
        return Held(of_all.pss / MB, of_all.descriptors, of_all.threads, shared / MB, files)

    def check(self, suspects: Sequence[Any]) -> None:
        """The same processes, and valid requests are answered exactly as before."""
        gone = self.family - descendants(os.getpid())
        assert not gone, f"processes {gone} ended; among {[str(each) for each in suspects]}"
        answered = asyncio.run(_valid_answers(self.server.grpc_url))
        if not self.before:
            self.before = answered
        assert answered == self.before, "a valid request is answered differently"


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    """The reference pairs under policies that accept whatever nothing speaks against."""
    folder = accepting_copies(tmp_path_factory.mktemp("fuzz") / "models", malformed.SAMPLES)
    log: list[str] = []
    others = descendants(os.getpid())
    with TritonServer(folder, ports=Ports(0, 0, 0), on_log=log.append) as server:
        check_readiness(server.grpc_url, server.models)
        running = Running(server, descendants(os.getpid()) - others, log)
        running.check([])
        yield running
    text = "\n".join(log)
    assert "Traceback" not in text
    assert not [value for value in PLANTED.values() if value in text], "Triton's log names a patient"


async def _valid_answers(url: str) -> dict[str, bytes]:
    """What an unchanged request for each model gets; it has to be accepted, or a wrong `accept` were out of reach."""
    async with _channel(url) as channel:
        call = channel.unary_unary(f"{SERVICE}ModelInfer")
        found = {}
        for model in MODELS.values():
            message = valid(model).SerializeToString()
            found[model.name] = await call(message, timeout=DEADLINE)
            told = answers(found[model.name])
            assert not wrongly_accepted(questions(message), told["route"], told["record"])
            assert told["route"] == [b"accept"], told["record"]
        return found


def _channel(url: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(url, options=[*channel_options(), ("grpc.use_local_subchannel_pool", 1)])


@dataclass
class Campaign:
    """What became of many cases.

    Attributes:
        codes: how often each outcome was seen; `accept` is one of them.
        wrong: what must not be, in words.
        withheld: known fault → cases that would have met it.
        again: what had to be sent twice, since a kept connection was closed on it.
    """

    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    withheld: Counter[str] = field(default_factory=Counter)
    again: list[HttpCase] = field(default_factory=list)

    def refused(self, case: Any, code: str, words: str) -> None:
        self.codes[code] += 1
        if code not in REFUSALS:
            self.wrong.append(f"{case}: {code}, {words[:200]}")
        elif not words.strip():
            self.wrong.append(f"{case}: {code} without a word")
        elif "Traceback" in words or (GONE.search(words) and "metadata size exceeds" not in words):
            self.wrong.append(f"{case}: {code}, {words[:300]}")

    def answered(self, case: Any, allowed: Sequence[Any], routes: Sequence[bytes], records: Sequence[bytes]) -> None:
        self.codes["accept" if b"accept" in routes else "OK"] += 1
        why = wrongly_accepted(allowed, routes, records)
        if why:
            self.wrong.append(f"{case}: {why}")

    def sound(self, cases: Iterable[Any], fault: Callable[[Any], str]) -> Iterator[Any]:
        """Those that meet no known fault."""
        for case in cases:
            name = fault(case)
            if name:
                self.withheld[name] += 1
            else:
                yield case


async def send_grpc(url: str, cases: Sequence[Case], campaign: Campaign) -> None:
    """Inference requests, some at once over four connections."""
    channels = [_channel(url) for _ in range(4)]
    waiting = iter(cases)

    async def one(number: int) -> None:
        call = channels[number % 4].unary_unary(f"{SERVICE}ModelInfer")
        for case in waiting:
            try:
                told = answers(await call(case.message, timeout=DEADLINE))
                campaign.answered(case, questions(case.message), told.get("route", ()), told.get("record", ()))
            except grpc.aio.AioRpcError as error:
                campaign.refused(case, error.code().name, error.details() or "")

    await asyncio.gather(*(one(number) for number in range(AT_ONCE)))
    await asyncio.gather(*(channel.close() for channel in channels))


@dataclass(frozen=True)
class Call:
    """Any method of the service, with whatever bytes."""

    number: int
    method: str
    stream: bool
    message: bytes

    def __str__(self) -> str:
        return f"case {self.number} ({self.method})"


def by_call(seed: int, number: int) -> Call:
    """A message of the method's own type, filled along its descriptors, sometimes damaged."""
    random = Random(f"{seed}:{number}")
    method = random.choice([each for each in _METHODS if each.name != "ModelInfer"])
    message = getattr(service_pb2, method.input_type.name)()
    if method.input_type.name == "ModelInferRequest":
        message.CopyFrom(valid(MODELS["pneumonia"], number % 8))
        change_a_field(random, message, WORDS)
    else:
        fill(random, message, WORDS)
    content = message.SerializeToString()
    return Call(number, method.name, method.client_streaming, damaged(random, content) if number % 3 == 0 else content)


_METHODS = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods


async def send_calls(url: str, cases: Sequence[Call], campaign: Campaign) -> None:
    """Methods other than inference."""
    waiting = iter(cases)
    async with _channel(url) as channel:

        async def one() -> None:
            for case in waiting:
                try:
                    if case.stream:
                        await _stream(channel, case, campaign)
                    else:
                        await channel.unary_unary(SERVICE + case.method)(case.message, timeout=DEADLINE)
                        campaign.codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    campaign.refused(case, error.code().name, error.details() or "")

        await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def _stream(channel: grpc.aio.Channel, case: Call, campaign: Campaign) -> None:
    call = channel.stream_stream(SERVICE + case.method)(iter([case.message]), timeout=DEADLINE)
    answered = False
    async for content in call:
        answered = True
        told = service_pb2.ModelStreamInferResponse.FromString(content)
        if told.error_message:
            campaign.refused(case, "INVALID_ARGUMENT", told.error_message)
        else:
            strings = answers(told.infer_response.SerializeToString())
            campaign.answered(case, questions(case.message), strings.get("route", ()), strings.get("record", ()))
    if not answered:
        campaign.codes["ended"] += 1  # what cannot be parsed ends the stream, without a word: Triton's way


class HungUp(Exception):
    """The peer closed the connection before a byte of its answer, or reset it."""


async def send_http(url: str, cases: Sequence[HttpCase], campaign: Campaign) -> None:
    """Over kept connections where a request's end can be told, over one of its own where not.

    A server may close a kept connection at any time, and a client then asks once more over a fresh one (RFC 9112, 9.3.1
    and 9.6). This one did so with heads of more than `LONG` bytes on a busy machine: 13 of some 960 in the mix of
    `by_endpoint`, 3 of 13,500 in a row of nothing else; none over a fresh connection, none with a long body instead,
    none of 23,500 others.
    """
    host, port = url.split(":")
    waiting = iter(cases)

    async def one() -> None:
        kept = None
        for case in waiting:
            if kept:
                try:
                    kept = await _ask(kept, case, campaign)
                    continue
                except HungUp:
                    campaign.codes["asked again"] += 1
                    campaign.again.append(case)
            try:
                kept = await _ask(await asyncio.open_connection(host, int(port)), case, campaign)
            except (HungUp, OSError) as error:
                campaign.wrong.append(f"{case}: {type(error).__name__}, no answer")
                kept = None
        if kept:
            kept[1].close()

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _ask(streams: Streams, case: HttpCase, campaign: Campaign) -> Streams | None:
    """The connection, where it can be used again."""
    keep = False
    try:
        keep = await asyncio.wait_for(_exchange(*streams, case, campaign), DEADLINE)
    except asyncio.TimeoutError:  # another class until Python 3.11
        campaign.wrong.append(f"{case}: no answer in time")
    except (OSError, asyncio.IncompleteReadError) as error:
        # A peer that hangs up on what is hardly HTTP has answered; on a whole request it has not.
        if case.whole:
            campaign.wrong.append(f"{case}: {type(error).__name__}")
        else:
            campaign.codes["hung up"] += 1
    finally:
        if not keep:
            streams[1].close()
    return streams if keep else None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, case: HttpCase, campaign: Campaign
) -> bool:
    """Whether the connection can be used again."""
    writer.write(case.content)
    if not case.whole:
        await writer.drain()
        writer.write_eof()
        content = await reader.read(-1)
        allowed, routes, records = case.questions, *_loosely(content)
        campaign.answered(case, allowed, routes, records) if content else campaign.codes.update(["hung up"])
        return False
    try:
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        if getattr(error, "partial", b""):
            raise
        raise HungUp from error
    status = int(head[0].split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if "content-length" not in headers:  # a stream of events, or an answer that ends with the connection
        body = await reader.read(-1) if headers.get("connection") == "close" else await _chunks(reader)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    if status == 200:
        campaign.answered(case, case.questions, *malformed_http.told(status, headers, body))
    else:
        _refused_over_http(case, status, body, campaign)
    return headers.get("connection", "keep-alive").lower() != "close"


def _refused_over_http(case: HttpCase, status: int, body: bytes, campaign: Campaign) -> None:
    try:
        words = json.loads(body).get("error", "") if body.startswith(b"{") else f"{status} {body!r}"
    except ValueError:
        words = body.decode(errors="replace")
    codes = {
        400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 405: "UNIMPLEMENTED", 500: "INTERNAL",
        501: "UNIMPLEMENTED", 503: "UNAVAILABLE",
    }  # fmt: skip
    campaign.refused(case, codes.get(status, f"HTTP {status}"), words)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


def _loosely(content: bytes) -> tuple[list[bytes], list[bytes]]:
    """Routes and records wherever they stand in what came back."""
    routes = [b"accept"] * (content.count(b'"accept"') + content.count(b"\x06\0\0\0accept"))
    records = re.findall(rb'\{\\?"alpha.*?\\?"volume_ml\\?":[^}]*\}', content)
    return routes, [record.replace(b"\\", b"") for record in records]


KINDS: dict[str, tuple[Callable[[int, int], Any], Callable[[Any], str], Any]] = {
    "fields": (malformed.by_field, lambda case: fault_in(case.message), send_grpc),
    "bytes": (malformed.by_bytes, lambda case: fault_in(case.message), send_grpc),
    "calls": (by_call, lambda case: fault_in(case.message) if case.stream else "", send_calls),
    "json": (malformed_http.by_json, lambda case: fault_in_http(case.plain or case.content), send_http),
    "endpoints": (malformed_http.by_endpoint, lambda case: fault_in_http(case.plain or case.content), send_http),
    "http bytes": (malformed_http.by_bytes, lambda case: fault_in_http(case.content), send_http),
}
"""Kind → how a case is made, which known fault it would meet, how it is sent."""


def batches(kind: str, number: int, campaign: Campaign) -> Iterator[list[Any]]:
    """So many cases of a kind, in pieces."""
    make, fault, _ = KINDS[kind]
    cases = islice(campaign.sound((make(SEED, each) for each in count()), fault), number)
    while batch := list(islice(cases, BATCH)):
        yield batch


def attack(running: Running, kind: str, number: int) -> tuple[Campaign, list[Held]]:
    """Sends them, looking after each batch whether all is well, and what the server holds."""
    campaign, send, held = Campaign(), KINDS[kind][2], []
    url = running.server.http_url if send is send_http else running.server.grpc_url
    for batch in batches(kind, number, campaign):
        asyncio.run(send(url, batch, campaign))
        running.check(campaign.wrong[:20] or batch[:5])
        held.append(running.held())
    print(f"{kind}: {number} sent, {dict(campaign.codes)}, withheld {dict(campaign.withheld)}")
    print(f"{held[0]} → {held[-1]}")
    return campaign, held


SAMPLE = 0.03
GROWTH = 0.05
"""Of the memory after the first third of a kind. 10,000 valid requests were measured to add 2 %, 9,000
malformed ones over gRPC 4 % with the warm-up, 5,000 more nothing."""

LEAK = {"json": 0.04}
"""MB for each request besides. This Triton keeps some 22 kB of a malformed request over HTTP (77 MB of 3,500, not
isolated further), which is one more reason why nobody but this machine reaches its HTTP port."""


@pytest.mark.parametrize(
    "share", [pytest.param(SAMPLE, id="sample"), pytest.param(1.0, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", SHARES)
def test_nothing_malformed_is_accepted_or_does_harm(running, kind, share):
    """Every one is answered or refused in words, in time; none is accepted unless it is well-formed after all."""
    number = round(SHARES[kind] * share)
    campaign, held = attack(running, kind, number)
    assert not campaign.wrong, "\n".join(campaign.wrong[:20])
    short = [str(case) for case in campaign.again if len(case.content.partition(b"\r\n\r\n")[0]) <= LONG]
    assert len(short) <= 2, f"kept connections were closed on {short}"
    assert campaign.codes["asked again"] <= 2 + number / 200, campaign.codes
    assert campaign.codes.total() - campaign.codes["asked again"] >= number
    if kind in ("fields", "bytes", "json"):
        # Some changes do no harm (an unknown parameter, another pixel): an `accept` that must not be was within reach.
        assert campaign.codes["accept"] > number / 50, campaign.codes
        assert campaign.codes["INVALID_ARGUMENT"] + campaign.codes["INTERNAL"] > number / 5, campaign.codes
    if share == 1.0:
        first, last = held[len(held) // 3], held[-1]
        assert last.memory <= first.memory * (1.0 + GROWTH) + LEAK.get(kind, 0.0) * number, held
        assert (last.shared, last.files) == (first.shared, first.files), held
        assert last.descriptors <= first.descriptors + AT_ONCE, "connections that were closed are still open"
        assert last.threads <= first.threads + AT_ONCE, held


ADMINISTRATION = (
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "RepositoryIndex", "RepositoryModelLoad",
    "RepositoryModelUnload", "TraceSetting", "LogSettings",
)  # fmt: skip


@pytest.mark.parametrize("method", ADMINISTRATION)
def test_nobody_may_touch_memory_models_or_settings(running, method):
    """Over gRPC each is refused, whatever is asked."""

    async def ask() -> None:
        async with _channel(running.server.grpc_url) as channel:
            await channel.unary_unary(SERVICE + method)(b"", timeout=DEADLINE)

    with pytest.raises(grpc.aio.AioRpcError, match="restricted"):
        asyncio.run(ask())


def test_nobody_may_touch_memory_models_or_settings_over_http(running):
    """Likewise; and nothing is written where a request asked for it."""
    closed = [each for each in ENDPOINTS if re.search("sharedmemory|repository|trace|logging", each[1])]
    assert len(closed) > 12
    for method, path in closed:
        request = urllib.request.Request(f"http://{running.server.http_url}{path}", b"{}", method=method)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=DEADLINE)
        assert caught.value.code in (403, 404, 405), (path, caught.value.code)
    assert not any(map(Path.exists, map(Path, WRITTEN)))
