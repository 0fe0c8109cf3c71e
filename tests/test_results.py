# ruff: noqa: E501  # tables of made-up figures
"""The page of results says what was measured, on what, and how; made here from figures that nobody measured."""

from __future__ import annotations

from typing import Any

import pytest

from .benchmarks.results import SECTIONS, headline, render, with_headline
from .benchmarks.run import BENCHMARKS, Benchmark

PEERS = {
    name: {"1 clients": {"rate": 1.0, "p50": 9.0}, "8 clients": {"rate": rate, "p50": 2.5}}
    for name, rate in (("equipoise", 30.0), ("in process", 31.0), ("loop", 10.0), ("copies", 15.0))
}
ESTIMATE = {"mean": 1.5, "low": 1.0, "high": 2.0}
LEARNED = {
    "findings": [{"strategy": "epistemic", "dice": [0.5, 0.75], "gain": ESTIMATE, "saved": {**ESTIMATE, "mean": None}}]
}
ONE = {"samples": 5, "seconds": 61.2, "high_water_mb": 900.4, "shared_mb": 70.0, "idle_mb": 400.0}
FOUND: dict[str, Any] = {
    "first_answer": {"install": 61.5, "networks": {"a network": {"export": 12.5, "serve": 4.25, "first answer": 0.0625}}},
    "export_cost": {"size": 64, "networks": {"bottleneck": {
        "sampler_ms": 12.34, "of_parts": 1.04, "copies": 3.0, "loop": 4.0, "predicted": 3.3, "head": 0.051}}},
    "export": {"small": {"export": {"seconds": 9.25, "processor_seconds": 11.0, "timings": {"phases": [
        {"name": "sampler", "seconds": 3.7, "processor_seconds": 4.0, "peak_bytes": 1}]}}}},
    "serving": [{"network": "classifier", "settings": "", "bound_ms": 3.0, "peers": PEERS}],
    "load_generator": {"truth": {"p50": 20.31, "p99": 21.0}, "ratio": 1.02},
    "memory_flat": {"requests": 1000, "memory_mb": [500.0, 501.0], "shared_mb": [9.0, 9.0], "grown": [0.002, 0.0]},
    "memory_large": {"t5": ONE, "t20": {**ONE, "samples": 20}, "ratio": 1.0},
    "memory_volume": {"size": [8, 9, 10], **ONE},
    "masks": {"p": 0.2, "bits": {"7000000": {"before": 7.0, "new": 0.7, "threads": 0.35, "faster_new": 10.0, "faster_threads": 20.0}}},
    "aggregator": {"nuclei": {"ratio": 2.5, **{when: {"whole": whole, "samples": 5, "parts": {"maps": 1.25, "masks": 0.3}}
                                              for when, whole in (("before", 12.0), ("now", 4.8))}}},
    "stages": [{"model": "nuclei", "stages": "first pass", "certificate": "≤ 0.1, confidence 0.9", "cases": 60, "accepted": 0.9, "wrong": 2,
                "passes": 1.7, "milliseconds": 99.0, "faster": 6.5}],
    "decisions": {"nuclei": [{"what": "accepted", "figure": "3 of 40", "bound": "≤ 5 %", "holds": False}]},
    "volumes": [{"noise": 0.1, "level": 0.9, "samples_own": 0.56, "calibrated": 0.91, "width_ml": 0.7, "accepted": 3, "cases": 40}],
    "adapt": [{"model": "nuclei", "site": "blur", "separation": 0.9, "effective_size": 20.4, "labelled": 20, "accepted": 15, "errors": 0,
               "open": "no"}],
    "active_learning": {"mean": LEARNED, "worst tenth": LEARNED},
    "faults": [{"fault": "a cut cable", "requests": 90, "lost": ["gone"], "wrong": 0, "accepted wrongly": 0,
                "ms before": {"p99": 5.0}, "ms during": {}, "ms after": {"p99": 6.0}}],
    "soak": {"minutes": 2.0, "answered": 99, "lost": 0, "verdicts": [{"what": "descriptors, more", "measured": 9, "bound": 4}]},
}  # fmt: skip
RUN: dict[str, Any] = {
    "quick": True, "date": "2026-11-29", "commit": "abc1234", "left_out": {},
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": 16, "versions": {"python": "3.11.7", "torch": "2.13.0"}},
    "benchmarks": {name: {"seconds": 7, "exit": int(name == "decisions"), "arguments": ["--rounds", "1"]} for name in FOUND},
}  # fmt: skip


def test_every_benchmark_that_is_run_has_a_section() -> None:
    """And every section a benchmark, and here an example."""
    assert set(SECTIONS) == set(BENCHMARKS) == set(FOUND)


def test_the_page_names_machine_commit_and_a_quick_run() -> None:
    """Without them no figure means anything."""
    page = render(RUN, FOUND)
    for said in ("A CPU, 2 cores, 16 GiB", "torch 2.13.0", "commit abc1234, 2026-11-29", "quick run"):
        assert said in page
    assert "quick run" not in render({**RUN, "quick": False}, FOUND)


def test_the_page_shows_what_was_measured() -> None:
    """A figure of each table, what was promised and not kept in bold; each table has as many cells a row as heads."""
    page = render(RUN, FOUND)
    for said in (
        "| bottleneck | 12.3 | 1.04 | 3.0 × | 4.0 × | 5.1% |", "| classifier | loop | 10 | 2.5 | 3.00 × |",
        "20.31 ms", "| 1000 | 500 → 501 | 9.0 → 9.0 |", "| 20 | 61 | 900 | 70 |", "8 × 9 × 10", "| 7,000,000 | 7.00 | 0.70 | 0.35 | 10.0 × | 20.0 × |",
        "| nuclei, now | 4.80 | 1.25 | 0.30 |", "nuclei 2.50 × less",
        "| nuclei | first pass | 90.0% | 2 of 60 | ≤ 0.1, confidence 0.9 | 1.7 | 99 | 6.5 × |",
        "| nuclei | accepted | 3 of 40 | ≤ 5 % | **no** |", "| 0.1 | 90% | 56.0% | 91.0% | 0.70 | 3 of 40 |",
        "| mean | epistemic | 0.750 | 1.5 (1 to 2) | – |", "| a cut cable | 90 | 1 | 0 | 5 / nan / 6 |",
        "| descriptors, more | 9 | 4 | **no** |",
    ):  # fmt: skip
        assert said in page, said
    assert page.count("exit code 1") == 1
    for section in page.split("## ")[1:]:
        assert len({line.count("|") for line in section.splitlines() if line.startswith("|")}) == 1, section


def test_what_was_left_out_or_left_nothing_is_said() -> None:
    """No benchmark vanishes from the page."""
    run = {
        **RUN,
        "benchmarks": {"soak": {"seconds": 3, "exit": 1, "arguments": []}},
        "left_out": {"faults": "needs root"},
    }
    page = render(run, {})
    assert "## Soak" in page and "exit code 1" in page
    assert "Not run: faults (needs root)." in page


def test_the_headline_is_four_to_six_lines_and_replaces_its_block_alone() -> None:
    """What stands around the block stays; without a block nothing is written."""
    text = headline(RUN, FOUND)
    assert 4 <= len([line for line in text.splitlines() if line]) <= 6
    assert "3.0 × a PyTorch loop" in text and "of 90 requests 1 lost, 0 wrong" in text and "0 of 1 claims" in text
    readme = with_headline("before\n<!-- headline -->\nold\n<!-- /headline -->\nafter\n", text)
    assert readme == f"before\n<!-- headline -->\n{text}\n<!-- /headline -->\nafter\n"
    assert with_headline(readme, text) == readme
    with pytest.raises(ValueError, match="headline"):
        with_headline("no block", text)


def test_what_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is skipped in silence."""
    monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert Benchmark("x").obstacle(quick=True) == "not in a quick run"
    assert Benchmark("x", data=True).obstacle(quick=False) == "EQUIPOISE_DATA is not set"
    assert Benchmark("x", root=True).obstacle(quick=False) == "needs root"
    assert Benchmark("x").obstacle(quick=False) is None
