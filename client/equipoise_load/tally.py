"""Counts and histograms of one run, and the report that follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from .slo import PERCENTILES

_LONGEST = 3_600_000_000  # µs that a histogram can hold: an hour


@dataclass(frozen=True)
class Reply:
    """The outcome of one request. Times in seconds of the monotonic clock.

    Attributes:
        kind: index of the payload.
        due: when it should have been sent; `sent` is when it was.
        code: gRPC's status code, `OK` for an answer.
        tries: how often it was sent.
        samples: drawn for its images, where it was answered.
        routes: of its images, where it was answered.
    """

    kind: int
    due: float
    sent: float
    done: float
    code: str
    tries: int = 1
    samples: int = 0
    routes: tuple[str, ...] = ()


def histogram(digits: int = 3) -> HdrHistogram:
    """Of µs, 1 µs to an hour, to so many significant digits (Tene's HDR histogram)."""
    return HdrHistogram(1, _LONGEST, digits)


def record(into: HdrHistogram, seconds: float) -> None:
    into.record_value(min(_LONGEST, max(1, round(seconds * 1e6))))


@dataclass
class Second:
    """One second of the run, counted by when requests were due."""

    due: int = 0
    failed: int = 0
    latency: HdrHistogram = field(default_factory=lambda: histogram(2))  # many of them: 20 kB each, not 180


@dataclass
class Tally:
    """What happened so far after the warm-up; grows while the run lasts."""

    kinds: int
    start: float
    duration: float
    latency: HdrHistogram = field(default_factory=histogram)
    service: HdrHistogram = field(default_factory=histogram)
    lag: HdrHistogram = field(default_factory=histogram)
    codes: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    tries: int = 0
    samples: int = 0
    last: float = 0.0
    per_kind: list[HdrHistogram] = field(init=False)
    halves: list[tuple[HdrHistogram, HdrHistogram]] = field(init=False)
    seconds: dict[int, Second] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.per_kind = [histogram() for _ in range(self.kinds)]
        self.halves = [(histogram(), histogram()) for _ in range(self.kinds)]

    def add(self, reply: Reply) -> None:
        """Counts one reply. A failed request has no latency but is an error; a late one counts from when it was due."""
        number = int(reply.due - self.start)
        if (second := self.seconds.get(number)) is None:  # not `setdefault`: a histogram for each request takes time
            second = self.seconds[number] = Second()
        second.due += 1
        self.codes[reply.code] += 1
        self.tries += reply.tries
        self.last = max(self.last, reply.done)
        record(self.lag, reply.sent - reply.due)
        if reply.code != "OK":
            second.failed += 1
            return
        waited = reply.done - reply.due
        record(self.latency, waited)
        record(second.latency, waited)
        record(self.halves[reply.kind][reply.due - self.start >= self.duration / 2], waited)
        record(self.per_kind[reply.kind], waited)
        record(self.service, reply.done - reply.sent)
        self.routes.update(reply.routes)
        self.samples += reply.samples

    @property
    def answered(self) -> int:
        return self.codes["OK"]

    @property
    def images(self) -> int:
        """That were answered; a request has one or more."""
        return self.routes.total()

    @property
    def total(self) -> int:
        return sum(self.codes.values())


def report_of(tally: Tally, labels: Sequence[str], weights: Sequence[float], open_loop: bool) -> dict[str, Any]:
    """The figures of one run, ready for JSON. Latencies in ms.

    What was offered is what was due: a Poisson run has more or fewer requests than its rate says.
    """
    offered = tally.total / tally.duration if open_loop else None
    elapsed = max(tally.duration, tally.last - tally.start)
    achieved = tally.answered / elapsed if elapsed > 0.0 else 0.0
    sent = tally.total
    return {
        "requests": {
            "sent": sent,
            "answered": tally.answered,
            "failed": sent - tally.answered,
            "error_share": (sent - tally.answered) / sent if sent else 1.0,
            "by_code": dict(tally.codes),
            "tries": tally.tries,
        },
        "offered_per_second": offered,
        "achieved_per_second": achieved,
        "achieved_share": None if not offered else min(1.0, achieved / offered),
        "seconds": elapsed,
        "latency_ms": summary(tally.latency),
        "service_ms": summary(tally.service),
        "generator_lag_ms": summary(tally.lag),
        "percentiles": curve(tally.latency),
        "steady": steady(tally.halves),
        "samples": tally.samples,
        "images_per_second": tally.images / elapsed if elapsed > 0.0 else 0.0,
        "samples_per_image": tally.samples / tally.images if tally.images else None,
        "routes": dict(tally.routes),
        "mix": [
            {"request": label, "weight": weight, "answered": each.get_total_count(), "latency_ms": summary(each)}
            for label, weight, each in zip(labels, weights, tally.per_kind, strict=True)
        ],
        "series": [
            {
                "second": t,
                "due": s.due,
                "failed": s.failed,
                **{name: summary(s.latency).get(name) for name in ("p50", "p99")},
            }
            for t, s in sorted(tally.seconds.items())
        ],
    }


def summary(measured: HdrHistogram) -> dict[str, float]:
    """Mean, percentiles and maximum in ms; empty where nothing was recorded."""
    if not measured.get_total_count():
        return {}
    return {
        "mean": measured.get_mean_value() / 1e3,
        **{name: measured.get_value_at_percentile(value) / 1e3 for name, value in PERCENTILES.items()},
        "max": measured.get_max_value() / 1e3,
    }


def curve(measured: HdrHistogram) -> list[tuple[float, float]]:
    """(percentile, ms) for a plot, denser towards the end: each step halves what is left."""
    if not measured.get_total_count():
        return []
    points = [100.0 * (1.0 - 2.0 ** (-step / 4)) for step in range(4 * 17)]
    largest = 100.0 * (1.0 - 1.0 / measured.get_total_count())
    return [(p, measured.get_value_at_percentile(p) / 1e3) for p in points if p <= largest]


STEADY, ENOUGH = 1.25, 20
"""A run has settled where the medians of its halves differ by less than this factor; each needs so many answers."""


def steady(halves: Sequence[tuple[HdrHistogram, HdrHistogram]]) -> bool | None:
    """Whether the run had settled: an overloaded server's queue grows, a cold one's answers quicken.

    Per kind of request, since a mix has several medians. None where no kind has enough answers.
    """
    settled = []
    for pair in halves:
        if all(half.get_total_count() >= ENOUGH for half in pair):
            low, high = sorted(half.get_value_at_percentile(50.0) for half in pair)
            settled.append(high <= STEADY * low or high - low <= 1_000)
    return all(settled) if settled else None
