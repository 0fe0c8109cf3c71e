"""Which settings run a model fastest on this machine: one after the other, each candidate against the best so far.

The servers of one comparison run side by side and are measured in turn, round after round, so that a noisy machine
slows them alike; only the ratio within a round counts. A candidate has to win by `WORTH` and in most rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from equipoise_client.transport import Retry
from equipoise_load.arrivals import Arrivals
from equipoise_load.engine import Plan, run
from equipoise_load.mix import Payload

from ..errors import DeployError, NotReadyError
from ..ports import Ports
from ..serving.readiness import check_readiness
from ..serving.server import TritonServer
from ..serving.settings import Settings
from ..serving.staging import aggregator_instances

WORTH = 1.03
"""A candidate must be better by this factor at least; less is noise."""

MOST_ROUNDS = 0.75
"""Share of the rounds that it has to win."""

_PATIENCE = 120.0  # seconds for one request


@dataclass(frozen=True)
class Speed:
    """The speed of one server in one round.

    Attributes:
        alone: ms, the median latency of a single client.
        together: answers per second to all clients at once.
    """

    alone: float
    together: float

    def over(self, other: Speed) -> float:
        """How many times better: the geometric mean of both ratios."""
        return math.sqrt((other.alone / self.alone) * (self.together / other.together))


@dataclass(frozen=True)
class Trial:
    """One candidate against the best so far.

    Attributes:
        ratios: how many times better than the best so far, per round.
        why_not: it did not start, or failed to answer; then there are no ratios.
    """

    settings: Settings
    rounds: tuple[Speed, ...]
    ratios: tuple[float, ...]
    why_not: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios) if self.ratios else 0.0

    @property
    def better(self) -> bool:
        wins = sum(ratio > 1.0 for ratio in self.ratios)
        return self.ratio >= WORTH and wins >= MOST_ROUNDS * len(self.ratios)

    @property
    def median(self) -> Speed:
        return Speed(
            statistics.median(speed.alone for speed in self.rounds),
            statistics.median(speed.together for speed in self.rounds),
        )


@dataclass(frozen=True)
class Bench:
    """What all trials have in common.

    Attributes:
        payloads: server address → what is sent.
        clients: that ask at the same time.
        rounds, seconds: of each measurement.
    """

    repository: Path
    model: str
    payloads: Callable[[str], Sequence[Payload]]
    clients: int
    rounds: int
    seconds: float

    def compare(self, best: Settings, candidates: Sequence[Settings], done: Callable[[], None]) -> tuple[Trial, ...]:
        """The best first, then the candidates. `done` is called after each measurement of one server."""
        with ExitStack() as stack:
            servers: list[tuple[Settings, TritonServer | None, str]] = []
            for settings in (best, *candidates):
                try:
                    own = TritonServer(self.repository, ports=Ports(0, 0, 0), settings={self.model: settings})
                    check_readiness(stack.enter_context(own).grpc_url, (self.model,))
                    servers.append((settings, own, ""))
                except DeployError as error:
                    if settings is best:
                        raise
                    servers.append((settings, None, str(error).splitlines()[0]))
            speeds: list[list[Speed]] = [[] for _ in servers]
            for number in range(self.rounds + 1):  # the first one warms up
                # Each round starts with another server, so that none always runs after the same neighbour.
                order = [(number + i) % len(servers) for i in range(len(servers))]
                for i in order:
                    settings, running, _ = servers[i]
                    if running is not None:
                        try:
                            speed = self._speed(running.grpc_url)
                            speeds[i] += [speed] if number else []
                        except DeployError as error:
                            if i == 0:
                                raise
                            servers[i], speeds[i] = (settings, None, str(error)), []
                    done()
        reference = speeds[0]
        return tuple(
            Trial(
                settings,
                tuple(measured),
                tuple(one.over(other) for one, other in zip(measured, reference, strict=False)),
                why_not,
            )
            for (settings, _, why_not), measured in zip(servers, speeds, strict=True)
        )

    def _speed(self, url: str) -> Speed:
        payloads = self.payloads(url)
        alone, together = (self._closed(url, payloads, clients) for clients in (1, self.clients))
        return Speed(alone[0], together[1])

    def _closed(self, url: str, payloads: Sequence[Payload], clients: int) -> tuple[float, float]:
        """Median latency in ms, answers per second. Longer than asked for where not even one answer came in time."""
        seconds, tally = self.seconds, None
        while tally is None or not tally.total:
            plan = Plan(
                url, Arrivals.CLOSED, 1.0, clients, 0.2 * seconds, seconds, _PATIENCE, Retry(1), min(clients, 8)
            )
            tally = run(plan, payloads)
            seconds *= 2.0
        if tally.answered < tally.total:
            raise NotReadyError(f"{self.model} failed while it was measured: {dict(tally.codes)}")
        median = tally.latency.get_value_at_percentile(50.0) / 1e3
        return median, tally.answered / max(tally.duration, tally.last - tally.start)


KNOBS = ("cores", "aggregators", "delay", "chunk")
"""What is tried, in this order: what matters most first. `cores` is how samplers share them: threads and instances."""

Choice = Mapping[str, int]
"""Fields of `Settings` and their values, which belong together."""

Knob = tuple[str, tuple[Choice, ...]]


def knobs(published: Settings, cores: int, samples: int, varies: bool) -> tuple[Knob, ...]:
    """What to try of each of `KNOBS`; those are left out that have nothing else to try.

    Args:
        published: how the model runs where nothing is tuned; these values are not tried again.
        samples: T.
        varies: whether samples are drawn, so that there are chunks.
    """
    half = max(1, cores // 2)
    usual = published.aggregators or aggregator_instances(cores)
    shares = sorted({(cores, 1), (cores, 2), (half, 1), (half, 2), (1, cores)})
    chunks = sorted({-(-samples // part) for part in (2, 4)}) if varies and samples > 1 else []
    choices: dict[str, list[Choice]] = {
        "cores": [{"threads": threads, "samplers": samplers} for threads, samplers in shares],
        "aggregators": [{"aggregators": 2 * usual}],
        "delay": [{"delay": delay} for delay in (0, 500, 2000)],
        "chunk": [{"chunk": chunk} for chunk in chunks],
    }
    tried = ((name, tuple(c for c in choices[name] if replace(published, **c) != published)) for name in KNOBS)
    return tuple((name, each) for name, each in tried if each)


@dataclass(frozen=True)
class Step:
    """One knob: its trials, the best so far among them as the first, and what was kept."""

    knob: str
    trials: tuple[Trial, ...]
    kept: Settings


def tune(bench: Bench, choices: Sequence[Knob], done: Callable[[], None] = lambda: None) -> Iterator[Step]:
    """Step by step; the last one, `check`, is what was published against what was found, once more."""
    best = Settings()
    if not choices:
        raise DeployError("nothing to tune: each of these knobs has one value on this machine")
    for name, values in choices:
        candidates = [replace(best, **choice) for choice in values]
        trials = bench.compare(best, candidates, done)
        best = max((trial for trial in trials[1:] if trial.better), key=lambda t: t.ratio, default=trials[0]).settings
        yield Step(name, trials, best)
    if best == Settings():
        return
    trials = bench.compare(Settings(), [best], done)
    yield Step("check", trials, best if trials[1].better else Settings())


def queue_for(per_second: float, longest_wait: float, aggregators: int) -> Settings:
    """A queue that holds no more than is answered within `longest_wait` seconds, and when to come back to a full one.

    A request that is let in waits for those before it: (queue + aggregators) / throughput seconds at worst. Half of
    that later, half of the queue is free again.
    """
    places = max(1, int(per_second * longest_wait) - aggregators)
    return Settings(queue=places, retry_after=max(1, round(500.0 * (places + aggregators) / per_second)))


def figures(step: Step) -> Mapping[str, object]:
    """Ready for JSON."""
    return {
        "knob": step.knob,
        "kept": str(step.kept),
        "trials": [
            {
                "settings": str(trial.settings),
                "times_better": round(trial.ratio, 4),
                "wins": sum(ratio > 1.0 for ratio in trial.ratios),
                "rounds": len(trial.ratios),
                **(
                    {"alone_ms": trial.median.alone, "together_per_second": trial.median.together}
                    if trial.rounds
                    else {}
                ),
                **({"why_not": trial.why_not} if trial.why_not else {}),
            }
            for trial in step.trials
        ],
    }
