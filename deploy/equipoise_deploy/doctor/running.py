"""A running server: inference on a synthetic image, plausible variance, latency against a recorded baseline."""

from __future__ import annotations

import json
import re
import statistics
import time
import urllib.request
from collections.abc import Iterator
from math import inf, isclose
from pathlib import Path
from typing import Any

from equipoise_client import UncertaintyClient
from equipoise_client.errors import EquipoiseError
from equipoise_client.images.synthetic import synthetic_image

from ..errors import DeployError
from ..repository import public_models
from ..serving.readiness import Probe, check_readiness
from .results import CheckResult, Subject, failure, ok, skipped, warning

FORMAT = "equipoise-baseline/1"
REQUESTS = 11  # the first is not counted
SLOW, TOO_SLOW = 1.5, 3.0
"""Ratios to the recorded median: a warning, and a failure."""
SAME = 1e-3
"""Relative: the synthetic image and its masks are always the same, and so is its variance on one kind of machine."""
_COUNTER = re.compile(r"^(equipoise_failures_total|equipoise_routes_total)\{(.*)\} (\S+)$", re.MULTILINE)


def inference(subject: Subject) -> Iterator[CheckResult]:
    """Every model answers a synthetic image, and its samples vary as they did when the baseline was recorded."""
    assert subject.grpc is not None
    try:
        names = public_models(subject.repository)
        probes = check_readiness(subject.grpc, names)
        words = {probe.model: probe.words for probe in probes}
        measured = {probe.model: _measure(subject.grpc, probe) for probe in probes}
        before = _read(subject.baseline) if subject.baseline else {}
    except (DeployError, EquipoiseError) as error:
        yield failure("inference", str(error), "restart the server; its log says more")
        return
    for name, (limit, now) in measured.items():
        varies = f"largest variance {words[name]}"
        then = before.get(name)
        same = not then or isclose(then["variance"], now["variance"], rel_tol=SAME)
        if not 0.0 <= now["variance"] <= limit:
            yield failure("inference", f"{name}: {now['variance']:.3g} is no possible variance", "restart it")
        elif then and then["model_digest"] == now["model_digest"] and not same:
            yield failure(
                "inference",
                f"{name}: {varies}; it was {then['variance']:.3g} for the same image and masks",
                "the machine or a library changed, or memory is damaged: compare versions, and replay a record",
            )
        else:
            yield ok("inference", f"{name} answers a synthetic image, {varies}")
        yield _latency(name, now, then, subject)
    if subject.record is not None:
        document = {"format": FORMAT, "models": {name: now for name, (_, now) in measured.items()}}
        subject.record.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        yield ok("baseline", f"recorded in {subject.record}")


def counters(subject: Subject) -> Iterator[CheckResult]:
    """Failures since the start, by Triton's own metrics."""
    if subject.metrics is None:
        yield skipped("counters", "no address of metrics was given", "give it with --metrics")
        return
    try:
        with urllib.request.urlopen(f"http://{subject.metrics}/metrics", timeout=10) as page:
            text = page.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        yield failure("counters", f"{subject.metrics} does not answer: {error}", "check that metrics are switched on")
        return
    found: dict[str, float] = {}
    for name, labels, value in _COUNTER.findall(text):
        kind = re.search(r'(?:kind|route)="(\w+)"', labels)
        key = f"{'failure' if 'failures' in name else 'route'} {kind[1] if kind else '?'}"
        found[key] = found.get(key, 0.0) + float(value)
    if not found:
        yield failure("counters", "the metrics have no counter of Equipoise", "check that this is the right server")
        return
    listed = ", ".join(f"{key} {value:.0f}" for key, value in sorted(found.items()))
    if found.get("failure Internal") or found.get("failure SamplerFailure"):
        yield warning("counters", listed, "look in Triton's log for the failed cases")
    else:
        yield ok("counters", listed)


def _measure(address: str, probe: Probe) -> tuple[float, dict[str, Any]]:
    """The largest variance there can be, and latencies in ms of single requests, one after the other, that ask for the
    decision only."""
    with UncertaintyClient(address) as client:
        contract = client.contract(probe.model)
        image = synthetic_image(contract)[0]
        spacing = None if contract.spacing is None else tuple((low + high) / 2 for low, high in contract.spacing)
        took = []
        for _ in range(REQUESTS):
            begun = time.perf_counter()
            client.predict(probe.model, image, spacing=spacing, outputs=())
            took.append(1000.0 * (time.perf_counter() - begun))
    # Of a number between 0 and 1 it is at most 1/4; a regression's has the unit of its target.
    limit = 0.25 if contract.classes else inf
    return limit, {
        "model_digest": contract.model_digest,
        "median_ms": statistics.median(took[1:]),
        "slowest_ms": max(took[1:]),
        "variance": probe.variance,
    }


def _latency(name: str, now: dict[str, Any], then: dict[str, Any] | None, subject: Subject) -> CheckResult:
    found = f"{name}: median {now['median_ms']:.1f} ms, slowest {now['slowest_ms']:.1f} ms of {REQUESTS - 1}"
    if then is None:
        how = "record one while the server is in good health, --record-baseline FILE, and give it with --baseline"
        if subject.record is not None:
            return ok("latency", found)
        return skipped("latency", f"{found}; there is no baseline of it", how)
    ratio = now["median_ms"] / max(then["median_ms"], 1e-6)
    found += f", {ratio:.2f} times the recorded {then['median_ms']:.1f} ms"
    if ratio >= TOO_SLOW:
        return failure(
            "latency", found, "look for other load on this machine, throttling, and the queue in the metrics"
        )
    if ratio >= SLOW:
        return warning("latency", found, "look for other load on this machine")
    return ok("latency", found)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}")
        return {
            str(name): {
                "model_digest": str(each["model_digest"]),
                "median_ms": float(each["median_ms"]),
                "variance": float(each["variance"]),
            }
            for name, each in document["models"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DeployError(
            f"{path} is not a baseline of format {FORMAT}: {error}; record one with --record-baseline"
        ) from error
