"""Which tests run, in which order: tiers, marks that follow fixtures, shards of what does not fit into one run.

Two tiers. The first is what `make test` runs: everything without a mark of `LATER`. The second is the rest of
`make test-all`. `tests/durations.json` holds for every test file how many seconds either tier takes; `make durations`
measures them anew. Files start longest first. `--shard K/N` leaves of the second tier what belongs to the other
shards; `--budget MINUTES` chooses N so that a shard takes that long, and K by the commit. A file without a measured
duration always runs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DURATIONS = ROOT / "tests" / "durations.json"
LATER = frozenset({"slow", "root", "zoo", "exhaustive"})
"""Marks of the second tier."""

FIXTURES = {"server": {"triton"}, "pacs": {"pacs", "root"}, "small_disk": {"root"}, "chromium": {"browser"}}
"""Marks that a test has by using a fixture."""

TORCH = ("tests/export/", "tests/lab/")
"""Folders whose tests are marked torch."""

UNMEASURED = 60.0
"""Seconds that are assumed for ordering."""

Durations = Mapping[str, tuple[float, float]]
"""Test file, from the root → seconds of its tests in the first and in the second tier."""


def is_later(marks: Collection[str]) -> bool:
    """Whether a test with these marks belongs to the second tier."""
    return not LATER.isdisjoint(marks)


def deal(seconds: Mapping[str, float], count: int) -> list[set[str]]:
    """`count` shards of about equal length: the longest file first, each to the shard that is shortest so far."""
    shards: list[set[str]] = [set() for _ in range(count)]
    totals = [0.0] * count
    for file in sorted(seconds, key=lambda file: (-seconds[file], file)):
        shortest = totals.index(min(totals))
        shards[shortest].add(file)
        totals[shortest] += seconds[file]
    return shards


def left_out(durations: Durations, shard: str | None, budget: float | None, workers: int, commit: str) -> set[str]:
    """Files whose second tier is left to other runs: of all but shard K of N ("K/N", K from 1)."""
    seconds = {file: both[1] for file, both in durations.items() if both[1] > 0}
    if shard is not None:
        number, count = map(int, shard.split("/"))
        if not 1 <= number <= count:
            raise pytest.UsageError(f"--shard {shard}: K/N with K from 1 to N is expected, for example 1/3")
        index = number - 1
    elif budget is not None:
        count = max(1, math.ceil(sum(seconds.values()) / (60.0 * budget * workers)))
        index = int(commit, 16) % count
    else:
        return set()
    return set(seconds) - deal(seconds, count)[index]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--shard", default=os.environ.get("EQUIPOISE_SHARD"), help="K/N: one of N parts of the slow tests")
    group.addoption("--budget", type=float, help="minutes for the slow tests: as many shards as needed, one by commit")
    group.addoption("--measure", type=Path, help="write how long each file took into this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tiers(config), "equipoise-tiers")


class Tiers:
    """The hooks, for one run; under xdist in the controller and in each worker, which all come to the same choice."""

    def __init__(self, config: pytest.Config) -> None:
        stored = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}
        self.durations: dict[str, tuple[float, float]] = {
            file: (first, second) for file, (first, second) in stored.items() if (ROOT / file).exists()
        }
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        given = config.option
        # xdist takes the number away from its workers, and says it in their environment.
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT") or getattr(given, "numprocesses", None) or 1)
        self.left = left_out(self.durations, given.shard, given.budget, workers, commit or "0")
        self.measure: Path | None = given.measure
        self.measured: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
        for item in items:
            for fixture in FIXTURES.keys() & set(getattr(item, "fixturenames", ())):
                for mark in FIXTURES[fixture]:
                    item.add_marker(mark)
            if item.nodeid.startswith(("tests/export/", "tests/lab/")) or hasattr(
                getattr(item, "module", None), "torch"
            ):
                item.add_marker("torch")
        yield  # -m selects
        left = [item for item in items if self._file(item) in self.left and is_later(set(item.keywords))]
        config.hook.pytest_deselected(items=left)
        length: dict[str, float] = defaultdict(float)
        for file, later in {(self._file(item), is_later(set(item.keywords))) for item in items}:
            length[file] += self.durations.get(file, (0.0, 0.0))[later] or UNMEASURED
        chosen = set(map(id, left))
        items[:] = sorted(
            (item for item in items if id(item) not in chosen), key=lambda item: -length[self._file(item)]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.measured[report.nodeid.split("::")[0]][is_later(report.keywords)] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.measure is None or hasattr(session.config, "workerinput"):
            return
        merged = dict(self.durations)
        for file, (first, second) in self.measured.items():
            old = merged.get(file, (0.0, 0.0))
            merged[file] = (round(first, 1) or old[0], round(second, 1) or old[1])
        lines = ",\n".join(f" {json.dumps(file)}: {json.dumps(merged[file])}" for file in sorted(merged))
        self.measure.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.left:
            terminalreporter.write_line(f"left to the next runs: {', '.join(sorted(self.left))}")

    @staticmethod
    def _file(item: pytest.Item) -> str:
        return item.nodeid.split("::")[0]
