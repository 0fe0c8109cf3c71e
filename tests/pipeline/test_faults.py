"""Whatever dies, hangs, is cut off or is replaced while requests come in: none is lost, none is wrong, none is accepted
that should not be. How late they are is printed; bench_faults.py measures it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from equipoise_core.contract import load_contract
from equipoise_export.publish.repository import publish_pair

from ..support.faults import APART, DETECTED, FAULTS, MODEL, fleet, suffered
from ..support.repositories import accepting_policy, with_policy

pytestmark = [pytest.mark.triton, pytest.mark.slow]

RATE = 15.0


@pytest.fixture(scope="module")
def versions(tmp_path_factory, tiny_classifier) -> tuple[Path, Path]:
    """One model under two policies: the first accepts what nothing speaks against, the second nothing."""
    folder = tmp_path_factory.mktemp("versions")
    publish_pair(tiny_classifier, folder / "one")
    shutil.copytree(folder / "one", folder / "two")
    with_policy(folder / "one" / MODEL)
    strict = accepting_policy(load_contract(folder / "two" / MODEL / "1" / "contract.json"))
    strict = replace(strict, stages=tuple(replace(stage, accept_up_to=-1.0) for stage in strict.stages))
    (folder / "two" / MODEL / "1" / "policy.json").write_text(strict.dumps(), encoding="utf-8")
    return folder / "one", folder / "two"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.root] if name in APART else []) for name in FAULTS]
)
def test_nothing_is_lost_wrong_or_wrongly_accepted(versions, tmp_path, name):
    """Two replicas behind HAProxy with mutual TLS, Poisson arrivals, our client with its own way to try again."""
    if name in APART and os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    with fleet(versions, tmp_path, apart=name in APART) as made:
        report = suffered(made, name, RATE)
    print(json.dumps(report, indent=1))
    assert report["requests"] > 60
    assert not report["lost"], report
    assert not report["wrong"] and not report["accepted wrongly"], report
    assert report["seconds"].get("noticed", 0.0) < DETECTED
    assert report["versions"] == (2 if name == "another version" else 1)
    assert "accept" in report["routes"] and "review" in report["routes"], report["routes"]
