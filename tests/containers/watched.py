"""Prometheus and its rules as compose.yaml starts them, and the dashboard's expressions asked of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import count

import numpy as np
from equipoise_client import UncertaintyClient

from ..support.steps import Note, Wrong
from ..support.watching import EXPRESSIONS, RULES, Prometheus
from .engine import wait
from .site import PROMETHEUS, PROXY, Site, site
from .studies import ARRIVING, arrives, images

WATCHED = (*ARRIVING, "review", "prometheus", "blackbox")
SILENT: Mapping[str, str] = {"nv_gpu_": "there is no GPU"}
"""What an expression names that has no number here → why. Every other one has to have one."""
AUDIT = "equipoise_gateway_audit_"


def watching(target: object, note: Note) -> str:
    """Prometheus scrapes all, each rule evaluates, and each of the dashboard's expressions has a number."""
    with site(WATCHED) as up:
        seen = Prometheus(f"http://127.0.0.1:{PROMETHEUS}")
        wait(lambda: not down(seen), "every target is up", 90.0)
        arrives(images())
        rounds = count()
        due = {name: expression for name, expression in EXPRESSIONS.items() if not excused(name)}

        def shown() -> bool:
            """After some more traffic: a rate needs two looks at a counter that moved."""
            busy(up, next(rounds))
            for name in [name for name, expression in due.items() if shows(seen, expression)]:
                del due[name]
            note("without a number so far", list(due))
            return all(AUDIT in expression for expression in due.values())

        wait(shown, "every expression of the dashboard has a number", 150.0)
        up.compose("restart", "gateway")  # it looks at its audit log at the start, and then every five minutes
        up.ready(WATCHED)
        wait(lambda: shown() and not due, "what the dashboard says of the audit log has a number", 60.0)
        wait(lambda: not amiss(seen), "every rule evaluates", 60.0)
        rules = [rule["name"] for group in seen.get("rules")["groups"] for rule in group["rules"]]
        if set(rules) != {rule.get("alert") or rule["record"] for rule in RULES}:
            raise Wrong("Prometheus does not have the rules of deploy/prometheus/rules")
        without = {name: why for name in EXPRESSIONS if (why := excused(name))}
        note("targets", seen.values("sum(up)"))
        note(
            "certificate ends in days",
            round(seen.shows("probe_ssl_earliest_cert_expiry")[0] / 86400 - time.time() / 86400),
        )
        note("without a number", without)
    shown = f"{len(EXPRESSIONS) - len(without)} of {len(EXPRESSIONS)} dashboard expressions"
    return f"{len(rules)} rules evaluate; {shown} have a number, the others a reason"


def excused(name: str) -> str:
    """Why it has no number; empty: it has to have one."""
    return next((why for part, why in SILENT.items() if part in EXPRESSIONS[name]), "")


def busy(up: Site, seed: int) -> None:
    """A case of every model that a picture fits, through the reverse proxy."""
    with UncertaintyClient(f"localhost:{PROXY}", tls=up.tls(), timeout=60.0) as client:
        for model in ("pneumonia", "nuclei"):
            contract = client.contract(model)
            pixels = np.random.default_rng(seed).uniform(0, 255, (contract.channels, *contract.nominal))
            client.predict(model, pixels.astype(np.float32), outputs=())


def down(seen: Prometheus) -> list[str]:
    targets = seen.get("targets")["activeTargets"]
    return [target["scrapeUrl"] for target in targets if target["health"] != "up"] if targets else ["none"]


def amiss(seen: Prometheus) -> list[str]:
    rules = [rule for group in seen.get("rules")["groups"] for rule in group["rules"]]
    return [rule["name"] for rule in rules if rule["health"] != "ok"]


def shows(seen: Prometheus, expression: str) -> bool:
    return any(math.isfinite(value) for value in seen.values(expression))
