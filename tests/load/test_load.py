"""The load generator's arithmetic: arrivals, objectives, the search for capacity, what a report says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from equipoise_client.errors import InvalidInput
from equipoise_client.transport import Retry
from equipoise_load.analyzer import write_analyzer
from equipoise_load.arrivals import Arrivals, due_times
from equipoise_load.capacity import find_capacity
from equipoise_load.command import read_report, weights
from equipoise_load.engine import Plan
from equipoise_load.mix import Payload, shuffled
from equipoise_load.report import comparison, tables, write_page
from equipoise_load.slo import Objective, complete, parse_slo
from equipoise_load.tally import Reply, Tally, report_of
from rich.console import Console
from scipy import stats


def test_poisson_arrivals_have_exponential_gaps():
    """Kolmogorov-Smirnov against the exponential; the same seed gives the same times."""
    times = list(due_times(Arrivals.POISSON, 50.0, 200.0, seed=3))
    assert stats.kstest(np.diff(times), stats.expon(scale=1 / 50).cdf).pvalue > 0.001
    assert times == list(due_times(Arrivals.POISSON, 50.0, 200.0, seed=3))
    assert times[-1] < 200.0


def test_constant_arrivals_do_not_drift():
    """The thousandth one is due after exactly 999 gaps."""
    times = list(due_times(Arrivals.CONSTANT, 300.0, 10.0, seed=0))
    assert times == [n / 300.0 for n in range(3000)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p99=250ms", (Objective("p99", 250.0),)),
        ("p99.9=1.5s,errors=0.1%", (Objective("p99.9", 1500.0), Objective("errors", 0.001))),
        ("achieved=95%, max=900us", (Objective("achieved", 0.95), Objective("max", 0.9))),
    ],
)
def test_latency_promises_are_parsed(text, expected):
    assert parse_slo(text) == expected


def test_a_promised_latency_implies_few_errors():
    """Or a server that refuses nearly everybody at once would keep it."""
    assert complete(parse_slo("p99=250ms")) == (Objective("p99", 250.0), Objective("errors", 0.01))
    for text in ("p99=250ms,errors=30%", "errors=0%", "achieved=95%", ""):
        assert complete(parse_slo(text)) == parse_slo(text)
    refusing = report([20.0] * 10, failed=90)
    assert not all(objective.met(refusing) for objective in complete(parse_slo("p99=250ms")))


@pytest.mark.parametrize("text", ["p99=250", "p98=1ms", "errors=200%", "p99", "latency=1ms", "errors=5ms"])
def test_what_is_no_promise_is_told(text):
    with pytest.raises(InvalidInput, match="expected objectives such as"):
        parse_slo(text)


def report(latencies, failed=0, lag=0.0):
    """Of a run of ten seconds with these latencies in ms, at equal distances."""
    tally = Tally(1, 100.0, 10.0)
    for i, ms in enumerate(latencies):
        due = 100.0 + 10.0 * i / len(latencies)
        tally.add(Reply(0, due, due + lag, due + ms / 1e3, "OK", 1, 20, ("review",)))
    for _ in range(failed):
        tally.add(Reply(0, 105.0, 105.0, 106.0, "UNAVAILABLE", 2))
    return report_of(tally, ["one"], [1.0], open_loop=True)


def test_a_report_counts_from_when_requests_were_due():
    """A generator that was 5 ms late has not made the server quicker."""
    told = report([20.0] * 99 + [500.0], failed=1, lag=0.005)
    assert told["latency_ms"]["p50"] == pytest.approx(20.0, rel=2e-3)
    assert told["latency_ms"]["max"] == pytest.approx(500.0, rel=2e-3)
    assert told["service_ms"]["p50"] == pytest.approx(15.0, rel=2e-3)
    assert told["generator_lag_ms"]["p50"] == pytest.approx(5.0, rel=2e-3)
    assert told["requests"] == {
        "sent": 101, "answered": 100, "failed": 1, "error_share": 1 / 101,
        "by_code": {"OK": 100, "UNAVAILABLE": 1}, "tries": 102,
    }  # fmt: skip
    assert told["samples_per_image"] == 20.0


def test_a_run_whose_queue_grows_has_not_settled():
    assert report([20.0] * 100)["steady"]
    assert report(list(np.linspace(20, 2000, 100)))["steady"] is False
    assert report([20.0] * 10)["steady"] is None


def test_objectives_are_met_or_missed():
    """No answer at all keeps none of them."""
    good, none = report([20.0] * 100), report([], failed=3)
    for text, kept in (("p99=21ms", True), ("p99=19ms", False), ("errors=0%", True), ("achieved=99%", True)):
        (objective,) = parse_slo(text)
        assert objective.met(good) is kept
        assert not objective.met(none)
    json.dumps([good, none], allow_nan=False)


@pytest.mark.parametrize(("true", "first"), [(137.0, 10.0), (137.0, 1000.0), (3.0, 3.0)])
def test_the_search_finds_the_capacity(true, first):
    """Within the five per cent that it states, from below."""
    found = find_capacity(lambda rate: (rate <= true, {}), first)
    assert true / 1.06 <= found.rate <= true


def test_a_server_that_keeps_no_promise_has_no_capacity():
    assert find_capacity(lambda rate: (False, {}), 10.0).rate == 0.0


def test_the_mix_follows_the_weights():
    payloads = [payload("a", 1.0), payload("b", 3.0)]
    kinds = shuffled(payloads, seed=0)
    drawn = [next(kinds) for _ in range(4000)]
    assert stats.binomtest(sum(drawn), 4000, 0.75).pvalue > 0.001


def payload(name: str, weight: float = 1.0, samples: int | None = 5) -> Payload:
    return Payload(name, name, np.zeros((1, 1, 2, 3), np.float32), (1.0, 1.0), samples, b"", weight)


def plan(arrivals=Arrivals.CLOSED) -> Plan:
    return Plan("host:8001", arrivals, 5.0, 3, 0.0, 2.0, 1.0, Retry(1), 1)


def test_perf_analyzer_gets_the_same_load(tmp_path):
    command = write_analyzer(plan(), [payload("a")], tmp_path)
    row = json.loads((tmp_path / "input.json").read_text())["data"][0]
    assert row["image"] == {"content": [0.0] * 6, "shape": [1, 1, 2, 3]} and row["samples"]["content"] == [5]
    assert {"a", "host:8001", "image:1,1,2,3", "samples:1,1", "3"} <= set(command)
    with pytest.raises(InvalidInput, match="one model at a time; this mix has a, b"):
        write_analyzer(plan(), [payload("a"), payload("b")], tmp_path)


def test_weights_of_models():
    assert weights(["a", "b=2.5"]) == {"a": 1.0, "b": 2.5}
    with pytest.raises(InvalidInput, match="NAME=WEIGHT"):
        weights(["a=x"])
    with pytest.raises(InvalidInput, match="above 0"):
        weights(["a=-1"])


def test_reports_are_shown_compared_and_written(tmp_path: Path):
    """Tables, a page that loads nothing from elsewhere, and two runs side by side; also where nothing was answered."""
    common = {
        "models": ["<b>"], "begun": "now", "url": "host:1", "arrivals": "poisson", "duration": 10.0, "warmup": 0.0,
        "rate": 1.0, "connections": 1, "timeout": 1.0, "attempts": 1, "concurrency": None, "objectives": [],
        "server": None,
    }  # fmt: skip
    for told in (report([20.0] * 50 + [40.0] * 50), report([], failed=2)):
        write_page({**told, **common}, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert page.count("<svg") == 2 and "&lt;b&gt;" in page
        assert "src=" not in page and "<link" not in page
    console = Console(record=True, width=160)
    console.print(tables(report([20.0] * 100)))
    console.print(comparison(report([20.0] * 100), report([40.0] * 100), ("a.json", "b.json")))
    shown = console.export_text()
    assert "from due to answer" in shown and "a.json" in shown and "40.03  │ 2 " in shown


def test_a_file_that_is_not_a_report_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InvalidInput, match="is not a report of"):
        read_report(tmp_path / "x.json")
