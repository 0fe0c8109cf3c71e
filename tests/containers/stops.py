"""How what compose.yaml starts ends and comes back: stops under load, an upgrade replica by replica, kills."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from equipoise_client import Retry, UncertaintyClient
from equipoise_client.errors import EquipoiseError

from ..support.steps import Note, Wrong
from .compose import SERVER, predict
from .engine import inspect, podman, run, wait
from .images import upgraded
from .site import PATIENCE, PROXY, Site, site


@dataclass
class Load:
    """Requests one after the other from several callers, through the reverse proxy.

    At most 80 a second: of more than 200 in one client's name the proxy refuses some (429), which is not what is tried.

    Attributes:
        outcomes: "answered", or the kind of error with its words.
    """

    up: Site
    callers: int = 4
    attempts: int = 1
    outcomes: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        pixels = np.full((1, 28, 28), 90.0, np.float32)
        with UncertaintyClient(
            f"localhost:{PROXY}", tls=self.up.tls(), timeout=60.0, retry=Retry(self.attempts)
        ) as client:
            while not self._stop.is_set():
                try:
                    client.predict("pneumonia", pixels, outputs=())
                    self.outcomes["answered"] += 1
                except EquipoiseError as error:
                    self.outcomes[f"{type(error).__name__}: {str(error)[:160]}"] += 1
                self._stop.wait(0.05)

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def load(up: Site, attempts: int) -> Iterator[Load]:
    """Under way while the block runs; all outcomes are there afterwards."""
    running = Load(up, attempts=attempts)
    with ThreadPoolExecutor(running.callers) as pool:
        futures: list[Future[None]] = [pool.submit(running.run) for _ in range(running.callers)]
        try:
            wait(lambda: running.outcomes["answered"] > 20, "requests are answered")
            yield running
        finally:
            running.stop()
        for future in futures:
            future.result()


@dataclass
class Burst:
    """Requests that are all sent at once, each once, and wait or run when something is done to the server.

    As many as a busy machine of two cores answers within the 30 s that a stop gives them.
    """

    up: Site
    count: int = 60

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.count)
        client = UncertaintyClient(f"localhost:{PROXY}", tls=self.up.tls(), timeout=90.0, retry=Retry(1))
        client.contract("pneumonia")
        pixels = np.full((1, 28, 28), 90.0, np.float32)
        self._futures = [
            self._pool.submit(client.predict, "pneumonia", pixels, samples=300, seed=seed, outputs=())
            for seed in range(self.count)
        ]

    @property
    def done(self) -> int:
        return sum(future.done() for future in self._futures)

    def accepted(self) -> bool:
        return waiting(self.up) + self.done >= self.count

    def lost(self) -> list[str]:
        """What became of those that have no answer, when all have come to an end."""
        found = [str(future.exception()) for future in self._futures if future.exception()]
        self._pool.shutdown()
        return found


def waiting(up: Site) -> float:
    """Requests that the server has accepted and not answered."""
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics', timeout=5).read().decode())"
    page = run(["podman", "exec", up.name("triton-cpu"), "python3", "-c", script]).stdout
    return sum(
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith(("equipoise_in_flight{", "nv_inference_pending_request_count{"))
        and 'model="pneumonia"' in line
    )


def stops(target: object, note: Note) -> str:
    """A bare stop of the server, of everything, kills, and a rolling upgrade: nothing accepted is lost."""
    with site(SERVER) as up:
        for what in (("stop", "triton-cpu"), ("stop",)):
            wait(partial(run_predicts, up), "the proxy has found the server", PATIENCE)
            sent = Burst(up)
            wait(sent.accepted, "all were accepted", PATIENCE)
            left, begin = sent.count - sent.done, time.monotonic()
            up.compose(*what, timeout=120)
            seconds, lost = round(time.monotonic() - begin, 1), sent.lost()
            code = inspect(up.name("triton-cpu"))["State"]["ExitCode"]
            seen = {"unanswered then": left, "lost": len(lost), "seconds": seconds, "exit": code}
            note(" ".join(what), seen)
            if lost or not left or code:
                raise Wrong(f"`compose {' '.join(what)}`: {seen}; {lost[:2]}")
            up.compose("start", *(what[1:] or SERVER))
            up.ready(SERVER)
        for service in SERVER:
            killed(up, service)
        rolling(up, note)
    return "a bare stop answers all that was accepted; killed services come back; a rolling upgrade fails no request"


def killed(up: Site, service: str) -> None:
    """SIGKILL of its first process: the engine starts it again, nothing hangs, and clients are answered."""
    before = inspect(up.name(service))["State"]["Pid"]
    os.kill(before, signal.SIGKILL)
    wait(lambda: inspect(up.name(service))["State"]["Pid"] not in (0, before), f"{service} was started again", PATIENCE)
    up.ready([service])
    wait(partial(run_predicts, up), f"answers after {service} was killed", PATIENCE)


def run_predicts(up: Site) -> bool:
    try:
        predict(up)
    except Wrong:
        return False
    return True


def rolling(up: Site, note: Note) -> None:
    """Two replicas, replaced one after the other while callers ask. The proxy's own view says when it may go on."""
    scaled = ("up", "--detach", "--no-build", "--no-recreate", "--scale", "triton-cpu=2", *SERVER)
    up.compose(*scaled)
    replicas = [up.name("triton-cpu", number) for number in (1, 2)]
    for number in (1, 2):
        wait(partial(up.healthy, "triton-cpu", number), f"replica {number} is healthy", PATIENCE)
    wait(lambda: in_service(up) == 2, "the proxy uses both", PATIENCE)
    before = {inspect(replica)["Image"] for replica in replicas}
    with upgraded("equipoise/server"), load(up, attempts=5) as running:
        for replica in replicas:
            podman("stop", "--time", "90", replica)
            podman("rm", replica)
            up.compose(*scaled)
            wait(lambda: in_service(up) == 2, f"{replica} is in service again", PATIENCE)
        after = {inspect(replica)["Image"] for replica in replicas}
    note("rolling upgrade", dict(running.outcomes))
    if len(before) != 1 or len(after) != 1 or before == after:
        raise Wrong(f"the replicas' images are {before} before and {after} after the upgrade")
    if set(running.outcomes) != {"answered"}:
        raise Wrong(f"requests failed in a rolling upgrade: {dict(running.outcomes)}")


def in_service(up: Site) -> int:
    """Replicas that the reverse proxy would send a request to, from its own metrics; its network has none of ours."""
    script = "import urllib.request as u; print(u.urlopen('http://haproxy:8404/metrics', timeout=5).read().decode())"
    for number in (1, 2):
        if page := run(["podman", "exec", up.name("triton-cpu", number), "python3", "-c", script]).stdout:
            lines = (line for line in page.splitlines() if line.startswith("haproxy_server_status{"))
            return sum('state="UP"' in line and line.endswith(" 1") for line in lines)
    return 0
