"""The audit log's own alarm among the gateway's metrics."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from equipoise_clinic.audit import Kind, append, redact, verify
from equipoise_clinic.audit.monitor import monitor
from equipoise_clinic.audit.status import LIMIT
from equipoise_clinic.gateway.audit_log import AuditWatch, forget

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


def reported(desk, name, monitor=None):
    """The metric's value for the one policy; None where it is not reported."""
    labels = {} if name == "audit_readable" else {"model": "m", "policy": "ab" * 6}
    labels |= {"monitor": monitor} if monitor else {}
    return desk.metrics.registry.get_sample_value(f"equipoise_gateway_{name}", labels)


def test_verdicts_become_metrics_and_too_many_wrong_ones_an_alarm(desk):
    """Two of three judged, one of them wrong: no alarm. Thirty wrong ones: an alarm."""
    watch = AuditWatch(desk.audit, desk.log, desk.metrics)
    watch.look()
    assert reported(desk, "audit_readable") == 1.0 and reported(desk, "audit_alarm") is None
    judged(desk, ["accept", "correct", None])
    watch.look()
    names = ("audit_judged", "audit_wrong", "audit_waiting", "audit_alarm")
    assert [reported(desk, name) for name in names] == [2.0, 1.0, 1.0, 0.0]
    judged(desk, ["correct"] * 30, first=3)
    watch.look()
    assert reported(desk, "audit_alarm") == 1.0 and reported(desk, "audit_closed") == 0.0
    assert reported(desk, "audit_evidence", "error") > LIMIT and reported(desk, "audit_warning", "error") == 1.0


def test_an_alarm_closes_accept_where_that_is_asked_for(desk):
    """For that model, and for every model while the log is damaged."""
    judged(desk, ["correct"] * 30)
    watch = AuditWatch(desk.audit, desk.log, desk.metrics, close=True)
    watch.look()
    assert "wrong more often" in watch.closed("m") and watch.closed("other") == ""
    assert reported(desk, "audit_closed") == 1.0
    assert AuditWatch(desk.audit, desk.log, desk.metrics).closed("m") == ""
    desk.audit.write_bytes(desk.audit.read_bytes().replace(b"dr.who", b"dr.xxx", 1))
    watch.look()
    assert watch.closed("other") == "the audit log cannot be read"


def test_a_damaged_log_is_reported_until_it_is_whole_again(desk):
    """And nothing of its content gets into the gateway's own log."""
    judged(desk, ["accept"])
    whole = desk.audit.read_bytes()
    watch = AuditWatch(desk.audit, desk.log, desk.metrics)
    desk.audit.write_bytes(whole.replace(b"dr.who", b"dr.xxx"))
    watch.look()
    assert reported(desk, "audit_readable") == 0.0
    assert "dr.xxx" not in desk.text.getvalue() and desk.lines()[-1]["event"] == "audit log cannot be read"
    desk.audit.write_bytes(whole)
    watch.look()
    assert reported(desk, "audit_readable") == 1.0 and reported(desk, "audit_judged") == 1.0


def test_a_look_at_the_log_reads_what_is_new(desk):
    """Counted in bytes, after many decisions with large records; the numbers are those of `equipoise audit monitor`."""
    watch = AuditWatch(desk.audit, desk.log, desk.metrics)
    append(desk.audit, Kind.DECISION, {"more": "x" * 5_000_000})
    judged(desk, ["accept", "correct", None])
    watch.look()
    judged(desk, ["correct", None], first=3)
    before = read_bytes()
    watch.look()
    assert read_bytes() - before < 500_000
    (status,) = monitor(desk.audit)
    assert (status.judged, status.wrong, status.waiting) == (3, 2, 2)
    assert [reported(desk, f"audit_{name}") for name in ("judged", "wrong", "waiting")] == [3.0, 2.0, 2.0]
    assert reported(desk, "audit_evidence", "error") == status.monitors[0].e_value


def read_bytes() -> int:
    """By this process so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_line_that_cannot_be_counted_is_reported_at_every_look(desk):
    """A verdict that nobody knows, as a foreign program may have written it, is not passed over."""
    judged(desk, [None])
    append(desk.audit, Kind.VERDICT, {"decision": 1, "by": "dr.who", "verdict": "perhaps"})
    watch = AuditWatch(desk.audit, desk.log, desk.metrics)
    for _ in range(2):
        watch.look()
        assert reported(desk, "audit_readable") == 0.0


def test_contents_are_forgotten_after_the_days_that_were_set(desk):
    """The chain stays whole, an alarm stays an alarm, and nothing is deleted before."""
    judged(desk, ["correct"] * 30)
    watch = AuditWatch(desk.audit, desk.log, desk.metrics, close=True)
    watch.look()
    now = datetime.now(timezone.utc)
    assert forget(desk.store, desk.audit, 30.0, now + timedelta(days=29)) == 0
    assert forget(desk.store, desk.audit, 30.0, now + timedelta(days=31)) == 60
    assert forget(desk.store, desk.audit, 30.0, now + timedelta(days=31)) == 0
    assert not list(verify(desk.audit))
    again = AuditWatch(desk.audit, desk.log, desk.metrics, close=True)
    again.look()
    judged(desk, ["accept"], first=40)
    again.look()
    assert again.closed("m") != ""


def test_decisions_whose_content_was_deleted_wait_no_longer(desk):
    judged(desk, ["accept", None, None])
    watch = AuditWatch(desk.audit, desk.log, desk.metrics)
    watch.look()
    assert (reported(desk, "audit_judged"), reported(desk, "audit_waiting")) == (1.0, 2.0)
    redact(desk.audit, datetime.now(timezone.utc) + timedelta(days=1), "retention")
    watch.look()
    assert (reported(desk, "audit_judged"), reported(desk, "audit_waiting")) == (1.0, 0.0)
