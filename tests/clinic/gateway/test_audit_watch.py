"""The audit log's own alarm among the gateway's metrics."""

from __future__ import annotations

import pytest
from equipoise_clinic.audit.chain import Kind, append
from equipoise_clinic.gateway.journal import Watch

from ...support.desk import Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def judged(desk, verdicts, first=0):
    """Accepted cases that were marked for an audit, each with an expert's verdict or, None, without one."""
    for number, verdict in enumerate(verdicts, start=first):
        body = {"route": "accept", "model": "m", "policy_digest": "ab" * 32, "alpha": 0.05, "audit": True}
        decision = append(desk.audit, Kind.DECISION, {**body, "input_digest": f"{number:064x}"})
        if verdict is not None:
            append(desk.audit, Kind.VERDICT, {"decision": decision.sequence, "by": "dr.who", "verdict": verdict})


def told(desk, name):
    """The metric's value for the one policy; None where it is not told."""
    labels = {} if name == "audit_readable" else {"model": "m", "policy": "ab" * 6}
    return desk.metrics.registry.get_sample_value(f"equipoise_gateway_{name}", labels)


def test_verdicts_become_metrics_and_too_many_wrong_ones_an_alarm(desk):
    """Two of three judged, one of them wrong: no alarm. Thirty wrong ones: an alarm."""
    watch = Watch(desk.audit, desk.log, desk.metrics)
    watch.look()
    assert told(desk, "audit_readable") == 1.0 and told(desk, "audit_alarm") is None
    judged(desk, ["accept", "correct", None])
    watch.look()
    names = ("audit_judged", "audit_wrong", "audit_waiting", "audit_alarm")
    assert [told(desk, name) for name in names] == [2.0, 1.0, 1.0, 0.0]
    judged(desk, ["correct"] * 30, first=3)
    watch.look()
    assert told(desk, "audit_alarm") == 1.0 and told(desk, "audit_evidence") >= 1000.0


def test_a_damaged_log_is_told_until_it_is_whole_again(desk):
    """And nothing of its content gets into the gateway's own log."""
    judged(desk, ["accept"])
    whole = desk.audit.read_bytes()
    watch = Watch(desk.audit, desk.log, desk.metrics)
    desk.audit.write_bytes(whole.replace(b"dr.who", b"dr.xxx"))
    watch.look()
    assert told(desk, "audit_readable") == 0.0
    assert "dr.xxx" not in desk.text.getvalue() and desk.lines()[-1]["event"] == "audit log"
    desk.audit.write_bytes(whole)
    watch.look()
    assert told(desk, "audit_readable") == 1.0 and told(desk, "audit_judged") == 1.0
