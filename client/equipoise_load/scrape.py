"""Triton's own account of a run: how long requests queued and computed, per model, from its Prometheus metrics."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from equipoise_client.errors import ServerUnavailable
from prometheus_client.parser import text_string_to_metric_families

COUNTERS = {
    "requests": "nv_inference_request_success",
    "failures": "nv_inference_request_failure",
    "executions": "nv_inference_exec_count",
    "images": "nv_inference_count",
    "queue_us": "nv_inference_queue_duration_us",
    "compute_us": "nv_inference_compute_infer_duration_us",
    "total_us": "nv_inference_request_duration_us",
}

Account = Mapping[str, Mapping[str, float]]
"""Model → counter → value."""


def scrape(url: str, timeout: float = 5.0) -> Account:
    """The counters now. Raises ServerUnavailable where there are no metrics at `url`."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 (the operator's own address)
            text = answer.read().decode()
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise ServerUnavailable(
            f"no metrics at {url}: {error}; expected Triton's, as http://host:8002/metrics"
        ) from error
    names = {metric: short for short, metric in COUNTERS.items()}
    account: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            short = names.get(sample.name.removesuffix("_total"))
            if short and "model" in sample.labels:
                model = account.setdefault(sample.labels["model"], {})
                model[short] = model.get(short, 0.0) + sample.value
    return account


def between(before: Account, after: Account) -> dict[str, dict[str, Any]]:
    """What happened meanwhile, per model that had requests: counts, and means in ms per request."""
    counted = {}
    for model, counters in sorted(after.items()):
        gone = {name: value - before.get(model, {}).get(name, 0.0) for name, value in counters.items()}
        requests = gone.get("requests", 0.0)
        if requests <= 0.0:
            continue
        counted[model] = {
            "requests": int(requests),
            "failures": int(gone.get("failures", 0.0)),
            "requests_per_execution": requests / max(1.0, gone.get("executions", 0.0)),
            **{f"{part}_ms": gone.get(f"{part}_us", 0.0) / requests / 1e3 for part in ("queue", "compute", "total")},
        }
    return counted
