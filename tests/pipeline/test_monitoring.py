"""Dashboard, rules and alerts on a real run: Triton, HAProxy and the gateway, scraped by a real Prometheus."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc
from equipoise_clinic.audit.chain import Kind, append
from tritonclient.utils import InferenceServerException

from ..support.asking import MODELS, SMALL, ask, case, picture, poll
from ..support.gateways import Running, configuration, gateway, send
from ..support.ports import closed_port
from ..support.processes import serving
from ..support.reverse_proxy import certificates, reverse_proxy
from ..support.studies import study
from ..support.watching import EXPRESSIONS, PROMETHEUS, RULES, Prometheus, prometheus

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("haproxy") is None or shutil.which("prometheus") is None,
        reason="haproxy or prometheus is not installed: `bash deploy/system-packages.sh`",
    ),
]

SCALING = PROMETHEUS.parent / "helm" / "equipoise" / "templates" / "scaling.yaml"
ELSEWHERE = {
    "nv_gpu_": "there is no GPU here",
    "probe_ssl_": "the blackbox exporter is not installed here",
}
"""What no expression can show in this run, and why."""


def _selectors(expression: str) -> set[str]:
    """Every metric that a PromQL expression names, with its matchers."""
    found = re.findall(r"(?<![\w:])((?:nv|equipoise|haproxy|probe)[_:][\w:]+|up)(\{[^}]*\})?", expression)
    return {name + (matchers or "") for name, matchers in found if not matchers or "!~" not in matchers}


def _audited(log: Path) -> None:
    """An audit log in which an expert found one of two accepted cases wrong."""
    for number in range(2):
        body = {"route": "accept", "model": "hippocampus", "policy_digest": "ab" * 32, "alpha": 0.05, "audit": True}
        decision = append(log, Kind.DECISION, {**body, "input_digest": f"{number:064x}"})
        verdict = "correct" if number else "accept"
        append(log, Kind.VERDICT, {"decision": decision.sequence, "by": "dr.who", "verdict": verdict})


def _busy(client, contracts) -> dict[str, str]:
    """Requests of every kind; what became of the refused ones: name → gRPC's code."""
    for model in MODELS:
        for seed in range(3):
            ask(client, model, case(picture(contracts[model], SMALL[model][0], seed=seed)), ("route",))
    ask(client, "pneumonia", case(np.zeros((1, 28, 28), np.float32)), ("route",))
    wrong = {
        "shape": lambda: ask(client, "tinyseg", case(np.full((1, 4, 4), np.nan, np.float32)), ("route",)),
        "model": lambda: ask(client, "nobody", case(np.zeros((1, 4, 4), np.float32)), ("route",)),
        "method": client.get_model_repository_index,
    }
    codes = {}
    for name, request in wrong.items():
        with pytest.raises(InferenceServerException) as refused:
            request()
        codes[name] = str(refused.value.status())
    return codes


@pytest.fixture(scope="module")
def watched(repository, contracts, tmp_path_factory) -> Iterator[tuple[Prometheus, dict[str, str]]]:
    """A run that Prometheus has seen from before its first request, and the codes of refused requests."""
    folder = tmp_path_factory.mktemp("watched")
    audit = folder / "decisions.jsonl"
    _audited(audit)
    with ExitStack() as opened:
        urls = opened.enter_context(serving(repository, folder / "serving", os.environ)).urls
        nowhere = [opened.enter_context(closed_port()) for _ in range(2)]
        settings = configuration(
            folder / "gateway", urls["grpc"], '[[series]]\nmodel = "tinyseg"\nmodality = "MR"\n',
            settings={"audit": str(audit)},
            receive={"port": 0, "quiet_seconds": 0.2},
            dicomweb={"url": f"http://127.0.0.1:{nowhere[0]}/dicom-web", "every_seconds": 0.2},
            deliver={"stow_url": f"http://127.0.0.1:{nowhere[1]}", "review": "send", "reject": "send"},
        )  # fmt: skip
        running: Running = opened.enter_context(gateway(settings))
        authority = certificates(folder / "certificates")
        health = urlsplit(urls["health"]).port
        proxy = opened.enter_context(reverse_proxy(authority, [(urls["grpc"], health)]))
        targets = {
            "equipoise-triton": urlsplit(urls["metrics"]).netloc,
            "equipoise-haproxy": urlsplit(proxy.statistics).netloc,
            "equipoise-gateway": f"127.0.0.1:{running.ports['health']}",
        }
        seen = opened.enter_context(prometheus(folder / "prometheus", targets))
        tls = proxy.tls()
        client = opened.enter_context(
            tritonclient.grpc.InferenceServerClient(
                proxy.url,
                ssl=True,
                root_certificates=str(tls.root),
                private_key=str(tls.key),
                certificate_chain=str(tls.certificate),
            )
        )
        poll(lambda: proxy.up() == 1, "the proxy has found the replica healthy")
        poll(lambda: seen.values("sum(up)") == [3.0], "everything is scraped")
        before = seen.shows('sum(equipoise_routes_total{model="pneumonia"})')
        codes = _busy(client, contracts)
        assert send(running.ports["receive"], study(count=1, rows=16, columns=12)) == [0]
        poll(lambda: running.get("/metrics").count('deliveries_total{outcome="away"}'), "the archive was tried")
        poll(
            lambda: seen.values('sum(equipoise_routes_total{model="pneumonia"})') == [before[0] + 4.0],
            "Prometheus has seen all cases, and no synthetic ones",
        )
        _busy(client, contracts)  # once more: a rate needs two looks
        yield seen, codes


def _expected(expression: str) -> bool:
    return not any(name in expression for name in ELSEWHERE)


def test_every_dashboard_expression_has_data(watched):
    """Each panel's PromQL is valid, and shows at least one number wherever this run can have one."""
    seen, _ = watched
    (scaling,) = re.findall(r"^ +query: (.+)$", SCALING.read_text(), re.MULTILINE)
    expressions = {**EXPRESSIONS, "what the chart scales by": scaling}

    def silent() -> set[str]:
        return {
            name
            for name, expression in expressions.items()
            if not any(math.isfinite(value) for value in seen.values(expression)) and _expected(expression)
        }

    poll(lambda: not silent() or None, f"panels without data: {silent()}", 30.0)


def test_every_rule_is_evaluated_and_speaks_of_metrics_that_exist(watched):
    """No rule has an error, and every metric that rules and alerts name, with the labels they ask for, is there."""
    seen, _ = watched
    groups = seen.get("rules")["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} == {
        rule.get("alert") or rule["record"] for rule in RULES
    }

    def amiss() -> list[str]:
        rules = [rule for group in seen.get("rules")["groups"] for rule in group["rules"]]
        return [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]

    poll(lambda: not amiss(), f"rules that fail: {amiss()}", 30.0)
    wanted = {selector for rule in RULES for selector in _selectors(rule["expr"]) if _expected(selector)}
    assert len(wanted) > 30
    poll(
        lambda: all(seen.values(selector) for selector in wanted),
        f"metrics that nobody tells: {sorted(each for each in wanted if not seen.values(each))}",
        30.0,
    )


def test_what_was_done_is_what_is_shown(watched):
    """Routes, failures, drift, audit and the codes that clients get are counted where the dashboard looks for them."""
    seen, codes = watched
    assert codes == {
        "shape": "StatusCode.INVALID_ARGUMENT",
        "model": "StatusCode.NOT_FOUND",
        "method": "StatusCode.PERMISSION_DENIED",
    }
    for expression, holds in {
        'sum(haproxy_frontend_http_responses_total{proxy="grpc",code="4xx"})': lambda found: found[0] >= 6,
        'haproxy_frontend_requests_denied_total{proxy="grpc"}': lambda found: found == [2.0],
        'equipoise_failures_total{model="tinyseg",kind="InvalidRequest"}': lambda found: found[0] >= 2.0,
        'equipoise_gateway_audit_judged{model="hippocampus"}': lambda found: found == [2.0],
        'equipoise_gateway_audit_wrong{model="hippocampus"}': lambda found: found == [1.0],
        'equipoise_gateway_reachable{peer="destination"}': lambda found: found == [0.0],
        "equipoise:calibration_distance:1d": lambda found: all(0.0 <= each <= 1.0 for each in found),
        **{f'sum(equipoise:route_share:6h{{model="{model}"}})': lambda found: found == [pytest.approx(1.0)]
           for model in MODELS},
    }.items():  # fmt: skip
        seen.shows(expression, holds)
