"""Two `equipoise serve` behind a real HAProxy with mutual TLS, our client's load in an open loop, and things that go
wrong meanwhile. Every request is accounted for: answered or lost, right or wrong, how often it was sent, how late.

test_faults.py asserts what must hold; benchmarks/bench_faults.py prints the times.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from equipoise_client import AsyncUncertaintyClient, Retry, UncertaintyClient
from equipoise_client.prediction import Prediction
from equipoise_load.arrivals import Arrivals, due_times
from equipoise_load.tally import histogram, record, summary

from .asking import poll
from .orthanc import Network, network
from .processes import Serving, serving
from .reverse_proxy import ReverseProxy, certificates, reverse_proxy

MODEL = "tinycls"
IMAGES = tuple(np.random.default_rng(number).normal(size=(1, 4, 4)).astype(np.float32) for number in range(6))
SEEDS = (None, 7)
"""With a seed of the caller's own an answer is for review, without one the policy of these tests accepts it."""

PATIENCE = 120.0
DETECTED = 10.0
"""Seconds within which a fault has to be noticed."""


@dataclass(frozen=True)
class Outcome:
    """What became of one request. Times in seconds since the load began.

    Attributes:
        question: index of image and seed.
        version: the policy that decided, which tells the versions of the model apart.
        sent: how often.
    """

    question: int
    due: float
    done: float
    answer: tuple[str, str, float] | None = None
    version: str | None = None
    sent: int = 1
    error: str = ""


@dataclass(frozen=True)
class Counted(Retry):
    """Our client's own way to try again, and how often it did."""

    again: list[float] = field(default_factory=list)

    def pauses(self, source: Random) -> Iterator[float]:
        for pause in super().pauses(source):
            self.again.append(pause)
            yield pause


@dataclass
class Load:
    """Requests of our asyncio client at Poisson times, over several connections, until it is left."""

    url: str
    tls: Any
    rate: float
    clients: int = 4
    outcomes: list[Outcome] = field(default_factory=list)
    resent: int = 0
    begin: float = 0.0

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._begun = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._begun.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a request hangs"
        if self._failed is not None:
            raise self._failed

    def now(self) -> float:
        return time.monotonic() - self.begin

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:  # noqa: BLE001 (raised again where the load ends)
            self._failed = error
        finally:
            self._begun.set()

    async def _send(self) -> None:
        retries = [Counted() for _ in range(self.clients)]
        clients = [AsyncUncertaintyClient(self.url, tls=self.tls, retry=each, timeout=60.0) for each in retries]
        await asyncio.gather(*(client.contract(MODEL) for client in clients))
        tasks = set[asyncio.Task[None]]()
        self.begin = time.monotonic()
        self._begun.set()
        for number, due in enumerate(due_times(Arrivals.POISSON, self.rate, 3600.0, 0)):
            await asyncio.sleep(max(0.0, due - self.now()))
            if self._over.is_set():
                break
            tasks.add(asyncio.create_task(self._ask(clients[number % self.clients], number, due)))
        await asyncio.gather(*tasks)
        self.resent = sum(len(each.again) for each in retries)
        await asyncio.gather(*(client.close() for client in clients))

    async def _ask(self, client: AsyncUncertaintyClient, number: int, due: float) -> None:
        question = number % (len(IMAGES) * len(SEEDS))
        image, seed = IMAGES[question // len(SEEDS)], SEEDS[question % len(SEEDS)]
        try:
            answer = await client.predict(MODEL, image, seed=seed, outputs=("mean",))
        except Exception as error:  # noqa: BLE001 (whatever it is: the request is lost)
            self.outcomes.append(Outcome(question, due, self.now(), error=f"{type(error).__name__}: {error}"))
        else:
            self.outcomes.append(Outcome(question, due, self.now(), compared(answer), version_of(answer)))


def compared(answer: Prediction) -> tuple[str, str, float]:
    """Route, mean and case score of an answer, as they are compared: bit by bit."""
    return answer.route.value, np.asarray(answer.mean).tobytes().hex(), float(answer.case_score)


def version_of(answer: Prediction) -> str:
    return f"{answer.record['model_digest']} {answer.record['policy_digest']}"


def known(url: str) -> dict[tuple[int, str], tuple[str, str, float]]:
    """(question, version) → the answer of a server that was asked alone and directly."""
    found = {}
    with UncertaintyClient(url, timeout=PATIENCE) as client:
        for number in range(len(IMAGES) * len(SEEDS)):
            image, seed = IMAGES[number // len(SEEDS)], SEEDS[number % len(SEEDS)]
            answer = client.predict(MODEL, image, seed=seed, outputs=("mean",))
            found[number, version_of(answer)] = compared(answer)
    return found


@dataclass
class Fleet:
    """Two replicas and their reverse proxy. With a `cable`, `replicas[1]` is in a network namespace of its own."""

    proxy: ReverseProxy
    replicas: Sequence[Serving]
    link: Path
    versions: Sequence[Path]
    cable: Network | None = None

    def switch(self, version: int) -> None:
        """What `promote` does: one atomic step."""
        fresh = self.link.with_name("next")
        fresh.symlink_to(self.versions[version])
        fresh.replace(self.link)

    def restarts(self, replica: int) -> int:
        return int(self.replicas[replica].health()[1].get("restarts", -1))

    def whole(self) -> bool:
        return self.proxy.up() == len(self.replicas)

    def cut(self, whole: bool) -> None:
        """Pulls the cable, or plugs it in again."""
        assert self.cable is not None
        number = self.cable.name.rpartition("-")[2]
        state = "up" if whole else "down"
        words = ["ip", "-n", self.cable.name, "link", "set", f"eqf{number}", state]
        subprocess.run(words, check=True, capture_output=True)


@contextmanager
def fleet(versions: Sequence[Path], folder: Path, apart: bool = False) -> Iterator[Fleet]:
    """Both healthy at the reverse proxy.

    Args:
        versions: repositories; the first is served.
        apart: the second replica in a network namespace of its own.
    """
    link = folder / "current"
    link.symlink_to(versions[0])
    with ExitStack() as stack:
        cable = stack.enter_context(network()) if apart else None
        inside = [(), tuple(cable.command()) if cable else ()]
        options = [("--drain-seconds=2",), ("--drain-seconds=2", *([f"--address={cable.far}"] if cable else []))]
        replicas = [
            stack.enter_context(serving(link, folder / f"run{i}", os.environ, options[i], inside[i])) for i in range(2)
        ]
        addresses = [(each.urls["grpc"], int(each.urls["health"].split(":")[2].partition("/")[0])) for each in replicas]
        running = stack.enter_context(reverse_proxy(certificates(folder / "certificates"), addresses))
        made = Fleet(running, replicas, link, versions, cable)
        poll(made.whole, "both replicas are healthy at the reverse proxy")
        yield made


Fault = Callable[[Fleet, Load], Mapping[str, float]]
"""Does it, waits until all is as before, and returns times of its own in seconds."""


def _health(server: Serving) -> tuple[int, int]:
    """HTTP status and restarts so far; (0, -1) where it says nothing within two seconds: times are measured by this."""
    url = urllib.parse.urlsplit(server.urls["health"])
    connection = http.client.HTTPConnection(url.netloc, timeout=2)
    try:
        connection.request("GET", url.path)
        answer = connection.getresponse()
        return answer.status, int(json.load(answer)["restarts"])
    except (OSError, http.client.HTTPException):
        return 0, -1
    finally:
        connection.close()


def _signalled(replica: int, model: str, number: signal.Signals) -> Fault:
    """Waits until the replica was restarted and takes requests again."""

    def fault(made: Fleet, load: Load) -> Mapping[str, float]:
        server = made.replicas[replica]
        victim = server.pid_of(model)
        _, before = poll(lambda: (said := _health(server))[0] == 200 and said, "it is healthy")
        begin = time.monotonic()
        os.kill(victim, number)

        def seen() -> bool:
            status, restarts = _health(server)
            return status == 503 or restarts > before

        poll(seen, "the fault is noticed", DETECTED)
        noticed = time.monotonic() - begin

        def back() -> bool:
            status, restarts = _health(server)
            return status == 200 and restarts > before and made.whole()

        poll(back, "the replica is back", PATIENCE)
        return {"noticed": noticed, "back": time.monotonic() - begin}

    return fault


def _reloaded(made: Fleet, replica: int) -> float:
    begin = time.monotonic()
    before = made.replicas[replica].health()[1]["generation"]
    made.replicas[replica].process.send_signal(signal.SIGHUP)
    done = lambda: made.replicas[replica].health()[1].get("generation") == before + 1  # noqa: E731
    poll(lambda: done() and made.replicas[replica].health()[0] == 200, "it has reloaded", PATIENCE)
    poll(made.whole, "the reverse proxy sees it", PATIENCE)
    return time.monotonic() - begin


def _rolling(made: Fleet, load: Load) -> Mapping[str, float]:
    return {f"replica {i + 1}": _reloaded(made, i) for i in range(len(made.replicas))}


def _swapped(made: Fleet, load: Load) -> Mapping[str, float]:
    made.switch(1)
    return _rolling(made, load)


def _cut_off(made: Fleet, load: Load) -> Mapping[str, float]:
    begin = time.monotonic()
    made.cut(whole=False)
    poll(lambda: made.proxy.up() == 1, "the reverse proxy notices", DETECTED)
    noticed = time.monotonic() - begin
    until = load.now() + 8.0  # longer than a connection that says nothing is held
    poll(lambda: load.now() > until, "some time passes", PATIENCE)
    made.cut(whole=True)
    poll(made.whole, "it is back", PATIENCE)
    return {"noticed": noticed, "back": time.monotonic() - begin}


FAULTS: Mapping[str, Fault] = {
    "a killed aggregator process": _signalled(0, MODEL, signal.SIGKILL),
    "a killed sampler process": _signalled(0, f"{MODEL}_sampler", signal.SIGKILL),
    "a killed Triton": _signalled(0, "", signal.SIGKILL),
    "a stopped Triton": _signalled(1, "", signal.SIGSTOP),
    "a stopped sampler process": _signalled(1, f"{MODEL}_sampler", signal.SIGSTOP),
    "both restarted in turn": _rolling,
    "another version": _swapped,
    "a cut cable": _cut_off,
}
APART = {"a cut cable"}
"""Those that need the second replica in a network namespace of its own: root."""


def suffered(made: Fleet, name: str, rate: float, calm: float = 3.0) -> dict[str, Any]:
    """One fault under load: `calm` seconds before it and after all is as before; what became of every request."""
    answers = known(made.replicas[0].urls["grpc"])
    assert known(made.replicas[1].urls["grpc"]) == answers
    with Load(made.proxy.url, made.proxy.tls(), rate) as load:
        poll(lambda: load.now() > calm, "calm before")
        begin = load.now()
        times = FAULTS[name](made, load)
        end = load.now()
        poll(lambda: load.now() > end + calm, "calm after")
    answers |= known(made.replicas[0].urls["grpc"])
    answered = [each for each in load.outcomes if each.answer is not None]
    wrong = [each for each in answered if answers.get((each.question, each.version or "")) != each.answer]
    meant = {question: {answers[key][0] for key in answers if key[0] == question} for question, _ in answers}
    accepted = [each for each in answered if each.answer[0] == "accept" and "accept" not in meant[each.question]]
    return {
        "fault": name,
        "rate": rate,
        "requests": len(load.outcomes),
        "lost": [each.error for each in load.outcomes if each.answer is None],
        "wrong": len(wrong),
        "accepted wrongly": len(accepted),
        "versions": len({each.version for each in answered}),
        "routes": sorted({each.answer[0] for each in answered if each.answer}),
        "sent again by the client": load.resent,
        "sent again by the reverse proxy": sum(
            int(line["retries"].lstrip("+")) for line in made.proxy.logged() if "retries" in line
        ),
        "seconds": {key: round(value, 2) for key, value in times.items()},
        "ms before": _latency(each for each in answered if each.due < begin),
        "ms during": _latency(each for each in answered if begin <= each.due <= end),
        "ms after": _latency(each for each in answered if each.due > end),
    }


def _latency(outcomes: Iterator[Outcome]) -> dict[str, float]:
    measured = histogram()
    for each in outcomes:
        record(measured, each.done - each.due)
    figures = summary(measured)
    return {name: round(figures[name], 1) for name in ("p50", "p99", "max") if name in figures}
