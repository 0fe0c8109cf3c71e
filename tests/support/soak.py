"""Half of what a server can do, for as long as wanted: does it stay as it was?

`equipoise serve` runs as a user starts it; the load is open-loop over the three reference models. Looked at at even
intervals, by role (serve, guardian, tritonserver, the stubs of each model): memory, descriptors, threads; /dev/shm.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equipoise_client import UncertaintyClient
from equipoise_client.transport import Retry
from equipoise_load.arrivals import Arrivals
from equipoise_load.engine import Plan, run
from equipoise_load.mix import Payload, Wish, build_mix
from equipoise_load.tally import Tally, histogram

from .processes import Serving, serving
from .resources import MB, Usage, name_of, shared_memory, usage_of

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MIX = {"pneumonia": 18.0, "nuclei": 1.0, "hippocampus": 1.0}
"""Weights: a volume costs some fifty radiographs, so that each takes a fair part of the time."""

AT_FULL = 20.0  # seconds of a closed loop that measure the capacity
ALONE = 5.0  # seconds of a closed loop on each model before
CALLERS = 4
SHARE = 0.5  # of the capacity
SETTLING = 0.2  # of the looks come before things are held against each other

MEMORY_GROWTH = 0.03
"""10,000 requests were measured to add 2 % once stubs have seen every model."""
P99_DRIFT = 0.10
FEW = 8
"""Descriptors and threads that may come and go: a scrape, a connection that is being closed, gRPC's pollers."""


@dataclass(frozen=True)
class Look:
    """What was there at one moment.

    Attributes:
        second: since the load began.
        roles: name → all processes of that name together.
        shared: bytes in /dev/shm; `files` is how many.
        processes: ids.
    """

    second: float
    roles: Mapping[str, Usage]
    shared: int
    files: int
    processes: frozenset[int]

    @property
    def total(self) -> Usage:
        return sum(self.roles.values(), Usage(0, 0, 0, 0))


@dataclass(frozen=True)
class Soak:
    """A run: how much was offered, looks at even intervals, and what became of the requests.

    Attributes:
        latency: per interval (p50, p99) in ms, by when requests were due; None where none was answered.
        lost: requests that were due and not answered.
    """

    minutes: float
    capacity: float
    rate: float
    looks: tuple[Look, ...]
    latency: tuple[tuple[float, float] | None, ...]
    answered: int
    lost: int
    codes: Mapping[str, int]

    @property
    def steady(self) -> tuple[Look, ...]:
        """The looks after things have settled."""
        return self.looks[round(SETTLING * len(self.looks)) :]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        looks = [{**asdict(look), "processes": sorted(look.processes)} for look in self.looks]
        return {**asdict(self), "looks": looks, "verdicts": [asdict(each) for each in verdicts(self)]}


@dataclass(frozen=True)
class Verdict:
    """One promise: what was measured, what is allowed."""

    what: str
    measured: float
    bound: float
    timing: bool = False

    @property
    def kept(self) -> bool:
        return self.measured <= self.bound


Watch = Callable[[float, str], None]
"""Share of the whole that is done, and what is going on in words."""


def soak(
    minutes: float,
    every: float,
    temporary: Path,
    watch: Watch = lambda share, words: None,
    share: float = SHARE,
) -> Soak:
    """Serves and loads for so many minutes, looking every so many seconds.

    Args:
        share: of the capacity that is measured at the start.
    """
    with serving(REPOSITORY, temporary, os.environ) as server:
        url = server.urls["grpc"]
        with UncertaintyClient(url, timeout=60.0) as client:
            payloads = build_mix(client, Wish(MIX, (), (), 0.1, (), 60.0))
        watch(0.0, "warming up")
        _warm(url, payloads)
        watch(0.0, "measuring the capacity")
        capacity = _capacity(url, payloads)
        rate = share * capacity
        plan = Plan(url, Arrivals.POISSON, rate, 1, 0.0, 60.0 * minutes, 60.0, Retry(1), 4)
        with _Looking(server, every) as looking:
            tally = run(plan, payloads, lambda elapsed, tally, waiting: watch(*_words(plan, elapsed, tally, looking)))
        looks = looking.looks
    return Soak(
        minutes, capacity, rate, tuple(looks), tuple(_latency(tally, every, 60.0 * minutes)), tally.answered,
        tally.total - tally.answered, dict(tally.codes),
    )  # fmt: skip


def verdicts(soak: Soak) -> tuple[Verdict, ...]:
    """What is promised: the last third of the looks, or of the minutes, against the first, by their medians."""
    looks = soak.steady
    processes = {look.processes for look in soak.looks}
    found = [
        Verdict("requests without an answer", soak.lost, 0),
        Verdict("sets of processes", len(processes), 1),
        Verdict("memory (PSS), growth", _growth([look.total.pss for look in looks]), MEMORY_GROWTH),
        Verdict("/dev/shm, growth", _growth([look.shared for look in looks]), 0.0),
        Verdict("/dev/shm, more files", _more([look.files for look in looks]), 0),
        Verdict("descriptors, more", _more([look.total.descriptors for look in looks]), FEW),
        Verdict("threads, more", _more([look.total.threads for look in looks]), FEW),
    ]
    p99 = [each[1] for each in soak.latency[round(SETTLING * len(soak.latency)) :] if each]
    return (*found, Verdict("p99, drift", abs(_growth(p99)), P99_DRIFT, timing=True))


def _thirds(values: Sequence[float]) -> tuple[float, float]:
    third = max(1, len(values) // 3)
    return statistics.median(values[:third]), statistics.median(values[-third:])


def _growth(values: Sequence[float]) -> float:
    first, last = _thirds(values)
    return last / first - 1.0 if first else 0.0


def _more(values: Sequence[float]) -> float:
    first, last = _thirds(values)
    return last - first


def _warm(url: str, payloads: Sequence[Payload]) -> None:
    """Each model alone, by several at once: only then does every instance of its sampler work, and take its arena.

    In the mix two volumes rarely meet: a second sampler's 80 MB would come in the middle of what is looked at.
    """
    for payload in payloads:
        run(_closed(url, ALONE), [payload])


def _capacity(url: str, payloads: Sequence[Payload]) -> float:
    """Answers per second to callers who ask again as soon as they are answered."""
    tally = run(_closed(url, AT_FULL), payloads)
    return tally.answered / max(tally.duration, tally.last - tally.start)


def _closed(url: str, seconds: float) -> Plan:
    return Plan(url, Arrivals.CLOSED, 1.0, CALLERS, seconds / 4, seconds, 60.0, Retry(1), 4)


def _words(plan: Plan, elapsed: float, tally: Tally, looking: _Looking) -> tuple[float, str]:
    p99 = tally.latency.get_value_at_percentile(99.0) / 1e3
    memory = f", {looking.looks[-1].total.pss / MB:.0f} MB" if looking.looks else ""
    return elapsed / plan.duration, f"{tally.answered} answered, p99 {p99:.0f} ms{memory}"


def _latency(tally: Tally, every: float, seconds: float) -> Iterable[tuple[float, float] | None]:
    """(p50, p99) in ms of each interval."""
    merged = defaultdict(lambda: histogram(2))
    for second, each in tally.seconds.items():
        merged[int(second // every)].add(each.latency)
    for index in range(int(seconds // every)):
        one = merged[index]
        known = one.get_total_count() > 0
        yield tuple(one.get_value_at_percentile(p) / 1e3 for p in (50.0, 99.0)) if known else None  # type: ignore[misc]


class _Looking:
    """Looks at a server's processes at even intervals while it is entered."""

    def __init__(self, server: Serving, every: float) -> None:
        self.looks: list[Look] = []
        self._server, self._every = server, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Looking:
        self._begin = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.looks.append(self._look())
            due = self._begin + self._every * len(self.looks)
            if self._over.wait(max(0.0, due - time.monotonic())):
                return

    def _look(self) -> Look:
        roles: dict[str, Usage] = defaultdict(lambda: Usage(0, 0, 0, 0))
        seen = set()
        for process in self._server.family:
            try:
                roles[name_of(process.pid)] += usage_of(process.pid)
                seen.add(process.pid)
            except OSError:
                continue  # it has ended: another set of processes, which `verdicts` tells
        prefix = f"equipoise_{self._server.process.pid}_"
        shared, files = shared_memory(prefix)
        return Look(time.monotonic() - self._begin, dict(roles), shared, files, frozenset(seen))
