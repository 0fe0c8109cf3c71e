"""An alarm of the audit log's monitors closes accept in the running server."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from equipoise_clinic.audit import Kind, append
from equipoise_clinic.audit.closing import open_again
from equipoise_deploy.errors import DeployError
from equipoise_deploy.serving.closing import EVERYTHING, VARIABLE, AcceptSwitch

AGGREGATOR = Path(__file__).parents[3] / "model_repository/hippocampus/1/model.py"
POLICY = "ab" * 32


class Clock:
    """Far enough on at each look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1000.0
        return self.now


@pytest.fixture
def log(tmp_path):
    """Twenty accepted cases, all of them wrong."""
    path = tmp_path / "decisions.jsonl"
    for number in range(20):
        body = {"route": "accept", "model": "m", "policy_digest": POLICY, "alpha": 0.05, "audit": True}
        decision = append(path, Kind.DECISION, {**body, "input_digest": f"{number:064x}"})
        append(path, Kind.VERDICT, {"decision": decision.sequence, "by": "dr.who", "verdict": "reject"})
    return path


@pytest.fixture
def aggregator(monkeypatch):
    """`why_closed` of the adapter, for a folder."""

    def of(folder):
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv(VARIABLE, str(folder))
        spec = importlib.util.spec_from_file_location("aggregator", AGGREGATOR)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.why_closed

    return of


def test_a_closed_policy_is_seen_by_the_aggregator_and_opened_again(log, aggregator):
    """The reason names the promise and the line; other models are not concerned."""
    said = []
    with AcceptSwitch(log, said.append, Clock()) as switch:
        why = aggregator(switch.folder)
        assert "wrong more often" in why("m") and "line" in why("m") and why("other") == ""
        assert list(switch.closed) == ["m"] and "ACCEPT IS CLOSED" in said[-1]
        open_again(log, "m", "dr.who", "repaired")
        switch.look()
        assert why("m") == "" and switch.closed == {} and "open again" in said[-1]


def test_a_log_that_cannot_be_read_closes_every_policy(log, aggregator):
    """Until it is whole again."""
    with AcceptSwitch(log, lambda line: None, Clock()) as switch:
        why, whole = aggregator(switch.folder), log.read_bytes()
        log.write_bytes(whole.replace(b"dr.who", b"dr.xxx", 1))
        switch.look()
        assert EVERYTHING in switch.closed and "cannot be read" in why("other")
        log.write_bytes(whole)
        switch.look()
        assert why("other") == "" and why("m") != ""


def test_a_folder_that_is_gone_closes_every_policy(log, aggregator):
    """Somebody cleans up temporary files."""
    with AcceptSwitch(log, lambda line: None, Clock()) as switch:
        why = aggregator(switch.folder)
    assert not switch.folder.exists() and "cannot be read" in why("other")


def test_a_log_that_is_not_there_is_refused(tmp_path):
    """A misspelt name would protect nobody; an empty log is one without decisions."""
    with pytest.raises(DeployError, match=r"no such audit log.*create it empty"):
        AcceptSwitch(tmp_path / "nothing.jsonl", lambda line: None)
    (tmp_path / "decisions.jsonl").touch()
    with AcceptSwitch(tmp_path / "decisions.jsonl", lambda line: None) as switch:
        assert switch.closed == {}


def test_a_log_that_may_only_be_read_closes_all_the_same(log, monkeypatch, aggregator):
    """The line about the alarm is written by whoever writes the log."""

    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("equipoise_clinic.audit.closing.append", refused)
    with AcceptSwitch(log, lambda line: None, Clock()) as switch:
        assert "wrong more often" in aggregator(switch.folder)("m")
