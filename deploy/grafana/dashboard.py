"""The dashboard, as code: `python deploy/grafana/dashboard.py` writes equipoise.json beside itself.

Every expression is run against a real Prometheus that scrapes a real run (tests/pipeline/test_monitoring.py). Grafana
itself was not available: how the panels look was never seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).with_name("equipoise.json")
WIDTH, HEIGHT = 24, 8
"""Of Grafana's grid, and of one panel."""


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: what is seen.
        queries: legend → PromQL; `$model` is what the reader chose.
        unit: Grafana's name for it.
        says: what to look for.
        kind: Grafana's panel.
        stacked: parts of a whole.
        top: upper end of the axis; None fits it to the data.
    """

    title: str
    queries: dict[str, str]
    unit: str
    says: str = ""
    kind: str = "timeseries"
    stacked: bool = False
    top: float | None = None


def _quantile(of: float, buckets: str, by: str) -> str:
    return f"histogram_quantile({of}, sum by ({by}) (increase({buckets})))"


ROWS: dict[str, list[Panel]] = {
    "Is it there": [
        Panel(
            "Replicas that answer",
            {"{{proxy}}": "haproxy_backend_active_servers{proxy=~'replicas.*'}"},
            "none",
            "By synthetic inference, asked by the proxy. 0: every request fails.",
            kind="stat",
        ),
        Panel("Scraped", {"{{job}} {{instance}}": "up{job=~'equipoise-.*'}"}, "none", "1: there, 0: not.", kind="stat"),
        Panel(
            "Alarms",
            {"{{alertname}}": "count by (alertname) (ALERTS{alertstate='firing'}) or vector(0)"},
            "none",
            "",
            "stat",
        ),
        Panel(
            "Days until a certificate ends",
            {"{{instance}}": "(probe_ssl_earliest_cert_expiry - time()) / 86400"},
            "d",
            "Of the port that clients use. Empty without the blackbox exporter.",
            kind="stat",
        ),
    ],
    "What clients see": [
        Panel("Answers", {"{{model}}": "equipoise:answers:rate5m{model=~'$model'}"}, "reqps"),
        Panel(
            "Answers of the proxy, by HTTP code",
            {"{{proxy}} {{code}}": "sum by (proxy, code) (rate(haproxy_frontend_http_responses_total[5m]))"},
            "reqps",
            "4xx: refused, see the proxy's log; 5xx: a server's failure, a full queue included.",
            stacked=True,
        ),
        Panel(
            "Share of requests that fail",
            {"{{proxy}}": "equipoise:client_failure_share:5m"},
            "percentunit",
            "As clients see it. Triton does not count what it refuses for a full queue.",
        ),
        Panel(
            "Cases without a decision",
            {"{{model}} {{kind}}": "equipoise:failures:rate5m{model=~'$model'}"},
            "reqps",
            "InvalidRequest is the client's, SamplerFailure and Internal the server's. None of them was accepted.",
            stacked=True,
        ),
        Panel(
            "Refused, failed and repeated at the proxy",
            {
                "denied {{proxy}}": "sum by (proxy) (rate(haproxy_frontend_requests_denied_total[5m]))",
                "no replica {{proxy}}": "sum by (proxy) (rate(haproxy_backend_connection_errors_total[5m]))",
                "another replica {{proxy}}": "sum by (proxy) (rate(haproxy_backend_redispatch_warnings_total[5m]))",
                "client gone {{proxy}}": "sum by (proxy) (rate(haproxy_backend_client_aborts_total[5m]))",
            },
            "reqps",
        ),
        Panel(
            "Health checks that failed",
            {"{{server}}": "increase(haproxy_server_check_failures_total[5m])"},
            "none",
            "Each asks every model for an answer to a synthetic image.",
        ),
    ],
    "Where time goes": [
        Panel(
            "A request: waiting and computing",
            {
                "{{model}} waits": "equipoise:queue_seconds:mean5m{model=~'($model)(_.*)?'}",
                "{{model}} computes": "equipoise:compute_seconds:mean5m{model=~'($model)(_.*)?'}",
            },
            "s",
            "Means over five minutes. A public model's computing contains its samplers' waiting and computing.",
        ),
        Panel(
            "A request as the proxy sees it",
            {
                "in all {{proxy}}": "haproxy_backend_total_time_average_seconds{proxy=~'replicas.*'}",
                "in the proxy's queue {{proxy}}": "haproxy_backend_queue_time_average_seconds{proxy=~'replicas.*'}",
                "longest {{proxy}}": "haproxy_backend_max_total_time_seconds{proxy=~'replicas.*'}",
            },
            "s",
            "Mean of the last 1024; the longest since the proxy was started.",
        ),
        Panel("Waiting requests", {"{{model}}": "equipoise:queue_depth{model=~'($model)(_.*)?'}"}, "none"),
        Panel("Being answered", {"{{model}}": "sum by (model) (equipoise_in_flight{model=~'$model'})"}, "none"),
        Panel(
            "Images per execution",
            {"{{model}}": "equipoise:batch_size:mean5m{model=~'($model)(_.*)?'}"},
            "none",
            "Of the samplers; each image brings all samples of its chunk.",
        ),
        Panel(
            "Machine",
            {
                "processor {{instance}}": "nv_cpu_utilization",
                "memory {{instance}}": "nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes",
                "GPU {{gpu_uuid}}": "nv_gpu_utilization",
                "GPU memory {{gpu_uuid}}": "nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes",
            },
            "percentunit",
            top=1.0,
        ),
    ],
    "What is decided": [
        Panel(
            "Routes, share of six hours",
            {"{{model}} {{route}}": "equipoise:route_share:6h{model=~'$model'}"},
            "percentunit",
            "Health checks are not counted.",
            stacked=True,
        ),
        Panel(
            "Referrals to experts",
            {
                "{{model}}, six hours": "equipoise:route_share:6h{model=~'$model',route='review'}",
                "{{model}}, a week": "equipoise:route_share:7d{model=~'$model',route='review'}",
            },
            "percentunit",
            top=1.0,
        ),
        Panel(
            "Decisions an hour",
            {"{{model}} {{route}}": "sum by (model, route) (increase(equipoise_routes_total{model=~'$model'}[1h]))"},
            "none",
            "",
            stacked=True,
        ),
        Panel(
            "Samples used by a case",
            {"{{model}}": "equipoise:samples_per_case:mean6h{model=~'$model'}"},
            "none",
            "Mean over six hours. Fewer than the policy's T: cases that were clear stopped early.",
        ),
        Panel(
            "Case score",
            {
                "{{model}} median": _quantile(0.5, "equipoise_case_score_bucket{model=~'$model'}[6h]", "model, le"),
                "{{model}} 90 %": _quantile(0.9, "equipoise_case_score_bucket{model=~'$model'}[6h]", "model, le"),
            },
            "none",
            "What routing looks at; higher is less certain.",
        ),
        Panel(
            "Marked for an audit",
            {"{{model}}": "sum by (model) (increase(equipoise_audits_total{model=~'$model'}[1d]))"},
            "none",
            "Accepted cases drawn at random, a day.",
        ),
    ],
    "Is it still the population of the calibration": [
        Panel(
            "Distance from the calibration cases",
            {"{{model}} {{number}}": "equipoise:calibration_distance:1d{model=~'$model'}"},
            "none",
            "Kolmogorov-Smirnov, over a day; an alert above 0.25 when there are enough cases.",
            top=1.0,
        ),
        Panel(
            "Beyond all calibration cases",
            {"{{model}} {{number}}": "1 - equipoise:calibration_share:1d{model=~'$model',le='1'}"},
            "percentunit",
            "Share of a day's cases with a larger number than any calibration case.",
        ),
        Panel(
            "Where cases lie",
            {"{{le}}": "sum by (le) (increase(equipoise_calibration_rank_bucket{model=~'$model'}[1d]))"},
            "none",
            "Cumulative, over all watched numbers. Without drift the steps are equal.",
            kind="bargauge",
        ),
        Panel(
            "Cases that were compared",
            {"{{model}}": "max by (model) (equipoise:calibration_cases:1d{model=~'$model'})"},
            "none",
        ),
    ],
    "Are accepted cases right": [
        Panel(
            "Evidence that they are wrong too often",
            {"{{model}} {{policy}}": "equipoise_gateway_audit_evidence{model=~'$model'}"},
            "none",
            "From experts' verdicts on audited cases. From 1000 on it is an alarm: take the policy out of service.",
        ),
        Panel(
            "Alarm",
            {"{{model}} {{policy}}": "equipoise_gateway_audit_alarm{model=~'$model'}"},
            "none",
            "1: alarm.",
            "stat",
        ),
        Panel(
            "Audited",
            {
                "{{model}} judged": "equipoise_gateway_audit_judged{model=~'$model'}",
                "{{model}} wrong": "equipoise_gateway_audit_wrong{model=~'$model'}",
                "{{model}} waiting": "equipoise_gateway_audit_waiting{model=~'$model'}",
            },
            "none",
        ),
        Panel(
            "Audit log readable", {"{{instance}}": "equipoise_gateway_audit_readable"}, "none", "0: damaged.", "stat"
        ),
    ],
    "Gateway": [
        Panel("Studies", {"{{state}}": "sum by (state) (equipoise_gateway_studies)"}, "none", stacked=True),
        Panel(
            "Results",
            {"{{state}}": "sum by (state) (equipoise_gateway_cases)"},
            "none",
            "dead: given up, see the worklist.",
            stacked=True,
        ),
        Panel("Longest wait", {"{{instance}}": "equipoise_gateway_oldest_waiting_seconds"}, "s"),
        Panel("Worklist", {"{{instance}}": "equipoise_gateway_worklist"}, "none", "Cases that wait for an expert."),
        Panel(
            "Analysis of a study",
            {
                "median": _quantile(0.5, "equipoise_gateway_analysis_seconds_bucket[1h]", "le"),
                "99 %": _quantile(0.99, "equipoise_gateway_analysis_seconds_bucket[1h]", "le"),
            },
            "s",
            "From selection to written objects.",
        ),
        Panel(
            "Images, results and deliveries",
            {
                "images {{outcome}}": "sum by (outcome) (increase(equipoise_gateway_instances_total[1h]))",
                "results {{outcome}}": "sum by (outcome) (increase(equipoise_gateway_results_total[1h]))",
                "deliveries {{outcome}}": "sum by (outcome) (increase(equipoise_gateway_deliveries_total[1h]))",
            },
            "none",
        ),
        Panel("Peers", {"{{peer}}": "equipoise_gateway_reachable"}, "none", "1: answered last time.", "stat"),
        Panel("Free disk", {"{{instance}}": "equipoise_gateway_free_bytes"}, "bytes"),
        Panel(
            "Unforeseen errors", {"{{part}}": "sum by (part) (increase(equipoise_gateway_failures_total[1h]))"}, "none"
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        top += 1
        across = 4 if len(row) == 4 else 3
        for number, panel in enumerate(row):
            place = {
                "h": HEIGHT,
                "w": WIDTH // across,
                "x": number % across * (WIDTH // across),
                "y": top + number // across * HEIGHT,
            }
            panels.append(_panel(panel, len(panels) + 1, place))
        top += -(-len(row) // across) * HEIGHT
    return {
        "uid": "equipoise",
        "title": "Equipoise",
        "tags": ["equipoise"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source(), _model()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def expressions() -> dict[str, str]:
    """`panel: legend` → PromQL, for all models."""
    return {
        f"{panel.title}: {legend}": query.replace("$model", ".*")
        for row in ROWS.values()
        for panel in row
        for legend, query in panel.queries.items()
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    bounds = {"min": 0} if panel.top is None else {"min": 0, "max": panel.top}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom, **bounds}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _model() -> dict[str, Any]:
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": "label_values(equipoise_in_flight, model)",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """The file, as it is committed."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text(), encoding="utf-8")
