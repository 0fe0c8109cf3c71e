"""Prometheus's rules: each alert fires where it should and keeps still where it nearly should, by promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
GROUPS = [group["name"] for path in reversed(RULES) for group in yaml.safe_load(path.read_text())["groups"]]
"""What is recorded comes first: steps of ten minutes are longer than Prometheus looks back."""
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}


@dataclass(frozen=True)
class Scenario:
    """What is scraped, in promtool's notation, at `step`; `right` replaces some of `wrong`'s series.

    Attributes:
        at: when the alert has to fire under `wrong`, and must not under `right`.
    """

    wrong: dict[str, str]
    right: dict[str, str]
    at: str = "15m"
    step: str = "1m"


def _model(name: str, **labels: str) -> str:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return f'{name}{{instance="a",model="m"{more}}}'


SERVING = {_model("nv_inference_request_success"): "0+60x60", _model("equipoise_in_flight"): "1x60"}
FAILURES = {_model("equipoise_failures_total", kind=kind): "0x60" for kind in ("SamplerFailure", "InvalidRequest")}


def _routes(accept: str, review: str, reject: str) -> dict[str, str]:
    values = {"accept": accept, "review": review, "reject": reject}
    return {_model("equipoise_routes_total", route=route): series for route, series in values.items()}


def _ranks(shares: list[int]) -> dict[str, str]:
    """Cumulative cases per step in the buckets 0, 0.1, … 1 of one watched number, of 10 in all."""
    bounds = ["0", *(f"0.{tenth}" for tenth in range(1, 10)), "1"]
    buckets = {
        _model("equipoise_calibration_rank_bucket", number="ood_distance", le=le): f"0+{share}x200"
        for le, share in zip(bounds, shares, strict=True)
    }
    return {**buckets, _model("equipoise_calibration_rank_count", number="ood_distance"): "0+10x200"}


def _gauge(series: str, wrong: str, right: str, **options: str) -> Scenario:
    return Scenario({series: f"{wrong}x60"}, {series: f"{right}x60"}, **options)


def _proxy(name: str, **labels: str) -> str:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return f'{name}{{instance="p",proxy="triton"{more}}}'


SCENARIOS = {
    "EquipoiseDown": Scenario(
        {'up{job="equipoise-triton",instance="a"}': "1 1 0x20"}, {'up{job="equipoise-triton",instance="a"}': "1x13 0 1"}
    ),
    "EquipoiseNoReplica": _gauge(_proxy("haproxy_backend_status", state="DOWN"), "1", "0"),
    "EquipoiseReplicaUnhealthy": _gauge(_proxy("haproxy_server_status", server="a", state="DOWN"), "1", "0"),
    "EquipoiseModelMissing": Scenario(
        {
            'up{job="equipoise-triton",instance="a"}': "1x60",
            'up{job="equipoise-triton",instance="b"}': "1x60",
            _model("equipoise_in_flight"): "0x60",
        },
        {'equipoise_in_flight{instance="b",model="m"}': "0x60"},
    ),
    "EquipoiseRestarts": Scenario(
        {'up{job="equipoise-triton",instance="a"}': "1 1 0 1 0 1 0 1x20"},
        {'up{job="equipoise-triton",instance="a"}': "1 1 0 1 0 1x20"},
    ),
    "EquipoiseStuck": Scenario(
        {
            **SERVING,
            _model("nv_inference_request_success"): "7x60",
            _model("nv_inference_pending_request_count"): "3x60",
        },
        {_model("nv_inference_request_success"): "0+1x60"},
    ),
    "EquipoiseClientsFail": Scenario(
        {
            _proxy("haproxy_backend_http_responses_total", code="5xx"): "0+3x60",
            _proxy("haproxy_backend_http_requests_total"): "0+100x60",
        },
        {_proxy("haproxy_backend_http_responses_total", code="5xx"): "0+1x60"},
    ),
    "EquipoiseNoTraffic": Scenario(
        _routes("0+20x336 6720x20", "0x360", "0x360"),
        _routes("0+20x360", "0x360", "0x360"),
        at="172h",
        step="30m",
    ),
    "EquipoiseProxyDown": Scenario(
        {'up{job="equipoise-haproxy",instance="p"}': "1 1 0x20"},
        {'up{job="equipoise-haproxy",instance="p"}': "1x13 0 1"},
    ),
    "EquipoiseProxyDenies": Scenario(
        {_proxy("haproxy_frontend_requests_denied_total"): "0+90x60"},
        {_proxy("haproxy_frontend_requests_denied_total"): "0+50x60"},
        at="20m",
    ),
    "EquipoiseCertificateEnds": _gauge(
        'probe_ssl_earliest_cert_expiry{job="equipoise-certificates",instance="front"}',
        str(14 * 86400),
        str(15 * 86400),
        at="3h",
        step="10m",
    ),
    "EquipoiseModelFails": Scenario(
        {**SERVING, **FAILURES, _model("equipoise_failures_total", kind="SamplerFailure"): "0+2x60"},
        {
            _model("equipoise_failures_total", kind="SamplerFailure"): "0x60",
            _model("equipoise_failures_total", kind="InvalidRequest"): "0+2x60",
        },
    ),
    "EquipoiseBadRequests": Scenario(
        {**SERVING, **FAILURES, _model("equipoise_failures_total", kind="InvalidRequest"): "0+20x60"},
        {_model("equipoise_failures_total", kind="InvalidRequest"): "0+10x60"},
        at="25m",
    ),
    "EquipoiseQueueSlow": Scenario(
        {**SERVING, _model("nv_inference_queue_duration_us"): "0+150000000x60"},
        {_model("nv_inference_queue_duration_us"): "0+90000000x60"},
    ),
    "EquipoiseMemoryHigh": Scenario(
        {'nv_cpu_memory_used_bytes{instance="a"}': "95x60", 'nv_cpu_memory_total_bytes{instance="a"}': "100x60"},
        {'nv_cpu_memory_used_bytes{instance="a"}': "90x60"},
    ),
    "EquipoiseGpuMemoryHigh": Scenario(
        {'nv_gpu_memory_used_bytes{gpu_uuid="g"}': "98x60", 'nv_gpu_memory_total_bytes{gpu_uuid="g"}': "100x60"},
        {'nv_gpu_memory_used_bytes{gpu_uuid="g"}': "96x60"},
    ),
    "EquipoiseNothingAccepted": Scenario(
        _routes("0x60", "0+2x60", "0x60"), _routes("0+1x60", "0+2x60", "0x60"), at="8h", step="10m"
    ),
    "EquipoiseNeverUnsure": Scenario(
        _routes("0+4x60", "0x60", "0x60"), _routes("0+4x60", "0x30 1x30", "0x60"), at="8h", step="10m"
    ),
    "EquipoiseReferralsRise": Scenario(
        _routes("0+30x322 9660x20", "0x322 0+30x20", "0x360"),
        _routes("0+21x360", "0+9x360", "0x360"),
        at="168h",
        step="30m",
    ),
    "EquipoiseRejectsMany": Scenario(
        _routes("0+3x60", "0x60", "0+1x60"), _routes("0+9x60", "0x60", "0+1x60"), at="8h", step="10m"
    ),
    "EquipoiseDrift": Scenario(
        _ranks([0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 8]), _ranks([0, 0, 1, 2, 3, 4, 4, 5, 6, 8, 9]), at="30h", step="10m"
    ),
    "EquipoiseAuditAlarm": _gauge('equipoise_gateway_audit_alarm{instance="g",model="m",policy="abc"}', "1", "0"),
    "EquipoiseAuditWarning": _gauge(
        'equipoise_gateway_audit_warning{instance="g",model="m",policy="abc",monitor="error"}', "1", "0"
    ),
    "EquipoiseAuditWaits": _gauge(
        'equipoise_gateway_audit_waiting{instance="g",model="m",policy="abc"}', "51", "50", at="30h", step="1h"
    ),
    "EquipoiseAuditLogBroken": _gauge('equipoise_gateway_audit_readable{instance="g"}', "0", "1", at="20m"),
    "EquipoiseGatewayDown": Scenario(
        {'up{job="equipoise-gateway",instance="g"}': "1 1 0x20"},
        {'up{job="equipoise-gateway",instance="g"}': "1x13 0 1"},
    ),
    "EquipoiseStudiesWait": _gauge('equipoise_gateway_oldest_waiting_seconds{instance="g"}', "901", "900"),
    "EquipoiseGatewayTrouble": Scenario(
        {'equipoise_gateway_failures_total{instance="g",part="delivery"}': "0x8 1x20"},
        {'equipoise_gateway_failures_total{instance="g",part="delivery"}': "3x30"},
    ),
    "EquipoisePeerAway": _gauge('equipoise_gateway_reachable{instance="g",peer="triton"}', "0", "1"),
    "EquipoiseDeadLetters": _gauge('equipoise_gateway_cases{instance="g",state="dead"}', "1", "0"),
    "EquipoiseWorklistLong": _gauge('equipoise_gateway_worklist{instance="g"}', "101", "100", at="2h", step="10m"),
    "EquipoiseDiskFull": _gauge('equipoise_gateway_free_bytes{instance="g"}', "4900000000", "5100000000"),
}


def _firing(alert: str, series: dict[str, str], scenario: Scenario, folder: Path) -> subprocess.CompletedProcess[str]:
    """promtool's verdict on "exactly one such alert fires"."""
    document = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": scenario.step,
        "group_eval_order": GROUPS,
        "tests": [
            {
                "interval": scenario.step,
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count by (alertname) (ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": scenario.at,
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                    }
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(document))
    return subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)


@pytest.fixture(autouse=True)
def _promtool() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: `bash deploy/system-packages.sh`")


def test_promtool_finds_nothing():
    """Configuration, rules and their templates are what Prometheus reads."""
    for what in (["config", PROMETHEUS / "prometheus.yml"], ["rules", *RULES]):
        done = subprocess.run(["promtool", "check", *what], capture_output=True, text=True)
        assert done.returncode == 0 and "SUCCESS" in done.stdout and not done.stderr.strip(), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_alert_fires_when_it_should_and_only_then(alert, tmp_path):
    """Under `wrong` exactly one fires; under `right`, which is nearly as bad, promtool finds none."""
    scenario = SCENARIOS[alert]
    done = _firing(alert, scenario.wrong, scenario, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    quiet = _firing(alert, {**scenario.wrong, **scenario.right}, scenario, tmp_path)
    assert quiet.returncode != 0 and "got: nil" in " ".join(quiet.stderr.split() + quiet.stdout.split()), (
        quiet.stdout + quiet.stderr
    )


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_alert_says_what_to_do(alert):
    """Severity, summary, remedy, and a section of the operations page that exists."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"] and len(rule["annotations"]["remedy"]) > 40
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (DEPLOY.parent / page).read_text(), re.MULTILINE)
    assert anchor == alert.lower() and alert in headings


def test_operations_page_describes_no_alert_that_is_gone():
    """Its alerts are those of the rules."""
    headings = re.findall(r"^#+ (Equipoise[A-Z]\w+)$", (DEPLOY / "OPERATIONS.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
