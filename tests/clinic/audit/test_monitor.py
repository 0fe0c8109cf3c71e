"""Whether a policy that stopped keeping its promise is noticed, and one that keeps it is left alone."""

import json

import numpy as np
import pytest
from equipoise_clinic.audit.chain import AuditError, Kind, append
from equipoise_clinic.audit.command import audit
from equipoise_clinic.audit.monitor import Detector, monitor
from scipy.stats import binom
from typer import Typer
from typer.testing import CliRunner

ALPHA, EVERY = 0.1, 1000.0
APP = Typer()
APP.command()(audit)


def first_alarm(wrong, every=EVERY):
    """After how many cases, or None."""
    detector = Detector(ALPHA)
    for count, each in enumerate(wrong, start=1):
        detector = detector.after(bool(each))
        if detector.evidence >= every:
            return count
    return None


def naive_alarm(wrong):
    """The same with the correction removed: an alarm as soon as more than α of at least ten cases are wrong."""
    counts = np.arange(1, len(wrong) + 1)
    late = np.flatnonzero((counts >= 10) & (np.cumsum(wrong) > ALPHA * counts))
    return int(late[0]) + 1 if len(late) else None


@pytest.mark.parametrize("rate", [ALPHA, ALPHA / 3])
def test_false_alarms_are_as_rare_as_stated(rate):
    """P(alarm within n cases) ≤ n/A where the error is at most α; the naive rule breaks that by far."""
    random = np.random.default_rng(0)
    runs, cases = 400, 100
    wrong = random.random((runs, cases)) < rate
    allowed = binom.ppf(0.999, runs, cases / EVERY)
    assert sum(first_alarm(run) is not None for run in wrong) <= allowed
    if rate == ALPHA:
        assert sum(naive_alarm(run) is not None for run in wrong) > allowed


@pytest.mark.parametrize("good", [0, 300])
def test_too_many_errors_are_noticed_however_late_they_begin(good):
    """At three times α: within 80 audited cases in nearly all runs, after 300 good cases as soon as from the start."""
    random = np.random.default_rng(1)
    delays = []
    for _ in range(60):
        wrong = np.r_[random.random(good) < ALPHA / 3, random.random(300) < 3 * ALPHA]
        found = first_alarm(wrong)
        delays.append((found or 10_000) - good)
    assert np.quantile(delays, 0.95) <= 100
    assert np.median(delays) <= 60


def test_the_evidence_grows_by_at_most_one_a_case():
    """E[M_n] ≤ n at a rate of exactly α: the property that the bound rests on, over all outcomes of 8 cases."""
    total = 0.0
    for outcome in range(2**8):
        bits = [bool(outcome >> k & 1) for k in range(8)]
        detector = Detector(ALPHA)
        for bit in bits:
            detector = detector.after(bit)
        total += ALPHA ** sum(bits) * (1 - ALPHA) ** (8 - sum(bits)) * detector.evidence
    assert total == pytest.approx(8.0)


def decision(number, *, marked=True, route="accept", policy="aa" * 32, alpha=ALPHA):
    return {
        "format": "equipoise-record/1", "model": "toy", "policy_digest": policy, "input_digest": f"{number:064x}",
        "route": route, "audit": marked and route == "accept", "alpha": alpha,
    }  # fmt: skip


@pytest.fixture
def log(tmp_path):
    return tmp_path / "decisions.jsonl"


def test_only_marked_cases_count_and_each_once(log):
    """Unmarked ones, second opinions, the same image again and other policies are left out; open ones are counted."""
    for number in range(4):
        append(log, Kind.DECISION, decision(number))
    append(log, Kind.DECISION, decision(3))
    append(log, Kind.DECISION, decision(9, marked=False))
    append(log, Kind.DECISION, decision(10, route="review"))
    append(log, Kind.DECISION, decision(0, policy="bb" * 32))
    for sequence, verdict in ((1, "accept"), (2, "correct"), (2, "accept"), (6, "reject"), (7, "reject")):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": verdict})
    first, second = monitor(log)
    assert (first.accepted, first.marked, first.judged, first.wrong, first.waiting) == (5, 4, 2, 1, 2)
    assert (second.accepted, second.judged, second.alarm) == (1, 0, None)


def test_a_verdict_on_any_copy_of_an_image_counts_once(log):
    """The second may be the only one that is still on a worklist."""
    for _ in range(2):
        append(log, Kind.DECISION, decision(0))
    for sequence in (2, 1):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": "reject"})
    (watch,) = monitor(log)
    assert (watch.accepted, watch.marked, watch.judged, watch.wrong) == (1, 1, 1, 1)


def test_what_the_client_held_back_was_not_accepted(log):
    """The server sees pixels alone; a wrong modality is seen beside it, and such a case is nobody's accepted one."""
    append(log, Kind.DECISION, decision(0))
    append(log, Kind.DECISION, {**decision(1), "routed": {"route": "review", "reason": "another modality"}})
    append(log, Kind.DECISION, {**decision(2), "routed": {"route": "accept", "reason": ""}})
    (watch,) = monitor(log)
    assert (watch.accepted, watch.marked) == (2, 2)


def test_a_verdict_is_of_a_decision_before_it(log):
    """A mistyped number would settle a case that nobody has seen yet."""
    append(log, Kind.DECISION, decision(0))
    words = ["verdict", str(log), "--by", "dr", "--verdict", "reject", "--sequence"]
    for sequence in ("2", "99"):
        with pytest.raises(AuditError, match=f"line {sequence} of .* holds no decision"):
            CliRunner().invoke(APP, [*words, sequence], catch_exceptions=False)
    assert CliRunner().invoke(APP, [*words, "1"], catch_exceptions=False).exit_code == 0
    with pytest.raises(AuditError, match="line 2 "):
        CliRunner().invoke(APP, [*words, "2"], catch_exceptions=False)
    append(log, Kind.VERDICT, {"decision": 4, "by": "dr", "verdict": "reject"})
    append(log, Kind.DECISION, decision(1))
    assert [(each.judged, each.waiting) for each in monitor(log)] == [(1, 1)]


def test_the_command_raises_the_alarm_and_names_the_line(log):
    """Ten wrong ones of ten: exit code 1; a log that was changed is refused instead of believed."""
    for number in range(10):
        append(log, Kind.DECISION, decision(number))
    for sequence in range(1, 11):
        append(log, Kind.VERDICT, {"decision": sequence, "by": "dr", "verdict": "reject"})
    result = CliRunner().invoke(APP, ["monitor", str(log), "--json"])
    (watch,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert 11 <= watch["alarm"] <= 20 and watch["wrong"] == 10
    assert "ALARM at line" in CliRunner().invoke(APP, ["monitor", str(log)]).stdout
    log.write_text(log.read_text().replace('"verdict":"reject"', '"verdict":"accept"', 1))
    with pytest.raises(AuditError, match="changed"):
        monitor(log)


def test_a_policy_without_alpha_needs_one(log):
    """Nothing is assumed of what a policy guarantees."""
    append(log, Kind.DECISION, decision(0, alpha=None))
    with pytest.raises(AuditError, match="--alpha"):
        monitor(log)
    assert monitor(log, alpha=0.05)[0].alpha == 0.05
